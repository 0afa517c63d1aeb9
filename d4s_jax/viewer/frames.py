"""Pictures of a scene, one after another, drawn by any backend; each stage is timed."""

import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from d4s_jax.formats import images
from d4s_jax.formats.video import colorize_depth
from d4s_jax.geometry import harmonics
from d4s_jax.geometry.deformation import at
from d4s_jax.pipeline.drawing import footprint
from d4s_jax.render import render
from d4s_jax.types import Cameras, DynamicGaussians, Gaussians, Rendering
from d4s_jax.watermark import frames as marks

MODES = ("colour", "depth", "opacity", "motion")
# What the paper reports for drawing one frame, on its GPU.
PAPER = 6.7
# Sizes are rounded up to multiples, since each is compiled once; the browser scales.
_STEP, _LARGEST = 64, 1280
_QUALITY = 85


class Painter:
  """Draws one scene; the first picture of each size takes as long as compiling does.

  Args:
    dynamic: the scene.
    about: what `formats.page.describe` says of it. A picture of another aspect than the path's
      holds one of the path's, as large as it can be.
    key: of the invisible mark in all pictures; None for none.
  """

  def __init__(self, dynamic: DynamicGaussians, about: Mapping[str, Any], key: str | None):
    self._dynamic = jax.device_put(dynamic)
    self._start = _at(self._dynamic, jnp.asarray(np.float32(dynamic.times[0]))).means
    self._about, self._key = about, key

  def draw(
    self, clip_time: float, pose: Float[np.ndarray, "4 4"], height: int, width: int, mode: str
  ) -> tuple[bytes, dict[str, float]]:
    """A JPEG with its origin, and milliseconds by stage: deform, render, mark, copy, encode.

    Args:
      clip_time: from 0 to 1.
      pose: world_from_camera.
      height: wished, pixels; the picture has its aspect and about its size.
      width: likewise.
      mode: one of MODES.
    """
    clock = _Clock()
    gaussians = _at(self._dynamic, jnp.asarray(np.float32(clip_time)))
    if mode == "motion":
      most = jnp.asarray(np.float32(self._about["motionScale"]))
      gaussians = _colour_motion(gaussians, self._start, most)
    jax.block_until_ready(gaussians)
    clock.stage("deform")
    camera = self._camera(pose, height, width)
    # By the rounded size, since each blur is compiled once.
    framed = min(camera.height, camera.width / self._about["view"])
    rendering = _render(gaussians, camera, footprint(framed, self._about["height"]))
    jax.block_until_ready(rendering)
    clock.stage("render")
    shown = np.clip(self._shown(rendering, mode), 0, 1)
    if self._key is not None:
      # The browser gives the picture the wished shape again.
      stretch = width * camera.height / (height * camera.width)
      shown = marks.mark(shown[None], self._key, stretch)[0]
    clock.stage("mark")
    pixels = images.to_bytes(shown)
    clock.stage("copy")
    contents = images.jpeg(pixels, _QUALITY, self._about["origin"])
    clock.stage("encode")
    return contents, clock.stages

  def _camera(self, pose: np.ndarray, height: int, width: int) -> Cameras:
    """The lens of the scene on a picture of the wished aspect, in a size that is a multiple."""
    rows = min(-(-height // _STEP) * _STEP, _LARGEST)
    columns = min(-(-max(round(rows * width / height), 1) // _STEP) * _STEP, _LARGEST)
    framed = min(height, width / self._about["view"])
    y = self._about["focal"] * framed * rows / height
    # Of the wished picture, so that what is stretched back by the browser is as wished.
    x = self._about["focal"] * self._about["aspect"] * framed * columns / width
    lens = np.array([[x, 0, columns / 2], [0, y, rows / 2], [0, 0, 1]], np.float32)
    return Cameras(
      world_from_camera=jnp.asarray(pose[None], jnp.float32),
      intrinsics=jnp.asarray(lens[None]),
      height=rows,
      width=columns,
    )

  def _shown(self, rendering: Rendering, mode: str) -> np.ndarray:
    if mode == "opacity":
      return np.repeat(np.asarray(rendering.alpha)[0, ..., None], 3, axis=-1)
    if mode == "depth":
      # As the page: what is hardly there is hardly seen.
      alpha = np.asarray(rendering.alpha)[0, ..., None]
      return alpha * colorize_depth(np.asarray(rendering.depth)[0], *self._about["depths"])
    return np.asarray(rendering.image)[0]


def measure(painter: Painter, path: Cameras, times: np.ndarray, frames: int = 20) -> Iterator[str]:
  """Lines that tell the median milliseconds of each stage along a path, beside the paper's."""
  poses, found = np.asarray(path.world_from_camera), []
  height, width = _fitting(path.height, path.width)
  for index in range(frames + 1):
    k = index % len(poses)
    _, stages = painter.draw(float(times[k]), poses[k], height, width, "colour")
    found.append(stages)
  # The first one was compiled.
  medians = {name: float(np.median([x[name] for x in found[1:]])) for name in found[0]}
  stages = ", ".join(f"{name} {value:.1f}" for name, value in medians.items())
  total = sum(medians.values())
  yield f"{width} x {height} pixels on {jax.devices()[0].platform}: {stages}; {total:.1f} ms in all"
  drawn = medians["deform"] + medians["render"]
  yield f"deform and render {drawn:.1f} ms; the paper reports {PAPER} ms, on its GPU"


def _fitting(height: int, width: int) -> tuple[int, int]:
  """A usual size of the page with the path's aspect."""
  return 512, max(1, round(512 * width / height))


class _Clock:
  """Milliseconds between stages."""

  def __init__(self):
    self.stages: dict[str, float] = {}
    self._last = time.perf_counter()

  def stage(self, name: str) -> None:
    now = time.perf_counter()
    self.stages[name] = 1000 * (now - self._last)
    self._last = now


@jax.jit
def _at(dynamic: DynamicGaussians, clip_time: Float[Array, ""]) -> Gaussians:
  return at(dynamic, clip_time[None])


@functools.partial(jax.jit, static_argnames="blur")
def _render(gaussians: Gaussians, cameras: Cameras, blur: float) -> Rendering:
  return render(gaussians, cameras, blur=blur)


@jax.jit
def _colour_motion(gaussians: Gaussians, start: Float[Array, "1 n 3"], most: Float[Array, ""]):
  """Displacement since the start as colour, as the page shows it: grey is none."""
  shown = jnp.clip(0.5 + 0.5 * (gaussians.means - start) / most, 0, 1)
  flat = ((shown - 0.5) / harmonics.C0)[..., None, :]
  return Gaussians(**(vars(gaussians) | {"harmonics": flat}))
