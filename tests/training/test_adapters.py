"""A run that trains adapters: what moves, what is kept, and where it goes on."""

import jax
import numpy as np
import optax
import pytest

from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, initialize, loop, sharding, state
from d4s_jax.training.checkpoint import CheckpointError
from d4s_jax.training.stages import trained
from tests.support import lora_config, random_params, run_command, write_run


def create(config, patterns=("^adapter/",)):
  system = System.build(config.model.to_dict())
  mesh = sharding.make_mesh()
  with jax.set_mesh(mesh):
    optimizer = optax.sgd(1.0)
    like = initialize.abstract_state(system, patterns, optimizer, mesh, config.frozen_dtype)
    return initialize.create_state(system, config, patterns, optimizer, like)


def train(folder, **changes):
  config = lora_config()
  config.update_from_flattened_dict(changes)
  with pytest.MonkeyPatch.context() as patch:
    # Charts and films take longer than the steps.
    patch.setattr(loop, "write_report", lambda *args: None)
    loop.run(config, folder)
  system = System.build(config.model.to_dict())
  return state.flatten(checkpoint.read_model(folder, system.abstract())[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run of four steps, and where it began."""
  folder = tmp_path_factory.mktemp("adapters") / "run"
  after = train(folder)
  before = create(lora_config(), trained(("^transformer/", "^ldrm/"), adapted=True))
  return folder, before, after


def test_adapters_cameras_and_ldrm_move_and_the_base_stays(whole):
  _, before, after = whole
  assert before.trainable.keys() == before.average.keys()
  start = before.trainable | before.frozen
  for path, value in after.items():
    moved = not np.array_equal(value, np.asarray(start[path], np.float32))
    assert not moved or path in before.trainable, path
  starts = ("adapter/", "transformer/camera/", "ldrm/")
  assert all(path.startswith(starts) for path in before.trainable)
  for part in starts:
    assert any(
      not np.array_equal(after[path], x)
      for path, x in before.trainable.items()
      if path.startswith(part)
    ), part


def test_frozen_kernels_are_kept_in_half_the_memory(whole):
  _, before, _ = whole
  kinds = {
    path: x.dtype for path, x in before.frozen.items() if path.endswith(("/kernel", "/embedding"))
  }
  assert set(kinds.values()) == {np.dtype("bfloat16")} and len(kinds) > 20
  rest = [x.dtype for path, x in before.frozen.items() if path not in kinds]
  assert rest and {*rest, *(x.dtype for x in before.trainable.values())} == {np.dtype("float32")}
  config = lora_config()
  config.frozen_dtype = "int8"
  with pytest.raises(ValueError, match="frozen_dtype is 'int8'"):
    create(config)


def test_an_interrupted_run_ends_with_the_same_bits(whole, tmp_path):
  _, _, expected = whole
  train(tmp_path / "run", steps=4, **{"checkpoint.every": 2})
  # As if it had been killed after the second step.
  newest = tmp_path / "run" / "checkpoints" / "4"
  assert newest.is_dir()
  for path in sorted(newest.rglob("*"), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  newest.rmdir()
  again = train(tmp_path / "run")
  for path, value in expected.items():
    np.testing.assert_array_equal(again[path], value, err_msg=path)


def test_a_run_starts_from_the_adapter_of_a_run_or_a_converted_one(tmp_path):
  config = lora_config()
  system = System.build(config.model.to_dict())
  params = random_params(system, seed=3)
  write_run(tmp_path / "run", config, params)
  run_command("convert", f"--from={tmp_path}/run", f"--to={tmp_path}/torch", "--format=torch")
  source = tmp_path / "torch" / "adapter"
  run_command("convert", f"--from={source}", f"--to={tmp_path}/flax", "--format=flax")
  for origin in ("run", "flax"):
    config.init.adapter = str(tmp_path / origin)
    ours = state.averaged_params(create(config))["adapter"]
    jax.tree.map(np.testing.assert_array_equal, ours, params["adapter"])
    for key, value, message in (
      ("model.lora.scale", 0.25, "scale.* 0.5 there, 0.25 here"),
      ("model.lora.rank", 3, "blocks/cross_attention/key/down"),
      ("model.lora.targets", ("mlp_in$",), "blocks/cross_attention/key/down.*None here"),
      ("model.lora.rank", 0, "init.adapter is .* set model.lora.rank"),
    ):
      other = config.copy_and_resolve_references()
      with other.unlocked(), other.ignore_type():
        other.update_from_flattened_dict({key: value})
      with pytest.raises(CheckpointError, match=message):
        create(other, patterns=("^ldrm/",))


def test_the_transformer_stands_for_its_adapters():
  stages = ("^transformer/", "^ldrm/")
  assert trained(stages, adapted=False) == stages
  assert trained(stages, adapted=True) == ("^adapter/", "^transformer/camera/", "^ldrm/")
