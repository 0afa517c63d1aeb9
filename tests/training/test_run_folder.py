"""The folder of a run: its configuration, and its own copy of a published tokenizer."""

import importlib
import json

import numpy as np
import pytest

from d4s_jax.formats import tokenizer_files
from d4s_jax.training import checkpoint, run_folder
from tests.published_tokenizers import write_t5, write_umt5
from tests.support import small_config

CONFIG = {
  **{"model": {"width": 3}, "steps": 10, "seed": 0, "data": {"workers": 1}},
  **{"clip": {}, "sampling": {}, "preset": "tiny"},
}


def test_missing_run_says_how_to_get_one(tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match="no trained model.*d4s_jax.train"):
    run_folder.read_config(tmp_path / "nowhere")
  run_folder.write_config(tmp_path, CONFIG)
  with pytest.raises(checkpoint.CheckpointError, match="no checkpoints yet"):
    checkpoint.read_model(tmp_path, {})


def test_broken_config_is_refused(tmp_path):
  (tmp_path / "config.json").write_text('{"model": ')
  with pytest.raises(checkpoint.CheckpointError, match="not valid JSON"):
    run_folder.read_config(tmp_path)


def test_resuming_with_another_configuration_lists_the_differences(tmp_path):
  run_folder.write_config(tmp_path, {**CONFIG, "seed": 1})
  run_folder.write_config(tmp_path, CONFIG)  # nothing was trained: the folder is free
  (tmp_path / "checkpoints" / "5").mkdir(parents=True)
  run_folder.write_config(tmp_path, {**CONFIG, "steps": 20, "data": {"workers": 0}})
  with pytest.raises(checkpoint.CheckpointError, match="model.width: saved 3, now 4.*--workdir"):
    run_folder.write_config(tmp_path, {**CONFIG, "model": {"width": 4}})
  assert json.loads((tmp_path / "config.json").read_text())["model"] == {"width": 3}


@pytest.fixture
def folder(tmp_path):
  return write_umt5(tmp_path / "converted" / "tokenizer")


def start(run, folder):
  """What a run does about its tokenizer before its first step."""
  config = small_config()
  config.model.backbone.tokenizer = str(folder)
  files = run_folder.read_tokenizer(run, config.model.to_dict())
  run_folder.write_config(run, config.to_dict())
  run_folder.write_tokenizer(run, files)
  return files


def test_the_folder_it_came_from_may_go(folder, tmp_path):
  run = tmp_path / "run"
  files = start(run, folder)
  folder.parent.rename(tmp_path / "elsewhere")
  _, system = run_folder.read_system(run)
  assert system.tokenize("a red ball").tolist() != [*b"a red ball"]
  assert dict(system.backbone.tokenizer.files) == files
  # What has no checkpoint begins anew, and needs the folder again.
  with pytest.raises(FileNotFoundError, match="No tokenizer in .*converted"):
    start(run, folder)
  (run / "checkpoints" / "3").mkdir(parents=True)
  assert start(run, folder) == files


def test_a_run_that_begins_anew_takes_the_named_tokenizer(folder, tmp_path):
  start(tmp_path / "run", folder)
  other = write_t5(tmp_path / "other")
  wanted = start(tmp_path / "run", other)
  assert wanted == tokenizer_files.read(other)
  _, system = run_folder.read_system(tmp_path / "run")
  assert dict(system.backbone.tokenizer.files) == wanted


def test_a_lost_copy_is_one_clear_error(folder, tmp_path):
  run = tmp_path / "run"
  start(run, folder)
  (run / "tokenizer").rename(tmp_path / "lost")
  with pytest.raises(FileNotFoundError, match="No tokenizer in .*run/tokenizer"):
    run_folder.read_system(run)


def test_a_missing_library_is_no_fault_of_the_run(folder, tmp_path, monkeypatch):
  run = tmp_path / "run"
  start(run, folder)
  found = importlib.import_module

  def without(name):
    if name == "tokenizers":
      raise ImportError(name)
    return found(name)

  monkeypatch.setattr("importlib.import_module", without)
  with pytest.raises(ValueError, match=r"^A published tokenizer .* needs the package tokenizers"):
    run_folder.read_system(run)


def test_without_a_published_one_there_is_no_copy(tmp_path):
  run = tmp_path / "run"
  assert start(run, "") == {}
  assert not (run / "tokenizer").exists()
  _, system = run_folder.read_system(run)
  np.testing.assert_array_equal(system.tokenize("a")[:2], [ord("a") + 3, 1])
