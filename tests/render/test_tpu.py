"""`tiled` compiled for TPUs, without one: that it fits, and that a sharded batch stays sharded.

Needs the TPU compiler: `python -m pip install libtpu`. Takes minutes: XLA is slow to compile sorts.
"""

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from d4s_jax.render import render
from d4s_jax.types import Cameras, Gaussians
from tests.render import scenes

PREAMBLE = """
import sys, flax.linen as nn, jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec as P
from d4s_jax.render import render
from d4s_jax.types import Cameras, Gaussians

def shapes(cut, batch, count):
  def array(*shape):
    return jax.ShapeDtypeStruct((*batch, *shape), jnp.float32, sharding=cut)
  gaussians = Gaussians(means=array(count, 3), quaternions=array(count, 4), scales=array(count, 3),
                        opacities=array(count), harmonics=array(count, 1, 3))
  return gaussians, array(4, 4), array(3, 3)

def loss(height, width, gaussians, poses, lens):
  cameras = Cameras(world_from_camera=poses, intrinsics=lens, height=height, width=width)
  drawn = render(gaussians, cameras, backend="tiled")
  return drawn.image.sum() + drawn.depth.sum() + drawn.alpha.sum()
"""

FITS = """
import functools
topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
one = jax.sharding.SingleDeviceSharding(topology.devices[0])
arguments = shapes(one, (), 50_000)
function = jax.value_and_grad(functools.partial(loss, 480, 720), (0, 1))
compiled = jax.jit(function).lower(*arguments).compile()
memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
print("peak MiB", memory.peak_memory_in_bytes / 2**20)
print("MFLOP, loop bodies counted once", cost["flops"] / 1e6)
"""

SHARDED = """
topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
mesh = topologies.make_mesh(topology, (8,), ("data",))
with jax.set_mesh(mesh), nn.logical_axis_rules((("views", "data"),)):
  gaussians, poses, lens = shapes(NamedSharding(mesh, P("data")), (8,), 512)
  def forward(gaussians, poses, lens):
    cameras = Cameras(world_from_camera=poses, intrinsics=lens, height=64, width=64)
    return render(gaussians, cameras, backend="tiled")
  print(jax.jit(forward).lower(gaussians, poses, lens).compile().as_text())
"""

COLLECTIVES = r"all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def compiled_for_tpu(script: str) -> str:
  pytest.importorskip("libtpu")
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  }
  command = [sys.executable, "-c", PREAMBLE + script]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


@pytest.mark.slow
def test_50k_gaussians_with_gradients_fit(capsys):
  output = compiled_for_tpu(FITS)
  with capsys.disabled():
    print("\n" + output)
  peak = float(re.search(r"peak MiB ([\d.]+)", output)[1])
  # A chip has 16 GiB; 50K x 1350 tiles x 4 bytes alone would be 257 MiB a number.
  assert 10 < peak < 1024


@pytest.mark.slow
def test_a_batch_over_8_chips_needs_no_collective():
  module = compiled_for_tpu(SHARDED)
  assert "fusion" in module
  assert not re.search(COLLECTIVES, module)


def test_it_lowers_for_tpus():
  """The small sibling, which needs no TPU compiler: no operation that TPUs don't have."""
  scene, cameras = scenes.gaussians(coefficients=1), scenes.cameras()

  def loss(scene: Gaussians, cameras: Cameras):
    return jnp.sum(render(scene, cameras, backend="tiled").image)

  exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=["tpu"])(scene, cameras)
  assert exported.platforms == ("tpu",)
  assert "custom_call" not in re.sub(r"custom_call @Sharding", "", exported.mlir_module())


def test_memory_grows_with_splats_and_tiles_not_their_product():
  """Temporary memory of the compiled drawing, forward and backward, on this machine's CPU."""

  def bytes_of(count, side):
    scene, cameras = scenes.gaussians(count, 1), scenes.cameras(1, height=side, width=side)

    def loss(scene):
      return jnp.sum(render(scene, cameras, backend="tiled").image)

    compiled = jax.jit(jax.grad(loss)).lower(scene).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  few, many = functools.partial(bytes_of, 2000), functools.partial(bytes_of, 16000)
  # 64 times as many pairs of splat and tile.
  assert many(1024) < 16 * few(362)
