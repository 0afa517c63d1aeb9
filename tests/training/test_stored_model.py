"""Parameters of a run, read one by one."""

import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, state
from d4s_jax.training.stored_model import StoredModel
from d4s_jax.training.sums import share, sums
from tests.support import random_params, small_config, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder, config = tmp_path_factory.mktemp("run"), small_config()
  system = System.build(config.model.to_dict())
  params = random_params(system)
  write_run(folder, config, params)
  return folder, system, {path: np.asarray(x) for path, x in state.flatten(params).items()}


def test_all_parameters_are_read_whole_and_in_rows(run):
  folder, system, params = run
  stored = StoredModel(folder, system.abstract())
  assert {path: x.shape for path, x in stored.specs.items()} == {
    path: x.shape for path, x in params.items()
  }
  for path, value in params.items():
    np.testing.assert_array_equal(stored.read(path), value)
  path = "transformer/blocks/mlp_in/kernel"
  # Their number is checked already; it may be read again.
  for row in (1, 0, 1):
    np.testing.assert_array_equal(stored.read(path, row), params[path][row])


def test_changed_bits_are_told_when_the_last_row_was_read(run, tmp_path):
  folder, system, _ = run
  stored, path = StoredModel(folder, system.abstract()), "transformer/blocks/mlp_in/kernel"
  stored._sums[path] ^= 1
  stored.read(path, 1)
  with pytest.raises(checkpoint.DamagedError, match=f"{path} is not what was written"):
    stored.read(path, 0)
  with pytest.raises(checkpoint.CheckpointError, match="another configuration"):
    StoredModel(folder, {"ldrm": system.abstract()["ldrm"]})
  with pytest.raises(checkpoint.CheckpointError, match="no checkpoints yet"):
    StoredModel(tmp_path, system.abstract())


def test_large_stacks_lie_block_by_block(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, "_LARGE", 1000)
  config = small_config()
  system = System.build(config.model.to_dict())
  params = random_params(system)
  write_run(tmp_path, config, params)
  place = checkpoint.step_place(tmp_path, 7)
  with checkpoint.reading(place) as reader:
    arrays = checkpoint.stored_arrays(reader, place, "model")
  assert arrays["transformer/blocks/mlp_in/kernel"].storage.chunk_shape == (1, 32, 32)
  assert arrays["text_encoder/embedding"].storage.chunk_shape == (384, 16)
  found, _ = checkpoint.read_model(tmp_path, system.abstract())
  stored = StoredModel(tmp_path, system.abstract())
  for path, value in state.flatten(params).items():
    np.testing.assert_array_equal(state.flatten(found)[path], value)
    rows = range(value.shape[0]) if value.ndim > 2 else []
    for row in rows:
      np.testing.assert_array_equal(stored.read(path, row), value[row])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_shares_add_up_to_the_sum(dtype, monkeypatch):
  monkeypatch.setattr("d4s_jax.training.sums._PIECE", 7)
  values = np.random.default_rng(0).normal(0, 50, (5, 3, 4)).astype(np.float32)
  values = np.asarray(jnp.asarray(values).astype(dtype))
  shares = [share(row, 12 * i) for i, row in enumerate(values)]
  assert sum(shares) % 2**32 == share(values, 0) == sums({"x": values})["x"]
  # The order counts.
  assert share(values[::-1].copy(), 0) != share(values, 0)
