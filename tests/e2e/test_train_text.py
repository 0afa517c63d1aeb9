"""A run with a published tokenizer and cached prompts goes on without the folder it came from."""

import pytest

from d4s_jax.formats import tokenizer_files
from d4s_jax.training import run_folder
from d4s_jax.training.log import read_metrics
from tests.e2e.test_train import train
from tests.published_tokenizers import write_umt5

CONFIG = """
from tests.support import small_config

def get_config(steps="3"):
  config = small_config()
  config.stage = "diffusion"
  config.steps = int(steps)
  config.optimizer.warmup = 1
  config.heldout.batches, config.heldout.every = 1, 100
  config.checkpoint.every = 2
  config.model.backbone.tokenizer = "{tokenizer}"
  return config
"""


@pytest.mark.slow
def test_a_run_goes_on_without_the_folder_of_its_tokenizer(tmp_path):
  source = write_umt5(tmp_path / "converted" / "tokenizer")
  (tmp_path / "config.py").write_text(CONFIG.replace("{tokenizer}", str(source)))
  cached = f"--config.text_cache={tmp_path / 'prompts'}"
  done = train(tmp_path, "run", cached, steps=3)
  assert done.returncode == 0, done.stderr[-3000:]
  assert "compiling the text encoder" in done.stdout + done.stderr
  entries = set((tmp_path / "prompts").iterdir())
  assert entries

  files = tokenizer_files.read(source)
  source.parent.rename(tmp_path / "moved")
  done = train(tmp_path, "run", cached, steps=4)
  assert done.returncode == 0, done.stderr[-3000:]
  assert "resumed at step 3" in done.stdout + done.stderr
  assert entries <= set((tmp_path / "prompts").iterdir())
  rows = read_metrics(tmp_path / "run", "train")
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  _, system = run_folder.read_system(tmp_path / "run")
  assert dict(system.backbone.tokenizer.files) == files
