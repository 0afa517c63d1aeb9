"""Milliseconds of `render`, forward and with gradients, and ratios to gsplat's torch functions.

python tests/benchmarks/render.py

The peers run one clip's six views; the training call has a batch of four clips, and the parts of
the tiled renderer are timed one by one. Wall time is what a user waits for, CPU time is less
disturbed by other work on the machine; both are medians.
"""

import functools
import os
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.geometry import harmonics  # noqa: E402
from d4s_jax.render import binning, projection, render  # noqa: E402
from d4s_jax.types import Cameras, Gaussians  # noqa: E402

_SIZE, _VIEWS = 64, 6
_REPEATS = 5


def scene(batch: int, count: int, seed: int = 0) -> tuple[Gaussians, Cameras]:
  """Gaussians [b 1 n] with deviations around one pixel and opacities of 0.1 to 0.5; cameras."""
  random = np.random.default_rng(seed)
  focal = 0.9 * _SIZE
  z = random.uniform(2, 6, (batch, 1, count))
  x, y = (random.uniform(-_SIZE / 2, _SIZE / 2, z.shape) * z / focal for _ in range(2))
  scales = (z / focal)[..., None] * np.exp(random.uniform(-0.3, 0.3, (*z.shape, 3)))
  gaussians = Gaussians(
    means=jnp.asarray(np.stack([x, y, z], -1), jnp.float32),
    quaternions=jnp.asarray(random.normal(size=(*z.shape, 4)), jnp.float32),
    scales=jnp.asarray(scales, jnp.float32),
    opacities=jnp.asarray(random.uniform(0.1, 0.5, z.shape), jnp.float32),
    harmonics=harmonics.from_rgb(jnp.asarray(random.uniform(size=(*z.shape, 3)), jnp.float32)),
  )
  poses = np.tile(np.eye(4), (batch, _VIEWS, 1, 1))
  poses[..., :3, 3] = random.uniform(-0.4, 0.4, (batch, _VIEWS, 3))
  lens = np.asarray([[focal, 0, _SIZE / 2], [0, focal, _SIZE / 2], [0, 0, 1]])
  cameras = Cameras(
    world_from_camera=jnp.asarray(poses, jnp.float32),
    intrinsics=jnp.asarray(np.tile(lens, (batch, _VIEWS, 1, 1)), jnp.float32),
    height=_SIZE,
    width=_SIZE,
  )
  return gaussians, cameras


def measure(call) -> tuple[float, float]:
  """Median wall and CPU milliseconds of a call, after one to compile."""
  call()
  wall, cpu = [], []
  for _ in range(_REPEATS):
    start = time.perf_counter(), time.process_time()
    call()
    wall.append(time.perf_counter() - start[0])
    cpu.append(time.process_time() - start[1])
  return 1e3 * statistics.median(wall), 1e3 * statistics.median(cpu)


def jitted(function, *arguments):
  """A call that compiles on its first use and waits for its results."""
  compiled = jax.jit(function)
  return lambda: jax.block_until_ready(compiled(*arguments))


def forward(gaussians, cameras, backend):
  """One drawing."""
  return render(gaussians, cameras, backend=backend)


def gradients(gaussians, cameras, backend):
  """A drawing and the gradients to the Gaussians of a sum over all its layers."""

  def loss(gaussians):
    drawn = render(gaussians, cameras, backend=backend)
    return jnp.sum(drawn.image) + jnp.sum(drawn.depth) + jnp.sum(drawn.alpha)

  return jax.value_and_grad(loss)(gaussians)


def torch_calls(gaussians, cameras):
  """The same two calls of gsplat's torch functions, in float32."""
  import torch

  from tests.render import gsplat_oracle

  one = jax.tree.map(lambda x: x[0, 0], gaussians)
  views = cameras[0]
  shape = (_VIEWS, _SIZE, _SIZE)
  ones = [np.ones(s, np.float32) for s in ((*shape, 3), shape, shape)]
  oracle = functools.partial(
    gsplat_oracle.value_and_gradients, one, views, (0.0, 0.0, 0.0), dtype=torch.float32
  )
  return {"forward": lambda: oracle(None), "with gradients": lambda: oracle(ones)}


def report(label: str, wall: float, cpu: float, note: str = ""):
  """One line of the table."""
  print(f"{label:44s}{wall:9.1f} ms wall{cpu:9.1f} ms CPU  {note}", flush=True)


def peers():
  """One clip: each backend and gsplat's torch functions, and how much faster than those."""
  gaussians, cameras = scene(batch=1, count=4096)
  print(f"\n1 clip, {_VIEWS} views of {_SIZE} x {_SIZE}, 4096 Gaussians")
  calls = torch_calls(gaussians, cameras)
  for name, function in (("forward", forward), ("with gradients", gradients)):
    torch_wall, torch_cpu = measure(calls[name])
    report(f"gsplat torch, {name}", torch_wall, torch_cpu)
    for backend in ("reference", "tiled"):
      draw = functools.partial(function, backend=backend)
      wall, cpu = measure(jitted(draw, gaussians, cameras))
      ratio = f"{torch_wall / wall:.2f} x gsplat torch (CPU time {torch_cpu / cpu:.2f} x)"
      report(f"{backend}, {name}", wall, cpu, ratio)


def training_call(count: int):
  """Four clips with the tiled renderer, whole and in parts."""
  gaussians, cameras = scene(batch=4, count=count)
  print(f"\n4 clips, {_VIEWS} views of {_SIZE} x {_SIZE}, {count} Gaussians, tiled")
  for name, function in (("forward", forward), ("with gradients", gradients)):
    draw = functools.partial(function, backend="tiled")
    report(name, *measure(jitted(draw, gaussians, cameras)))
  flat = jax.tree.map(lambda x: repeat(x, "b 1 ... -> (b v) ...", v=_VIEWS), gaussians)
  flat_cameras = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), cameras)
  report("of which projection, forward", *measure(jitted(projection.project, flat, flat_cameras)))
  splats = projection.project(flat, flat_cameras)
  grid = binning.Grid(height=_SIZE, width=_SIZE, tile=8)
  lists = functools.partial(
    binning.tile_lists, grid=grid, capacity=binning.default_capacity(count, grid)
  )
  found = int(jnp.sum(jax.jit(lists)(splats).counts))
  report("of which tile lists", *measure(jitted(lists, splats)), f"{found} intersections")


def main():
  """Prints the table."""
  print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, jax {jax.__version__}")
  peers()
  for count in (4096, 9216):
    training_call(count)


if __name__ == "__main__":
  main()
