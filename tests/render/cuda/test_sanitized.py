"""The handlers and gsplat's kernels under AddressSanitizer and UBSan, with hostile numbers."""

import os
import subprocess
import sys

import pytest

from tests.render.cuda import emulator

FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]

SCRIPT = """
import dataclasses, sys
import jax, jax.numpy as jnp, numpy as np
from d4s_jax.render import cuda
from tests.render import scenes
from tests.render.cuda import emulator

emulator.load(*sys.argv[1:])
SPECIAL = np.asarray([np.nan, np.inf, -np.inf, 0, -0.0, 1e-40, 1e30, -1e5, 1e5, 1, -1], np.float32)

def spoil(array, random):
  # A number in ten is a special one.
  array = np.array(array)
  chosen = random.uniform(size=array.shape) < 0.1
  array[chosen] = random.choice(SPECIAL, chosen.sum())
  return jnp.asarray(array)

# Without jit every array is an allocation of its own, so that a step beside it is seen.
for seed in range(4):
  random = np.random.default_rng(seed)
  views, count = 1 + seed % 3, [40, 1, 33][seed % 3]
  own = [scenes.gaussians(count, coefficients=1, seed=seed + view) for view in range(views)]
  scene = jax.tree.map(lambda *x: spoil(jnp.stack(x), random), *own)
  height, width = random.integers(1, 40, 2).tolist()
  cameras = scenes.cameras(views, height=height, width=width)
  if seed % 2:
    cameras = dataclasses.replace(cameras, model="orthographic")

  def loss(scene, pose):
    posed = dataclasses.replace(cameras, world_from_camera=pose)
    layers, overflow = cuda.rasterize(
      scene, posed, capacity=[None, 3, 8][seed % 3], antialiased=seed > 1
    )
    return jnp.sum(layers), (layers, overflow)

  gradients, (layers, overflow) = jax.grad(loss, argnums=(0, 1), has_aux=True)(
    scene, cameras.world_from_camera
  )
  assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((layers, gradients))), seed
  print(seed, int(jnp.sum(overflow)), float(jnp.max(layers[..., 4])), flush=True)
"""


# A list that names a splat which is not there.
BEYOND = """
import sys
import jax.numpy as jnp
from d4s_jax.render.binning import Grid
from d4s_jax.render.cuda import operations
from tests.render.cuda import emulator

emulator.load(*sys.argv[1:])
starts = jnp.asarray([[[0], [1]]], jnp.int32)
lists = operations.TileLists(
  splats=jnp.asarray([10**5], jnp.int32), starts=starts, inside=starts < 1, overflow=starts[0, 0]
)
splats = [jnp.ones((1, 32, size)) for size in (2, 3, 4)]
grid = Grid(height=16, width=16, tile=16)
print(operations.composite(grid, *splats, jnp.ones((1, 32)), lists))
"""


@pytest.fixture(scope="module")
def sanitized():
  """Runs a script whose emulator is watched."""
  emulator.skip_without_compiler()
  # Here, because a compiler that is watched as well takes minutes.
  emulator.compiled(*FLAGS)
  libraries = [
    subprocess.run(
      ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    for name in ("libasan.so", "libstdc++.so")
  ]

  def run(script):
    return subprocess.run(
      [sys.executable, "-c", script, *FLAGS],
      env={
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.getcwd(),
        "LD_PRELOAD": ":".join(libraries),
        # Python and XLA keep memory until the end; fibres have stacks that are not the thread's.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
      },
      capture_output=True,
      text=True,
      check=False,
    )

  return run


@pytest.mark.slow
def test_hostile_numbers(sanitized):
  done = sanitized(SCRIPT)
  assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
  lines = [line.split() for line in done.stdout.splitlines()]
  assert len(lines) == 4
  # Something overflowed, and something was drawn.
  assert any(int(overflow) for _, overflow, _ in lines)
  assert any(float(alpha) > 0.3 for *_, alpha in lines)


@pytest.mark.slow
def test_a_step_beside_an_array_is_seen(sanitized):
  done = sanitized(BEYOND)
  assert done.returncode != 0
  assert "AddressSanitizer" in done.stderr
