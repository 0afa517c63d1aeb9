"""A run that trains adapters: what moves, what is kept, and where it goes on."""

import functools
import shutil

import jax
import numpy as np
import optax
import pytest

from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, initialize, loop, sharding, state
from d4s_jax.training.checkpoint import CheckpointError
from d4s_jax.training.stages import trained
from tests.support import lora_config, random_params, run_command, write_run


@pytest.fixture(scope="module", autouse=True)
def quickly(tmp_path_factory):
  """What is compiled twice is compiled once, and the usual system isn't initialised again."""
  usual, init = System.build(lora_config().model.to_dict()), System.init
  params, before = random_params(usual), jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
  jax.config.update("jax_enable_compilation_cache", True)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(System, "init", lambda x, key: params if x == usual else init(x, key))
    yield
  jax.config.update("jax_compilation_cache_dir", before)
  jax.config.update("jax_enable_compilation_cache", False)


def prepare(config, make=initialize.create_state):
  """The state at step 0."""
  system = System.build(config.model.to_dict())
  mesh = sharding.make_mesh()
  patterns, optimizer = ("^adapter/",) if config.model.lora.rank else ("^ldrm/",), optax.sgd(1.0)
  with jax.set_mesh(mesh):
    like = initialize.abstract_state(system, patterns, optimizer, mesh, config.frozen_dtype)
    return make(system, config, patterns, optimizer, like)


def abstract(config):
  return prepare(config, make=lambda *arguments: arguments[-1])


def train(folder, **changes):
  config = lora_config()
  config.update_from_flattened_dict(changes)
  with pytest.MonkeyPatch.context() as patch:
    # Charts and films take longer than the steps.
    patch.setattr(loop, "write_report", lambda *args: None)
    loop.run(config, folder)


def read(folder):
  system = System.build(lora_config().model.to_dict())
  return state.flatten(checkpoint.read_model(folder, system.abstract())[0])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A run of four steps, and a copy as if it had been killed after the second."""
  folder = tmp_path_factory.mktemp("adapters")
  train(folder / "whole")
  shutil.copytree(folder / "whole", folder / "killed")
  shutil.rmtree(folder / "killed" / "checkpoints" / "4")
  return folder


def check_moved(folder, *parts):
  """Something in each part moved between the checkpoints, and nothing elsewhere."""
  before, after = read(folder / "killed"), read(folder / "whole")
  moved = {path for path, x in after.items() if not np.array_equal(x, before[path])}
  assert all(path.startswith(parts) for path in moved)
  assert all(any(path.startswith(part) for path in moved) for part in parts)


def test_adapters_and_cameras_move_and_the_base_stays(runs):
  check_moved(runs, "adapter/", "transformer/camera/")


def test_a_killed_run_ends_with_the_same_bits(runs, tmp_path):
  shutil.copytree(runs / "killed", tmp_path / "run")
  train(tmp_path / "run")
  expected = read(runs / "whole")
  for path, value in read(tmp_path / "run").items():
    np.testing.assert_array_equal(value, expected[path], err_msg=path)


@pytest.mark.slow
def test_in_the_joint_stage_too(tmp_path):
  # LPIPS needs 31 pixels.
  train(tmp_path / "whole", **{"stage": "joint", "clip.height": 32, "clip.width": 32})
  shutil.copytree(tmp_path / "whole", tmp_path / "killed")
  shutil.rmtree(tmp_path / "killed" / "checkpoints" / "4")
  check_moved(tmp_path, "adapter/", "transformer/camera/", "ldrm/")


def test_frozen_kernels_take_half_the_memory_and_no_moments():
  config = lora_config()
  now = abstract(config)
  assert now.trainable.keys() == now.average.keys() and len(now.trainable) == 20
  large = [path for path in now.frozen if path.endswith(("/kernel", "/embedding"))]
  assert len(large) > 20 and {now.frozen[path].dtype for path in large} == {np.dtype("bfloat16")}
  rest = [x.dtype for path, x in now.frozen.items() if path not in large]
  assert rest and {*rest, *(x.dtype for x in now.trainable.values())} == {np.dtype("float32")}
  config.frozen_dtype = "int8"
  with pytest.raises(ValueError, match="frozen_dtype is 'int8'"):
    abstract(config)


@pytest.fixture(scope="module")
def origins(tmp_path_factory):
  """The folder of a run, the folder of its adapter after two conversions, and its parameters."""
  folder = tmp_path_factory.mktemp("origins")
  config = lora_config()
  params = random_params(System.build(config.model.to_dict()), seed=3)
  write_run(folder / "run", config, params)
  convert = functools.partial(run_command, "convert")
  convert(f"--from={folder}/run", f"--to={folder}/torch", "--format=torch")
  convert(f"--from={folder}/torch/adapter", f"--to={folder}/flax", "--format=flax")
  return folder, params


@pytest.mark.parametrize("origin", ["run", "flax"])
def test_a_run_starts_from_the_adapter_of_a_run_or_a_converted_one(origin, origins):
  folder, params = origins
  config = lora_config()
  config.init.adapter = str(folder / origin)
  ours = state.averaged_params(prepare(config))["adapter"]
  jax.tree.map(np.testing.assert_array_equal, ours, params["adapter"])
  config.model.lora.scale = 0.25
  with pytest.raises(CheckpointError, match="scale.* 0.5 there, 0.25 here"):
    prepare(config)


def test_other_layers_and_none_at_all_are_refused(origins):
  config = lora_config()
  config.init.adapter = str(origins[0] / "flax")
  config.model.lora.targets = ("mlp_in$",)
  with pytest.raises(CheckpointError, match="blocks/cross_attention/key/down.*None here"):
    prepare(config)
  config.model.lora.rank = 0
  with pytest.raises(CheckpointError, match="init.adapter is .* set model.lora.rank"):
    initialize.check_weights(System.build(config.model.to_dict()), config)


def test_the_transformer_stands_for_its_adapters():
  stages = ("^transformer/", "^ldrm/")
  assert trained(stages, adapted=False) == stages
  assert trained(stages, adapted=True) == ("^adapter/", "^transformer/camera/", "^ldrm/")
