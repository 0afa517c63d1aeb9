"""Contact sheets of datasets: whether conventions are right, at a glance."""

import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageDraw, ImageFont

from d4s_jax.curation.agreement import carried
from d4s_jax.data.datasets.scene import Scene, View
from d4s_jax.formats.images import contact_sheet, fit, to_bytes
from d4s_jax.formats.video import colorize_depth
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.types import Cameras

_COLUMNS = 6
_HEIGHT = 240
_TRACKS = 150
_FONT = ImageFont.load_default(11)
_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#46c0c0", "#808000", "#9a6324")


def draw_scene(path: pathlib.Path, scene: Scene) -> None:
  """Draws frames, depth, a frame carried along, tracks and the camera's path of a scene.

  Raises:
    OSError: a file is missing, or the sheet can't be written.
    ValueError: a file is damaged.
  """
  rows: dict[str, Any] = {}
  for view in scene.views[:2]:
    rows |= _rows(scene, view)
  if len(scene.views) > 2:
    others = [_small(view, np.zeros(1, np.int64))[0][0] for view in scene.views[2:]]
    names = ", ".join(view.name for view in scene.views[2:])
    rows[f"first frames of {names}"] = np.stack(others)
  unit = "m" if scene.metric else "units of its own"
  step, drawing = _from_above(scene)
  rows[f"cameras from above: x right, z up, ticks where they look; a grid of {step:g} {unit}"] = (
    drawing[None]
  )
  contact_sheet(path, rows, columns=_COLUMNS, cell_height=_HEIGHT)


def _rows(scene: Scene, view: View) -> dict[str, Any]:
  chosen = np.unique(np.linspace(0, len(view) - 1, _COLUMNS).round().astype(int))
  numbers = ", ".join(map(str, view.numbers[chosen].tolist()))
  images, cameras = _small(view, chosen)
  rows = {f"{scene.name}, {view.name}: frames {numbers} of {len(view)}": images}
  if view.depth is not None:
    depth = np.stack([_nearest(view.depth(int(i)), cameras) for i in chosen])
    known = depth[depth > 0]
    span = (
      f"{np.percentile(known, 2):.3g} to {np.percentile(known, 98):.3g} m" if len(known) else ""
    )
    rows[f"{view.name}: depth, near is bright, {span}"] = _shades(depth)
    before = [max(0, i - 1) for i in range(len(chosen))]
    rows[f"{view.name}: the frame before, carried here by depth and cameras"] = np.stack(
      [carried(images[k], depth[k], cameras[k], cameras[i]) for i, k in enumerate(before)]
    )
  if view.instances is not None:
    found = np.stack([_nearest(view.instances(int(i)), cameras) for i in chosen])
    shades = np.array([[(7 * n) % 11, (5 * n) % 7, (3 * n) % 5] for n in range(64)]) / [10, 6, 4]
    rows[f"{view.name}: instances"] = np.where(found[..., None] > 0, shades[found % 64], 0)
  if view.tracks is not None:
    rows[f"{view.name}: tracks, projected by the cameras; filled where visible"] = _tracked(
      view, chosen, images, cameras
    )
  return rows


def _shades(depth: Float[np.ndarray, "g h w"]) -> Float[np.ndarray, "g h w 3"]:
  """Colours of depth by its logarithm, so that what is far isn't all dark beside what is near."""
  far = max(float(depth.max()), 1e-6)
  with np.errstate(divide="ignore"):
    # Colours go by the inverse.
    return colorize_depth(np.where(depth > 0, 1 / (1 + np.log(far / depth)), 0).astype(np.float32))


def _small(view: View, chosen: Int[np.ndarray, "g"]) -> tuple[np.ndarray, Cameras]:
  """Frames and their cameras at the size of the sheet."""
  cameras = view.cameras[chosen]
  width = max(1, round(_HEIGHT * cameras.width / cameras.height))
  images = np.stack([fit(view.image(int(i)), _HEIGHT, width) for i in chosen])
  return images, camera_geometry.resize(cameras, _HEIGHT, width)


def _nearest(values: np.ndarray, cameras: Cameras) -> np.ndarray:
  rows = (np.arange(cameras.height) + 0.5) * len(values) / cameras.height
  columns = (np.arange(cameras.width) + 0.5) * values.shape[1] / cameras.width
  return values[np.ix_(rows.astype(int), columns.astype(int))]


def _tracked(
  view: View, chosen, images: np.ndarray, cameras: Cameras
) -> Float[np.ndarray, "g h w 3"]:
  assert view.tracks is not None
  tracks = view.tracks(chosen)
  valid, visible = np.asarray(tracks.valid), np.asarray(tracks.visible)
  shown = np.flatnonzero(visible.any(-1))
  shown = shown[:: max(1, len(shown) // _TRACKS)]
  points = np.asarray(tracks.points, np.float64)
  out = []
  for place, image in enumerate(images):
    picture = Image.fromarray(to_bytes(0.6 * image))
    pen = ImageDraw.Draw(picture)
    pixels, depth = camera_geometry.project(points[shown, place], cameras[place])
    for track, (x, y), ahead in zip(shown, pixels, depth > 0):
      if not (ahead and valid[track, place]):
        continue
      color = _COLORS[track % len(_COLORS)]
      box = (x - 4, y - 4, x + 4, y + 4)
      pen.ellipse(box, fill=color if visible[track, place] else None, outline=color)
    out.append(np.asarray(picture, np.float32) / 255)
  return np.stack(out)


def _from_above(scene: Scene) -> tuple[float, Float[np.ndarray, "h w 3"]]:
  """The grid's step, and all cameras' paths in the plane of x and z of the first of them."""
  side = _HEIGHT
  origin = np.linalg.inv(np.asarray(scene.views[0].cameras.world_from_camera)[0])
  paths = [origin @ np.asarray(view.cameras.world_from_camera) for view in scene.views]
  places = np.concatenate([path[:, [0, 2], 3] for path in paths])
  low, high = places.min(0), places.max(0)
  reach = max(float((high - low).max()), 1e-3) * 1.3
  center = (low + high) / 2
  step = 10.0 ** np.floor(np.log10(reach / 2))

  def at(x: float, z: float) -> tuple[float, float]:
    return (
      side * (0.5 + (x - center[0]) / reach),
      side * (0.5 - (z - center[1]) / reach),
    )

  picture = Image.new("RGB", (side, side), "white")
  pen = ImageDraw.Draw(picture)
  for axis in (0, 1):
    first = np.ceil((center[axis] - reach / 2) / step) * step
    for line in np.arange(first, center[axis] + reach / 2, step):
      ends = ((line, center[1] - reach), (line, center[1] + reach))
      if axis:
        ends = ((center[0] - reach, line), (center[0] + reach, line))
      pen.line([at(*ends[0]), at(*ends[1])], fill="#dddddd")
  names: list[tuple[float, float, float]] = []
  for number, (view, path) in enumerate(zip(scene.views, paths)):
    color = _COLORS[number % len(_COLORS)]
    pen.line([at(*place) for place in path[:, [0, 2], 3]], fill=color, width=2)
    for index in np.unique(np.linspace(0, len(path) - 1, _COLUMNS).round().astype(int)):
      place, ahead = path[index][[0, 2], 3], path[index][[0, 2], 2]
      pen.line([at(*place), at(*(place + 0.06 * reach * ahead))], fill=color, width=1)
    x, y = at(*path[0][[0, 2], 3])
    pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
    # Within the picture, and below names that are there already.
    wide = pen.textlength(view.name, _FONT)
    x, y = min(x + 6, side - wide - 2), y - 6
    while any(abs(y - b) < 12 and x < a + w + 4 and a < x + wide + 4 for a, b, w in names):
      y += 12
    names.append((x, y, wide))
    pen.text((x, y), view.name, fill=color, font=_FONT)
  return float(step), np.asarray(picture, np.float32) / 255
