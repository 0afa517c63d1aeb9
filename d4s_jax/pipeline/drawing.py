"""Drawing a scene along many cameras and times, a few views at a time."""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from d4s_jax.formats import atomic
from d4s_jax.formats.video import SUFFIXES
from d4s_jax.geometry.deformation import at
from d4s_jax.pipeline import progress
from d4s_jax.render import render
from d4s_jax.render.projection import BLUR
from d4s_jax.types import Cameras, DynamicGaussians, Gaussians, Rendering

# A zoom changes the blur in steps of this share, since each blur is compiled once.
_ZOOM = 0.05
# Views that are drawn in one call: few enough for a laptop's memory. Those of one moment follow
# each other there, so that only their pictures take more of it.
_VIEWS, _VIEWS_OF_A_MOMENT = 4, 8
# Room for this many intersections a Gaussian is tried before any are dropped.
_MOST_ROOM = 512


def check_video(path: pathlib.Path, fps: float) -> None:
  """Refuses a place or a frame rate that no video can have; call it before the long work.

  Raises:
    ValueError: no video has the suffix, or the rate is out of range.
    OSError: the path is a folder, or below a file.
  """
  if path.suffix.lower() not in SUFFIXES:
    known = " or ".join(SUFFIXES)
    raise ValueError(f"The video is to be {path}; expected a name that ends in {known}.")
  if path.is_dir():
    raise IsADirectoryError(f"{path} is a folder; expected the name of a video.")
  atomic.check_place(path)
  if not 0.1 <= fps < 1000:
    raise ValueError(f"A video of {fps} frames per second; expected 0.1 or more, below 1000.")


def footprint(focal: float, own: float) -> float:
  """The blur, square pixels, of a picture of a scene whose focal length is `own` in its own size.

  What a pixel sees of the scene stays what it was when the scene was made: drawn larger, splats
  that are narrower than such a pixel would part. No picture is sharper than those that made it.

  Args:
    focal: of the picture, pixels.
    own: of the pictures that the scene was made for, pixels.
  """
  return BLUR * max(1.0, (focal / own) ** 2)


def draw(
  dynamic: DynamicGaussians,
  cameras: Cameras,
  times: Float[np.ndarray, "v"],
  what: str,
  made: Cameras | None = None,
) -> Rendering:
  """Draws each camera of `cameras` [v] at the time of the same index.

  Args:
    dynamic: one scene.
    cameras: the views, with an image size of any kind.
    times: clip time of each view; between stored times the deformation is interpolated.
    what: the label of the progress bar; without one there is none.
    made: the cameras that the scene was made for, for their `footprint`: that of each view's own
      focal length beside their mean; None for a pixel's own.

  Returns:
    NumPy arrays. Where the renderer runs out of room it is given more; what is dropped even so
    is said, and counted in `overflow`.
  """
  count, slots, room = len(times), len(dynamic.means), None
  most = _MOST_ROOM * slots
  blurs = np.full(count, BLUR) if made is None else _blurs(cameras, made)
  times = np.asarray(times, np.float32)
  # To the device once, not at every call.
  dynamic, gaussians = jax.device_put(dynamic), None
  whole: dict[str, Any] = {}
  still = count > 0 and (times == times[0]).all()
  with progress.bar(what, count) as bar:
    for blur, views, size in _calls(blurs, _VIEWS_OF_A_MOMENT if still else _VIEWS):
      # A call of fewer repeats its last view instead of being compiled for another size.
      index = views[np.minimum(np.arange(size), len(views) - 1)]
      if gaussians is None or not still:
        gaussians = _at(dynamic, times[index[:1] if still else index])
      arguments = gaussians, cameras[index], blur
      part = _draw(*arguments, capacity=room)
      while (lost := int(part.overflow.max())) and (room or 0) < most:
        # The default room is at least 16 intersections a Gaussian.
        room = min(2 * (room or 16 * slots) + lost, most)
        part = _draw(*arguments, capacity=room)
      for name, array in vars(jax.device_get(part)).items():
        whole.setdefault(name, np.empty((count, *array.shape[1:]), array.dtype))
        whole[name][views] = array[: len(views)]
      bar.update(len(views))
  drawn = Rendering(**whole)
  if drawn.overflow.any():
    progress.say(f"warning: no room to draw {drawn.overflow.sum()} Gaussian-tile intersections.")
  return drawn


# Apart, or XLA would compute the deformation again for each view of one moment.
_at = jax.jit(at)


@functools.partial(jax.jit, static_argnames=("blur", "capacity"))
def _draw(
  gaussians: Gaussians, cameras: Cameras, blur: float, *, capacity: int | None
) -> Rendering:
  """Views [v] of one moment [1 n], or of one each [v n].

  Those of one moment are drawn one after another, and each uses the last one's memory again; of
  moments of their own that would only copy each of these.
  """
  draw_all = functools.partial(render, blur=blur, capacity=capacity)
  if len(gaussians.means) == len(cameras.intrinsics):
    return draw_all(gaussians, cameras)
  alone = jax.tree.map(lambda x: x[:, None], cameras)
  one_by_one = jax.lax.map(lambda camera: draw_all(gaussians, camera), alone)
  return jax.tree.map(lambda x: x[:, 0], one_by_one)


def _blurs(cameras: Cameras, made: Cameras) -> Float[np.ndarray, "v"]:
  """The footprint in each view: exact in the size of the picture, in steps of its zoom."""
  own = float(np.asarray(made.intrinsics)[..., 1, 1].mean())
  larger = cameras.height / made.height
  zooms = np.asarray(cameras.intrinsics)[:, 1, 1] / (own * larger)
  steps = np.round(np.log(zooms) / np.log1p(_ZOOM))
  return np.array([footprint(own * larger * (1 + _ZOOM) ** step, own) for step in steps])


def _calls(blurs: Float[np.ndarray, "v"], most: int) -> Iterator[tuple[float, np.ndarray, int]]:
  """What is drawn together: a blur, indices of views that have it, and how many these are at most.

  All calls of a blur have the same number of views or fewer, and there are as few as `most` allows.
  """
  for blur in np.unique(blurs):
    views = np.flatnonzero(blurs == blur)
    calls = -(-len(views) // most)
    size = -(-len(views) // calls)
    for start in range(0, len(views), size):
      yield float(blur), views[start : start + size], size
