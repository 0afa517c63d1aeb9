"""Where a run's clips come from, and where a signal stops it."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.data.loader import make_loader
from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, loop, run_folder, sharding, state, validation
from d4s_jax.training.log import read_metrics
from d4s_jax.training.stages import stage
from tests.data.records import plain_record, write_folder
from tests.support import random_params, small_config


def clips(config, name="joint"):
  """The training clips of a stage, of the one shape that there is."""
  system = System.build(config.model.to_dict())
  buckets = loop._training(config, stage(name), system)
  assert buckets.shares == [1.0]
  return buckets.sources[0]


def test_clips_are_kept_in_a_folder_of_their_own_options(tmp_path):
  config = small_config()
  config.data.clips, config.data.cache = 3, str(tmp_path)
  source = clips(config)
  assert len(source) == 3
  first = source.read(0)
  assert len(list(tmp_path.glob("*/0000000.npz"))) == 1
  config.data.cache = ""
  true = clips(config).read(0)
  np.testing.assert_allclose(first.source.images, true.source.images, atol=0.5 / 255 + 1e-6)
  config.data.cache = str(tmp_path)
  loop._heldout(config, stage("joint")).read(0)
  config.clip.targets += 1
  clips(config).read(0)
  assert len(list(tmp_path.glob("*/0000000.npz"))) == 3


def test_only_the_autoencoder_takes_a_film(tmp_path):
  config = small_config()
  config.data.source = f"film:{tmp_path}/none.mp4"
  with pytest.raises(ValueError, match="knows neither cameras nor depth"):
    clips(config)
  with pytest.raises(FileNotFoundError, match="No film at"):
    clips(config, "autoencoder")


@pytest.mark.slow
def test_a_run_on_shards_trains_on_several_shapes(tmp_path):
  """Three steps on records of two aspects: each step compiles for the shape that it meets."""
  records = [plain_record(f"a/{x}", 9, 16, 16 * (1 + x % 2)) for x in range(8)]
  write_folder(tmp_path / "shards", records, heldout=("a/0", "a/2"))
  config = small_config()
  config.stage, config.steps, config.optimizer.warmup = "diffusion", 3, 1
  config.heldout.batches, config.heldout.every = 1, 3
  config.checkpoint.every = 3
  with config.ignore_type():
    config.data.source = f"shards:{tmp_path}/shards"
    config.data.buckets = ("5x16x16", "5x16x32")
  assert loop.run(config, tmp_path / "run")
  # It goes on with the same shards elsewhere, and with no others of that name.
  (tmp_path / "shards").rename(tmp_path / "moved")
  write_folder(tmp_path / "shards", records[:6], heldout=("a/0", "a/2"))
  config.steps = 4
  with pytest.raises(checkpoint.CheckpointError, match="trained on other data"):
    loop.run(config, tmp_path / "run")
  config.data.source = f"shards:{tmp_path}/moved"
  assert loop.run(config, tmp_path / "run")


def test_a_run_does_not_go_on_with_other_shards(tmp_path):
  """Refused before its checkpoint, here an empty one, is looked at."""
  records = [plain_record(f"a/{x}", 9, 16, 16) for x in range(6)]
  write_folder(tmp_path / "shards", records, heldout=("a/0",))
  config = small_config()
  config.stage, config.optimizer.warmup, config.heldout.batches = "diffusion", 1, 1
  config.data.source = f"shards:{tmp_path}/shards"
  system = System.build(config.model.to_dict())
  training = loop._training(config, stage("diffusion"), system)
  with make_loader(
    training, system.tokenize, batch_size=config.batch_size, seed=config.seed
  ) as batches:
    run_folder.write_config(tmp_path / "run", config.to_dict(), batches.data)
  (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
  (tmp_path / "shards").rename(tmp_path / "moved")
  write_folder(tmp_path / "shards", records[:5], heldout=("a/0",))
  with pytest.raises(checkpoint.CheckpointError) as error:
    loop.run(config, tmp_path / "run")
  assert "other data (shape 0.source 0.clips: saved 5, now 4" in str(error.value)
  config.data.source = f"shards:{tmp_path}/moved"
  with pytest.raises(checkpoint.CheckpointError, match="Nothing that was saved"):
    loop.run(config, tmp_path / "run")


def test_a_shape_that_is_none_is_refused():
  config = small_config()
  config.data.buckets = ("5x16",)
  with pytest.raises(ValueError, match="Shape '5x16'; expected frames, height and width"):
    clips(config)
  config.data.buckets = ("6x16x16",)
  with pytest.raises(ValueError, match="frames 6"):
    clips(config)


class Nothing:
  """An update that trains nothing, at once."""

  def eval_shape(self, *arguments):
    """Fits."""

  def __call__(self, now, batch, lpips):
    metrics = {"finite": True, "loss": 0.0, "gradient_norm": 0.0, "skipped": False}
    return dataclasses.replace(now, step=now.step + 1), jax.tree.map(jnp.asarray, metrics)


@pytest.mark.parametrize(
  "at, batch",
  [
    (2, 1),
    (2, 3),
    pytest.param(0, 1, marks=pytest.mark.slow),
    pytest.param(4, 1, marks=pytest.mark.slow),
  ],
)
def test_a_signal_waits_for_the_heldout_batch_at_hand_alone(at, batch, monkeypatch, tmp_path):
  """Before the first step, between two, after the last: SIGTERM comes in a batch of a look at 3.

  Scores that were given up are made when the run goes on; those of the last batch are kept. Nothing
  is trained, drawn or scored.
  """
  monkeypatch.setattr(loop, "make_update", lambda *arguments: Nothing())
  monkeypatch.setattr(loop, "write_report", lambda *arguments: None)
  monkeypatch.setattr(validation, "_SCORES", {"diffusion": lambda *inputs: {"one": jnp.ones(())}})

  def create(system, config, patterns, optimizer, like):
    params = random_params(system)
    return jax.device_put(state.create(params, patterns, optimizer), sharding.of(like))

  monkeypatch.setattr(loop.initialize, "create_state", create)
  looks = []

  def look(self):
    looks.append(0)
    clip = self.example()
    for _ in range(3):
      looks[-1] += 1
      if len(looks) == 1 + at // 2 and looks[-1] == batch:
        os.kill(os.getpid(), signal.SIGTERM)
      yield clip

  monkeypatch.setattr(validation.HeldOut, "__iter__", look)
  config = small_config()
  config.stage, config.steps, config.batch_size, config.optimizer.warmup = "diffusion", 4, 1, 1
  config.heldout.every, config.heldout.batches, config.checkpoint.every = 2, 3, 100
  assert not loop.run(config, tmp_path)
  assert looks == at // 2 * [3] + [batch]
  assert checkpoint.whole_steps(tmp_path) == [at][: at // 2]
  scored = [row["step"] for row in read_metrics(tmp_path, "heldout")]
  done = at // 2 + (batch == 3)
  assert scored == [0, 2, 4][:done]
  assert loop.run(config, tmp_path)
  assert [row["step"] for row in read_metrics(tmp_path, "heldout")] == [0, 2, 4]
  assert [row["step"] for row in read_metrics(tmp_path, "train")] == [1, 2, 3, 4]
  assert looks == at // 2 * [3] + [batch] + (3 - done) * [3]
