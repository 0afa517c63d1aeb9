"""Where a run's clips come from."""

import numpy as np
import pytest

from d4s_jax.training import loop
from d4s_jax.training.stages import stage
from tests.support import small_config


def test_clips_are_kept_in_a_folder_of_their_own_options(tmp_path):
  config = small_config()
  config.data.clips, config.data.cache = 3, str(tmp_path)
  source = loop._source(config, stage("joint"))(split="train")
  assert len(source) == 3
  first = source.read(0)
  assert len(list(tmp_path.glob("*/0000000.npz"))) == 1
  config.data.cache = ""
  true = loop._source(config, stage("joint"))(split="train").read(0)
  np.testing.assert_allclose(first.source.images, true.source.images, atol=0.5 / 255 + 1e-6)
  config.data.cache = str(tmp_path)
  loop._source(config, stage("joint"))(split="heldout").read(0)
  config.clip.targets += 1
  loop._source(config, stage("joint"))(split="train").read(0)
  assert len(list(tmp_path.glob("*/0000000.npz"))) == 3


def test_only_the_autoencoder_takes_a_film(tmp_path):
  config = small_config()
  config.data.source = f"film:{tmp_path}/none.mp4"
  with pytest.raises(ValueError, match="knows neither cameras nor depth"):
    loop._source(config, stage("joint"))(split="train")
  with pytest.raises(FileNotFoundError, match="No film at"):
    loop._source(config, stage("autoencoder"))(split="train")
