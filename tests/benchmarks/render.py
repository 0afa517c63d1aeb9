"""The renderer's backends against gsplat's torch functions: milliseconds and ratios, one run.

python tests/benchmarks/render.py            # 50K Gaussians at 480 x 720, the peer included
python tests/benchmarks/render.py --scaling  # the cpu backend from 10K to 1M Gaussians
python tests/benchmarks/render.py --memory   # peak memory of a training step, 8 views at 50K

Scenes are random, splats are 1 to 4 pixels wide (standard deviation). "With gradients" is forward
and backward to all inputs and the pose, projection included. Figures are medians; gsplat's torch
functions run once, with the pair search of tests/render/gsplat_oracle.py in place of a CUDA kernel.
The floor counts the pixels that splats change: 40 instructions forward and 90 backward, of which a
vector of eight pixels needs one each, at 2 instructions a cycle and 3 GHz on each core.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import resource
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.geometry import harmonics, poses  # noqa: E402
from d4s_jax.render import projection, render  # noqa: E402
from d4s_jax.types import Cameras, Gaussians  # noqa: E402

_HEIGHT, _WIDTH, _COUNT = 480, 720, 50_000
_REPEATS = 7


def scene(count: int, views: int = 1, seed: int = 0) -> tuple[Gaussians, Cameras]:
  """Gaussians [n] evenly over the image, 2 to 10 m away, with opacities of 0.1 to 0.95."""
  random = np.random.default_rng(seed)
  focal = 0.5 * _WIDTH / np.tan(np.radians(30))
  z = random.uniform(2, 10, count)
  x = (random.uniform(-0.05, 1.05, count) - 0.5) * _WIDTH * z / focal
  y = (random.uniform(-0.05, 1.05, count) - 0.5) * _HEIGHT * z / focal
  scales = np.exp(random.uniform(0, np.log(4), (count, 3))) * z[:, None] / focal
  gaussians = Gaussians(
    means=jnp.asarray(np.stack([x, y, z], -1), jnp.float32),
    quaternions=jnp.asarray(random.normal(size=(count, 4)), jnp.float32),
    scales=jnp.asarray(scales, jnp.float32),
    opacities=jnp.asarray(random.uniform(0.1, 0.95, count), jnp.float32),
    harmonics=harmonics.from_rgb(jnp.asarray(random.uniform(size=(count, 3)), jnp.float32)),
  )
  eyes = random.uniform(-0.1, 0.1, (views, 3))
  target = np.broadcast_to([0.0, 0.0, 6.0], eyes.shape)
  up = np.broadcast_to([0.0, -1.0, 0.0], eyes.shape)
  lens = [[focal, 0, _WIDTH / 2], [0, focal, _HEIGHT / 2], [0, 0, 1]]
  cameras = Cameras(
    world_from_camera=jnp.asarray(poses.look_at(eyes, target, up), jnp.float32),
    intrinsics=jnp.tile(jnp.asarray(lens, jnp.float32), (views, 1, 1)),
    height=_HEIGHT,
    width=_WIDTH,
  )
  return gaussians, cameras


def intersections(gaussians: Gaussians, cameras: Cameras, tile: int = 16) -> int:
  """Gaussian-tile intersections of the boxes outside which splats are not seen."""
  one = jax.tree.map(lambda x: x[None], gaussians)
  splats = jax.jit(projection.project)(one, cameras[:1])
  low, high = splats.means - splats.extents, splats.means + splats.extents
  size = jnp.asarray([_WIDTH, _HEIGHT]) - 1
  first, last = (jnp.clip(x, 0, size) // tile for x in (low, high))
  return int(jnp.sum(jnp.prod(last - first + 1, -1) * (splats.extents[..., 0] > 0)))


def changed_pixels(gaussians: Gaussians, cameras: Cameras) -> float:
  """Pairs of splat and pixel of which the opacity counts: the areas of the splats' ellipses."""
  one = jax.tree.map(lambda x: x[None], gaussians)
  splats = jax.jit(projection.project)(one, cameras[:1])
  a, b, c = jnp.moveaxis(splats.conics, -1, 0)
  reach = jnp.log(jnp.maximum(splats.opacities, projection.MIN_ALPHA) / projection.MIN_ALPHA)
  return float(jnp.sum(2 * jnp.pi * reach / jnp.sqrt(a * c - b * b)))


def forward(backend: str, gaussians: Gaussians, cameras: Cameras):
  """One drawing."""
  return render(gaussians, cameras, backend=backend)


def gradients(backend: str, gaussians: Gaussians, cameras: Cameras):
  """A drawing, and the gradients to the Gaussians and the poses of a sum over its layers."""

  def loss(gaussians, world_from_camera):
    posed = dataclasses.replace(cameras, world_from_camera=world_from_camera)
    drawn = render(gaussians, posed, backend=backend)
    return jnp.sum(drawn.image) + jnp.sum(drawn.depth) + jnp.sum(drawn.alpha)

  return jax.value_and_grad(loss, argnums=(0, 1))(gaussians, cameras.world_from_camera)


def measure(call, repeats: int = _REPEATS) -> float:
  """Median milliseconds of a call, after one to compile."""
  call()
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    call()
    times.append(time.perf_counter() - start)
  return 1e3 * statistics.median(times)


def jitted(function, *arguments):
  """A call that compiles on its first use and waits for its results."""
  compiled = jax.jit(function)
  return lambda: jax.block_until_ready(compiled(*arguments))


def torch_calls(gaussians: Gaussians, cameras: Cameras):
  """The same two calls of gsplat's torch functions, in float32."""
  import torch

  from tests.render import gsplat_oracle

  torch.set_num_threads(os.cpu_count() or 1)
  shape = (1, _HEIGHT, _WIDTH)
  ones = [np.ones(s, np.float32) for s in ((*shape, 3), shape, shape)]
  oracle = functools.partial(
    gsplat_oracle.value_and_gradients, gaussians, cameras, (0.0, 0.0, 0.0), dtype=torch.float32
  )
  return {"forward": lambda: oracle(None), "with gradients": lambda: oracle(ones)}


def peers():
  """Each backend and gsplat's torch functions, and how much faster than those."""
  gaussians, cameras = scene(_COUNT)
  found = intersections(gaussians, cameras)
  pixels = changed_pixels(gaussians, cameras)
  print(f"{_COUNT} Gaussians, {_HEIGHT} x {_WIDTH}, {found} intersections with 16-pixel tiles")
  floors = [1e3 * pixels * x / (8 * 2 * 3e9 * (os.cpu_count() or 1)) for x in (40, 130)]
  print(
    f"{pixels / 1e6:.1f} M changed pixels; floor {floors[0]:.1f} ms, with gradients {floors[1]:.1f}"
  )
  calls = torch_calls(gaussians, cameras)
  for name, function in (("forward", forward), ("with gradients", gradients)):
    peer = measure(calls[name], repeats=1)
    print(f"{'gsplat torch, ' + name:32s}{peer:9.1f} ms")
    for backend in ("cpu", "tiled"):
      draw = functools.partial(function, backend)
      own = measure(jitted(draw, gaussians, cameras))
      print(f"{backend + ', ' + name:32s}{own:9.1f} ms   {peer / own:6.1f} x gsplat torch")


def scaling():
  """Time and memory of the cpu backend against intersections: no worse than linear.

  Memory is what resident memory grew by at its peak, inputs, outputs and projection included.
  """
  for count in (10_000, 50_000, 100_000, 300_000, 1_000_000):
    gaussians, cameras = scene(count)
    found = intersections(gaussians, cameras)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    draw, both = (
      measure(jitted(functools.partial(f, "cpu"), gaussians, cameras), repeats=3)
      for f in (forward, gradients)
    )
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / found
    print(
      f"{count:9d} Gaussians{found:10d} intersections  forward{draw:8.1f} ms"
      f" ({1e6 * draw / found:5.0f} ns each)  with gradients{both:8.1f} ms"
      f" ({1e6 * both / found:5.0f} ns each), {grown:4.0f} bytes each"
    )


def memory():
  """Peak resident memory that a training step of 8 views adds."""
  gaussians, cameras = scene(_COUNT, views=8)
  step = jax.jit(functools.partial(gradients, "cpu")).lower(gaussians, cameras).compile()
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  jax.block_until_ready(step(gaussians, cameras))
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  print(f"8 views of {_COUNT} Gaussians, {_HEIGHT} x {_WIDTH}: {(after - before) / 1024:.0f} MiB")


def main():
  """Prints the figures."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--scaling", action="store_true")
  parser.add_argument("--memory", action="store_true")
  chosen = parser.parse_args()
  print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, jax {jax.__version__}")
  if chosen.scaling:
    scaling()
  elif chosen.memory:
    memory()
  else:
    peers()


if __name__ == "__main__":
  main()
