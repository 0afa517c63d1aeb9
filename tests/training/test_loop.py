"""Where a run's clips come from."""

import numpy as np
import pytest

from d4s_jax.data.loader import make_loader
from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, loop, run_folder
from d4s_jax.training.stages import stage
from tests.data.records import plain_record, write_folder
from tests.support import small_config


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
