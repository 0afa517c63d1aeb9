"""A run has its own copy of a published tokenizer, and needs no other."""

import importlib

import numpy as np
import pytest

from d4s_jax.formats import tokenizer_files
from d4s_jax.training import checkpoint
from tests.published_tokenizers import write_t5, write_umt5
from tests.support import small_config


@pytest.fixture
def folder(tmp_path):
  return write_umt5(tmp_path / "converted" / "tokenizer")


def start(run, folder):
  """What a run does about its tokenizer before its first step."""
  config = small_config()
  config.model.backbone.tokenizer = str(folder)
  files = checkpoint.read_tokenizer(run, config.model.to_dict())
  checkpoint.write_config(run, config.to_dict())
  checkpoint.write_tokenizer(run, files)
  return files


def test_the_folder_it_came_from_may_go(folder, tmp_path):
  run = tmp_path / "run"
  files = start(run, folder)
  folder.parent.rename(tmp_path / "elsewhere")
  _, system = checkpoint.read_system(run)
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
  _, system = checkpoint.read_system(tmp_path / "run")
  assert dict(system.backbone.tokenizer.files) == wanted


def test_a_lost_copy_is_one_clear_error(folder, tmp_path):
  run = tmp_path / "run"
  start(run, folder)
  (run / "tokenizer").rename(tmp_path / "lost")
  with pytest.raises(FileNotFoundError, match="No tokenizer in .*run/tokenizer"):
    checkpoint.read_system(run)


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
    checkpoint.read_system(run)


def test_without_a_published_one_there_is_no_copy(tmp_path):
  run = tmp_path / "run"
  assert start(run, "") == {}
  assert not (run / "tokenizer").exists()
  _, system = checkpoint.read_system(run)
  np.testing.assert_array_equal(system.tokenize("a")[:2], [ord("a") + 3, 1])
