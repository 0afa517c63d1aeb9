"""A state goes from any mesh to any other, bit for bit, and training goes on there."""

import pathlib
import subprocess
import sys

import pytest

from tests.support import on_devices

ROOT = pathlib.Path(__file__).parents[2]

STORED = """
import dataclasses, pathlib, sys
import flax.linen as nn
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, initialize, sharding, state
from d4s_jax.training.emergency import Copies
from d4s_jax.training.sums import sums
from tests.support import random_params, small_config, write_run

folder = pathlib.Path(sys.argv[1])
params = {"ldrm": {"kernel": jax.random.normal(jax.random.key(0), (16, 24))}, "fixed": jnp.ones(8)}
now = state.create(params, ("^ldrm/",), optax.adam(1e-3))
numbers = sums(now)

def placed(devices, spec):
  mesh = jax.make_mesh(
    (devices,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
  )
  return jax.tree.map(
    lambda x: jax.device_put(x, NamedSharding(mesh, spec if x.ndim == 2 else PartitionSpec())), now
  )

rows, columns = PartitionSpec("fsdp"), PartitionSpec(None, "fsdp")
meshes = (8, rows), (4, columns), (2, rows), (1, rows), (8, columns)
for step, (devices, spec) in enumerate(meshes):
  like = placed(devices, spec)
  assert sums(like) == numbers
  if step:
    before = now
    now = checkpoint.read_state(folder, step - 1, like)
    assert int(now.step) == step - 1
    jax.tree.map(np.testing.assert_array_equal, now, before)
    assert now.trainable["ldrm/kernel"].sharding == like.trainable["ldrm/kernel"].sharding
  now = dataclasses.replace(
    now, step=now.step * 0 + step, trainable=jax.tree.map(lambda x: x + step, now.trainable)
  )
  saved = checkpoint.Checkpoints(folder, keep=9)
  saved.save(now)
  saved.close()
  numbers = sums(now)
  # Emergency copies are of one mesh.
  copies = Copies(str(folder / "local"), "run")
  copies.save(now)
  copies.wait()
  jax.tree.map(np.testing.assert_array_equal, copies.read(step, now), now)
  try:
    copies.read(step, placed(2 if devices > 2 else 4, rows))
    raise AssertionError("read on another mesh")
  except checkpoint.DamagedError as error:
    assert "otherwise on this mesh" in str(error), error

# A run on all devices that begins with what one of one device left.
config = small_config()
system = System.build(config.model.to_dict())
params = random_params(system)
write_run(folder / "earlier", config, params)
config.init.update({name: str(folder / "earlier") for name in params})
mesh = sharding.make_mesh(4)
with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
  patterns, optimizer = ("^ldrm/",), optax.sgd(1.0)
  like = initialize.abstract_state(system, patterns, optimizer, mesh)
  now = initialize.create_state(system, config, patterns, optimizer, like)
jax.tree.map(np.testing.assert_array_equal, state.averaged_params(now), params)
assert sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(now)) > 20
"""

TRAINED = """
import pathlib, sys
import flax.linen as nn
import jax, numpy as np, optax
from d4s_jax.data.source import SOURCES
from d4s_jax.data.transforms import with_tokens
from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, initialize, objectives, sharding, state
from d4s_jax.training.optimizer import make_optimizer
from d4s_jax.training.stages import stage
from d4s_jax.training.step import make_step
from d4s_jax.training.sums import by_path
from tests.support import random_params, small_config

folder, start, fsdp = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
config = small_config()
system = System.build(config.model.to_dict())
source = SOURCES["synthetic"](frames=5, height=16, width=16, views=2)
clips = [with_tokens(source.read(i), system.backbone.tokenizer) for i in range(8)]
chosen = stage("diffusion")
optimizer = make_optimizer(steps=10, **config.optimizer.to_dict())
step = make_step(
  objectives.make_objective(system, chosen, objectives.Settings(**config.loss.to_dict())),
  optimizer, seed=0, average_decay=0.9,
)
mesh = sharding.make_mesh(fsdp)
with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
  like = initialize.abstract_state(system, chosen.trainable, optimizer, mesh)
  if start:
    now = checkpoint.read_state(folder, start, like)
    with np.load(folder / "state.npz") as before:
      assert len(before.files) == len(by_path(now))
      for path, x in by_path(now).items():
        np.testing.assert_array_equal(np.asarray(x), before[path], path)
  else:
    now = state.create(random_params(system), chosen.trainable, optimizer)
    now = jax.device_put(now, sharding.of(like))
  cut = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(now))
  assert (cut > 20) == (fsdp > 1), cut
  batch = jax.tree.map(lambda *x: np.stack(x), *clips)
  now, metrics = jax.jit(step, out_shardings=(sharding.of(like), None))(
    now, sharding.to_device(batch, mesh, 8)
  )
  saved = checkpoint.Checkpoints(folder, keep=9)
  saved.save(now)
  saved.close()
np.savez(folder / "state.npz", **{path: np.asarray(x) for path, x in by_path(now).items()})
print("loss", float(metrics["loss"]))
"""


def run(script, devices, *arguments):
  done = subprocess.run(
    [sys.executable, "-c", script, *map(str, arguments)],
    env=on_devices(devices),
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def test_a_state_is_the_same_on_8_4_2_1_and_8_devices(tmp_path):
  run(STORED, 8, tmp_path)


@pytest.mark.slow
def test_training_goes_on_on_8_4_2_1_and_8_devices(tmp_path):
  losses = []
  for start, (devices, fsdp) in enumerate(((8, 4), (4, 2), (2, 2), (1, 1), (8, 8))):
    said = run(TRAINED, devices, tmp_path, start, fsdp)
    losses.append(float(said.split("loss ")[1]))
  assert len(set(losses)) == 5
