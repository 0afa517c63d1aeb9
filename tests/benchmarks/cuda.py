"""The `cuda` backend on a GPU: parity, and milliseconds beside gsplat's own Python API.

python tests/benchmarks/cuda.py

Needs an NVIDIA GPU, jax[cuda13], nvcc and gsplat==1.5.3. If torch sees the GPU too, gsplat's API
runs in the same process and ratios are printed (its kernels are compiled at its first call).
Splats have deviations of 1 to 4 pixels at 480 x 720, and of as large a part of the image at other
sizes. Milliseconds are means over calls that are queued one after the other.
"""

import dataclasses
import os
import pathlib
import sys
import time

# Torch needs memory, too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.geometry import harmonics, poses  # noqa: E402
from d4s_jax.render import render  # noqa: E402
from d4s_jax.types import Cameras, Gaussians  # noqa: E402

_COUNTS = (10_000, 50_000, 100_000)
_SIZES = ((480, 720), (1080, 1920))
_REPEATS = 30
# Milliseconds to draw a frame, as the paper reports.
_PAPER = 6.7
# Relative to the norm. The kernels divide and take exponentials with a few bits less than float32
# has, and a contribution that passes 1/255 on one side only moves its pixel by as much.
_TOLERANCE = 2e-3
_BACKGROUND = (0.2, 0.5, 0.7)


def scene(count: int, height: int, width: int) -> tuple[Gaussians, Cameras, np.ndarray]:
  """Gaussians [n] over and around the image at 2 to 10 m, one camera [1], and their RGB."""
  random = np.random.default_rng(0)
  focal = 0.5 * width / np.tan(np.radians(30))
  z = random.uniform(2, 10, count)
  x = (random.uniform(-0.05, 1.05, count) - 0.5) * width / focal * z
  y = (random.uniform(-0.05, 1.05, count) - 0.5) * height / focal * z
  pixels = np.exp(random.uniform(0, np.log(4), (count, 3))) * (height * width / 345_600) ** 0.5
  rgb = random.uniform(size=(count, 3)).astype(np.float32)
  gaussians = Gaussians(
    means=jnp.asarray(np.stack([x, y, z], -1), jnp.float32),
    quaternions=jnp.asarray(random.normal(size=(count, 4)), jnp.float32),
    scales=jnp.asarray(pixels * z[:, None] / focal, jnp.float32),
    opacities=jnp.asarray(random.uniform(0.1, 0.95, count), jnp.float32),
    harmonics=harmonics.from_rgb(jnp.asarray(rgb)),
  )
  lens = np.asarray([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
  cameras = Cameras(
    world_from_camera=jnp.eye(4)[None],
    intrinsics=jnp.asarray(lens[None], jnp.float32),
    height=height,
    width=width,
  )
  return gaussians, cameras, rgb


def forward(gaussians, cameras, backend):
  """Image, depth, alpha and overflow."""
  drawn = render(gaussians, cameras, backend=backend, background=_BACKGROUND)
  return drawn.image, drawn.depth, drawn.alpha, drawn.overflow


def gradients(gaussians, cameras, backend):
  """Gradients to the Gaussians and to the pose of a sum over all layers."""

  def loss(gaussians, pose):
    posed = dataclasses.replace(cameras, world_from_camera=pose)
    image, depth, alpha, _ = forward(gaussians, posed, backend)
    return jnp.sum(image**2) + jnp.sum(depth) + jnp.sum(alpha)

  return jax.grad(loss, argnums=(0, 1))(gaussians, cameras.world_from_camera)


_forward = jax.jit(forward, static_argnames="backend")
_gradients = jax.jit(gradients, static_argnames="backend")


class Peer:
  """The same two calls of gsplat's Python API, on torch tensors of the same numbers."""

  def __init__(self, gaussians: Gaussians, cameras: Cameras, rgb: np.ndarray):
    import gsplat
    import torch

    def tensor(array):
      return torch.tensor(np.asarray(array, np.float32), device="cuda")

    self._torch, self._draw = torch, gsplat.rasterization
    names = ("means", "quaternions", "scales", "opacities")
    self._inputs = [tensor(getattr(gaussians, name)) for name in names] + [tensor(rgb)]
    self._view = tensor(poses.invert(cameras.world_from_camera))
    self._lens, self._background = tensor(cameras.intrinsics), tensor(_BACKGROUND)
    self._size = cameras.width, cameras.height
    for array in (*self._inputs, self._view):
      array.requires_grad_()

  def _layers(self):
    colours, alphas, _ = self._draw(
      *self._inputs, self._view, self._lens, *self._size, packed=False, render_mode="RGB+ED"
    )
    alpha = alphas[..., 0]
    image = colours[..., :3] + (1 - alphas) * self._background
    return image, self._torch.where(alpha > 0, colours[..., 3], 0), alpha

  def forward(self):
    """Image, depth and alpha."""
    with self._torch.no_grad():
      return self._layers()

  def gradients(self):
    """Gradients to means, quaternions, scales, opacities, RGB and camera_from_world."""
    image, depth, alpha = self._layers()
    loss = (image**2).sum() + depth.sum() + alpha.sum()
    return self._torch.autograd.grad(loss, [*self._inputs, self._view])

  def wait(self, results):
    """Until the results are there."""
    self._torch.cuda.synchronize()
    return results


def milliseconds(call, wait) -> float:
  """Of one call, when many are queued."""
  for _ in range(3):
    wait(call())
  start = time.perf_counter()
  results = [call() for _ in range(_REPEATS)]
  wait(results)
  return 1e3 * (time.perf_counter() - start) / _REPEATS


def gap(actual, expected) -> float:
  """Relative to the norm of what is expected."""
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def compare(title: str, pairs) -> bool:
  """Prints the gap of each pair; whether all are small."""
  gaps = {name: gap(actual, expected) for name, actual, expected in pairs}
  good = all(value <= _TOLERANCE for value in gaps.values())
  shown = ", ".join(f"{name} {value:.0e}" for name, value in gaps.items())
  print(f"{'same' if good else 'DIFFERENT'}: {title}: {shown}", flush=True)
  return good


def named_gradients(found):
  """Names and arrays of what `gradients` returns."""
  gaussians, pose = found
  fields = [(name, getattr(gaussians, name)) for name in gaussians.__dataclass_fields__]
  return [*fields, ("pose", pose)]


def parity_with_reference() -> bool:
  """Values and all gradients of a small scene."""
  gaussians, cameras, _ = scene(2000, 120, 180)
  layers = [_forward(gaussians, cameras, name)[:3] for name in ("cuda", "reference")]
  found = [named_gradients(_gradients(gaussians, cameras, x)) for x in ("cuda", "reference")]
  pairs = [*zip(("image", "depth", "alpha"), *layers)]
  pairs += [(name, actual, expected) for (name, actual), (_, expected) in zip(*found)]
  return compare("reference", pairs)


def parity_with_gsplat(gaussians, cameras, peer: Peer) -> bool:
  """Values, and the gradients that both have in the same form."""
  layers = zip(_forward(gaussians, cameras, "cuda"), peer.wait(peer.forward()))
  names = ("image", "depth", "alpha")
  pairs = [(name, actual, expected.cpu()) for name, (actual, expected) in zip(names, layers)]
  ours = _gradients(gaussians, cameras, "cuda")[0]
  theirs = peer.wait(peer.gradients())
  for name, expected in zip(("means", "quaternions", "scales", "opacities"), theirs):
    pairs.append((name, getattr(ours, name), expected.cpu()))
  return compare("gsplat's Python API", pairs)


def measure(count: int, height: int, width: int, torch_sees_it: bool) -> bool:
  """Prints one scene's parity and times."""
  gaussians, cameras, rgb = scene(count, height, width)
  print(f"\n{count} Gaussians, {height} x {width}")
  overflow = int(jnp.sum(_forward(gaussians, cameras, "cuda")[3]))
  good = overflow == 0
  if overflow:
    print(f"DIFFERENT: {overflow} intersections did not fit")
  peer = Peer(gaussians, cameras, rgb) if torch_sees_it else None
  if peer:
    good &= parity_with_gsplat(gaussians, cameras, peer)
  for name, ours in (("forward", _forward), ("forward and backward", _gradients)):
    took = milliseconds(lambda f=ours: f(gaussians, cameras, "cuda"), jax.block_until_ready)
    line = f"{name:22s}{took:8.3f} ms"
    if peer:
      call = peer.forward if name == "forward" else peer.gradients
      other = milliseconds(call, peer.wait)
      line += f"   gsplat {other:8.3f} ms: {other / took:5.2f} x as fast"
    if name == "forward":
      line += f"   paper {_PAPER} ms: {_PAPER / took:5.1f} x"
    print(line, flush=True)
  return good


def main():
  """Prints the table; exit status 1 where something differs or there is no GPU."""
  if jax.default_backend() != "gpu":
    sys.exit(f"error: JAX sees no NVIDIA GPU, it runs on {jax.default_backend()!r}.")
  try:
    import torch

    torch_sees_it = torch.cuda.is_available()
  except ImportError:
    torch_sees_it = False
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
  if not torch_sees_it:
    print("No torch that sees the GPU: gsplat's Python API is left out.")
  good = parity_with_reference()
  for height, width in _SIZES:
    for count in _COUNTS:
      good &= measure(count, height, width, torch_sees_it)
  sys.exit(0 if good else 1)


if __name__ == "__main__":
  main()
