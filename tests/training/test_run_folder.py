"""The folder of a run: its configuration, and its own copy of a published tokenizer."""

import errno
import functools
import importlib
import json
import shlex

import absl.flags
import numpy as np
import pytest
from ml_collections import config_flags

from d4s_jax.config import base
from d4s_jax.data import identity
from d4s_jax.formats import tokenizer_files
from d4s_jax.training import checkpoint, run_folder
from tests.published_tokenizers import write_t5, write_umt5
from tests.support import small_config

CONFIG = {
  **{"model": {"width": 3}, "steps": 10, "seed": 0, "data": {"workers": 1}},
  **{"clip": {}, "sampling": {}, "preset": "tiny"},
}
DATA = {"clips": 3}


def test_missing_run_says_how_to_get_one(tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match="no trained model.*d4s_jax.train"):
    run_folder.read_config(tmp_path / "nowhere")
  run_folder.write_config(tmp_path, CONFIG, DATA)
  with pytest.raises(checkpoint.CheckpointError, match="no checkpoints yet"):
    checkpoint.read_model(tmp_path, {})


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
  run_folder.write_config(tmp_path, CONFIG, DATA)
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

  def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(run_folder.atomic.os, "fsync", full)
  with pytest.raises(OSError, match="No space left"):
    run_folder.write_config(tmp_path, {**CONFIG, "steps": 20}, DATA)
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_broken_config_is_refused(tmp_path):
  (tmp_path / "config.json").write_text('{"model": ')
  with pytest.raises(checkpoint.CheckpointError, match="not valid JSON"):
    run_folder.read_config(tmp_path)


def test_resuming_with_another_configuration_lists_the_differences(tmp_path):
  run_folder.write_config(tmp_path, {**CONFIG, "seed": 1}, DATA)
  run_folder.write_config(tmp_path, CONFIG, DATA)  # nothing was trained: the folder is free
  (tmp_path / "checkpoints" / "5").mkdir(parents=True)
  run_folder.write_config(tmp_path, {**CONFIG, "steps": 20, "data": {"workers": 0}}, DATA)
  with pytest.raises(checkpoint.CheckpointError, match="model.width: saved 3, now 4.*--workdir"):
    run_folder.write_config(tmp_path, {**CONFIG, "model": {"width": 4}}, DATA)
  assert json.loads((tmp_path / "config.json").read_text())["model"] == {"width": 3}


def refusal(folder, saved, now):
  """What a run that began with `saved` says to `now`."""
  run_folder.write_config(folder, saved.to_dict(), DATA)
  (folder / "checkpoints" / "5").mkdir(parents=True)
  with pytest.raises(checkpoint.CheckpointError) as error:
    run_folder.write_config(folder, now.to_dict(), DATA)
  return str(error.value)


def test_the_refusal_of_an_old_default_gives_its_flag(tmp_path):
  saved, now = base("tiny"), base("tiny")
  saved.data.augment.stride = 4
  told = refusal(tmp_path, saved, now)
  assert "data.augment.stride: saved 4, now 0" in told
  assert "To resume it give --config.data.augment.stride=4;" in told


def other(value):
  """A value of the same type that is none of the schema's."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, (int, float)):
    return value + 3
  # With what shells and parsers stumble over.
  return (*value, "a'b", (1, 0.5)) if isinstance(value, tuple) else f'{value} "it\'s" $x'


@pytest.mark.parametrize("preset", ["tiny", "wan1.3b"])
def test_flags_of_a_refusal_bring_back_every_key(preset, tmp_path, monkeypatch):
  saved, now = base(preset), base(preset)
  keys = []
  for key, value in identity.leaves(now.to_dict()).items():
    # Presets differ in more than a name, and None is of no type.
    if key in ("preset", "stage") or value is None or key.startswith(run_folder.RESUMABLE):
      continue
    *parents, name = key.split(".")
    functools.reduce(getattr, parents, saved)[name] = other(value)
    keys.append(key)
  told = refusal(tmp_path, saved, now)
  flags = shlex.split(told.partition("To resume it give ")[2].partition("; or choose")[0])
  assert len(flags) == len(keys) > 50
  # The parser of `train`, which looks at what the program was called with.
  monkeypatch.setattr("sys.argv", ["train", *flags])
  values = absl.flags.FlagValues()
  config_flags.DEFINE_config_dict("config", now, flag_values=values)
  values(["train", *flags])
  assert now.to_dict() == saved.to_dict()
  run_folder.write_config(tmp_path, now.to_dict(), DATA)


def test_another_stage_or_preset_is_told_by_its_file(tmp_path):
  saved, now = base("wan1.3b"), base("tiny")
  saved.stage = "static"
  told = refusal(tmp_path, saved, now)
  assert "preset: saved 'wan1.3b', now 'tiny'; stage: saved 'static', now 'joint'" in told
  assert "give --config=configs/static.py:wan1.3b;" in told


def test_a_configuration_without_stage_is_to_be_restored(tmp_path):
  saved, now = base("tiny"), base("tiny")
  with saved.unlocked():
    del saved.stage
  told = refusal(tmp_path, saved, now)
  assert "(stage: saved None, now 'joint'). To resume it restore its config.json" in told
  assert "names no stage" in told and "configs/" not in told


def test_keys_that_only_one_version_knows_are_told_as_that(tmp_path):
  saved, now = base("tiny"), base("tiny")
  with saved.unlocked():
    saved.spikes = 3
  saved.seed = 4
  told = refusal(tmp_path, saved, now)
  assert "spikes: saved 3, now None" in told
  assert "give --config.seed=4 and the version of d4s_jax that began it" in told


def test_data_may_be_moved_but_not_replaced(tmp_path):
  def config(source):
    return {**CONFIG, "data": {"source": source}}

  run_folder.write_config(tmp_path, config("synthetic,shards:a"), DATA)
  (tmp_path / "checkpoints" / "5").mkdir(parents=True)
  run_folder.write_config(tmp_path, config("synthetic,shards:elsewhere/b"), DATA)
  with pytest.raises(
    checkpoint.CheckpointError, match="data.source: saved .synthetic,shards."
  ) as x:
    run_folder.write_config(tmp_path, config("synthetic,tartanair:c"), DATA)
  assert "--config.data.source=synthetic,shards:elsewhere/b;" in str(x.value)
  with pytest.raises(checkpoint.CheckpointError) as x:
    run_folder.write_config(tmp_path, config("synthetic,shards:a"), {"clips": 4})
  assert "trained on other data (clips: saved 3, now 4)" in str(x.value)
  assert f"delete {tmp_path / 'data.json'}" in str(x.value)
  with pytest.raises(checkpoint.CheckpointError, match="clips: saved 3, now 4"):
    run_folder.check_data(tmp_path, {"clips": 4})  # as a host that reads others would
  run_folder.check_data(tmp_path, DATA)


def test_a_run_that_does_not_say_what_it_was_trained_on_is_told_of(tmp_path, capsys):
  run_folder.write_config(tmp_path, CONFIG, DATA)
  (tmp_path / "checkpoints" / "5").mkdir(parents=True)
  (tmp_path / "data.json").write_text('{"clips"')
  with pytest.raises(checkpoint.CheckpointError, match="data.json is not valid JSON.*delete it"):
    run_folder.write_config(tmp_path, CONFIG, DATA)
  (tmp_path / "data.json").unlink()
  assert not capsys.readouterr().out
  run_folder.write_config(tmp_path, CONFIG, {"clips": 4})
  assert "WARNING" in capsys.readouterr().out
  with pytest.raises(checkpoint.CheckpointError, match="clips: saved 4, now 3"):
    run_folder.write_config(tmp_path, CONFIG, DATA)


@pytest.fixture
def folder(tmp_path):
  return write_umt5(tmp_path / "converted" / "tokenizer")


def start(run, folder):
  """What a run does about its tokenizer before its first step."""
  config = small_config()
  config.model.backbone.tokenizer = str(folder)
  files = run_folder.read_tokenizer(run, config.model.to_dict())
  run_folder.write_config(run, config.to_dict(), DATA)
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
