"""Cameras as JSON of nerfstudio and of the 3DGS authors.

`transforms.json` (instant-ngp, nerfstudio): frames with `transform_matrix`, world_from_camera with
OpenGL axes, and intrinsics for all of them or for each. `camera_path.json` (nerfstudio's viewer):
`camera_path` with `camera_to_world`, OpenGL axes, and the vertical field of view in degrees.
`cameras.json` (3DGS): a list with `position` and `rotation`, world_from_camera, OpenCV axes.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from d4s_jax.formats import cameras as ours
from d4s_jax.formats import checked
from d4s_jax.formats.trajectories.shots import OPENGL, Shots, lens, one_size, order_of
from d4s_jax.types import Cameras

_PIXELS = ("fl_x", "fl_y", "cx", "cy", "w", "h")
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")


def read_transforms(top: dict[str, Any], name: str) -> Shots:
  """A transforms.json; frames are put in the order of their files' names."""
  frames = checked.items(top["frames"], f"{name}: frames", ours.MAX_FRAMES)
  matrices, lenses, sizes, notes = [], [], [], []
  for index, frame in enumerate(frames):
    place = f"{name}: frames[{index}]"
    if not isinstance(frame, dict) or "transform_matrix" not in frame:
      raise ValueError(f"{place}: no transform_matrix; expected one in every frame.")
    matrix = _square(frame["transform_matrix"], f"{place}.transform_matrix")
    matrices.append(ours.rigid(matrix, f"{place}.transform_matrix") @ OPENGL)
    found = _transforms_lens(top | frame, place)
    if found is not None:
      lenses.append(found[0])
      sizes += [found[1]] if found[1] else []
  names = [frame.get("file_path", "") for frame in frames]
  order, changed = order_of(names)
  if changed:
    notes.append("frames were put in the order of their files' names")
  for source in (top, *frames[:1]):
    if any(isinstance(source.get(key), int | float) and source[key] for key in _DISTORTION):
      notes.append("the lens's distortion is left out")
      break
  times = [frame["time"] for frame in frames if "time" in frame]
  if len(times) not in (0, len(frames)):
    raise ValueError(f"{name}: {len(times)} of {len(frames)} frames have a time; expected all.")
  times = [checked.number(x, f"{name}: frames[{i}].time") for i, x in enumerate(times)]
  for what, found in (("intrinsics", lenses), ("w and h", sizes)):
    if len(found) not in (0, len(frames)):
      raise ValueError(
        f"{name}: {len(found)} of {len(frames)} frames have {what}; expected all or none."
      )
  size = None
  if sizes:
    size, said = one_size([sizes[i] for i in order], name)
    notes += said
  elif lenses:
    notes.append("w and h are missing: the pictures are taken to be square")
  return Shots(
    "nerfstudio transforms.json (world_from_camera, OpenGL axes)",
    np.stack(matrices)[order],
    np.array(times)[order] if times else None,
    None,
    np.stack(lenses)[order] if lenses else None,
    size,
    ("OpenGL axes were turned to OpenCV's", *notes),
    dropped=("names of pictures",) if any(names) else (),
  )


def _transforms_lens(values: dict[str, Any], place: str):
  """Normalised intrinsics and (height, width), or None."""

  def number(key: str, default=None) -> float:
    if key not in values and default is not None:
      return default
    return checked.number(values.get(key), f"{place}.{key}", 1e-6, 1e7)

  sized = "w" in values and "h" in values
  if not sized:
    if "camera_angle_x" not in values:
      return None
    # Of a square picture, as Blender's synthetic scenes are; which size, doesn't matter.
    values = values | {"w": 1000, "h": 1000}
  width = checked.integer(round(number("w")), f"{place}.w", 1, ours.MAX_SIDE)
  height = checked.integer(round(number("h")), f"{place}.h", 1, ours.MAX_SIDE)
  if "fl_x" in values:
    fx = number("fl_x")
  elif "camera_angle_x" in values:
    angle = number("camera_angle_x")
    if angle >= math.pi:
      raise ValueError(
        f"{place}.camera_angle_x: {angle:g}; expected radians below pi. Are these degrees?"
      )
    fx = 0.5 * width / math.tan(angle / 2)
  else:
    return None
  fy = number("fl_y", fx)
  cx, cy = number("cx", width / 2), number("cy", height / 2)
  return lens(fx, fy, cx, cy, height, width), (height, width) if sized else None


def read_camera_path(top: dict[str, Any], name: str) -> Shots:
  """A camera_path.json."""
  frames = checked.items(top["camera_path"], f"{name}: camera_path", ours.MAX_FRAMES)
  height = checked.integer(top.get("render_height"), f"{name}: render_height", 1, ours.MAX_SIDE)
  width = checked.integer(top.get("render_width"), f"{name}: render_width", 1, ours.MAX_SIDE)
  fps = checked.number(top.get("fps", 24), f"{name}: fps", 1e-3, 1e4)
  matrices, lenses = [], []
  for index, frame in enumerate(frames):
    place = f"{name}: camera_path[{index}]"
    if not isinstance(frame, dict):
      raise ValueError(f"{place}: expected an object with camera_to_world and fov.")
    matrix = checked.numbers(frame.get("camera_to_world"), f"{place}.camera_to_world", (16,))
    matrices.append(ours.rigid(matrix.reshape(4, 4), f"{place}.camera_to_world") @ OPENGL)
    fov = checked.number(frame.get("fov"), f"{place}.fov", 1e-3, 179)
    if fov < math.pi:
      raise ValueError(f"{place}.fov: {fov:g}; expected vertical degrees. Are these radians?")
    focal = 0.5 * height / math.tan(math.radians(fov) / 2)
    lenses.append(lens(focal, focal, width / 2, height / 2, height, width))
  return Shots(
    "nerfstudio camera_path.json (world_from_camera, OpenGL axes)",
    np.stack(matrices),
    np.arange(len(frames)) / fps,
    1.0,
    np.stack(lenses),
    (height, width),
    ("OpenGL axes were turned to OpenCV's",),
  )


def read_cameras(frames: list[Any], name: str) -> Shots:
  """A cameras.json of 3DGS."""
  frames = checked.items(frames, name, ours.MAX_FRAMES)
  matrices, lenses, sizes = [], [], []
  for index, frame in enumerate(frames):
    place = f"{name}: [{index}]"
    if not isinstance(frame, dict):
      raise ValueError(f"{place}: expected an object with position and rotation.")
    matrix = np.eye(4)
    matrix[:3, :3] = checked.numbers(frame.get("rotation"), f"{place}.rotation", (3, 3))
    matrix[:3, 3] = checked.numbers(frame.get("position"), f"{place}.position", (3,))
    matrices.append(ours.rigid(matrix, f"{place}.rotation"))
    width = checked.integer(frame.get("width"), f"{place}.width", 1, ours.MAX_SIDE)
    height = checked.integer(frame.get("height"), f"{place}.height", 1, ours.MAX_SIDE)
    fx, fy = (checked.number(frame.get(key), f"{place}.{key}", 1e-6, 1e7) for key in ("fx", "fy"))
    lenses.append(lens(fx, fy, width / 2, height / 2, height, width))
    sizes.append((height, width))
  order, changed = order_of([str(frame.get("img_name", "")) for frame in frames])
  size, notes = one_size([sizes[i] for i in order], name)
  notes += ("frames were put in the order of their pictures' names",) if changed else ()
  return Shots(
    "3DGS cameras.json (world_from_camera, OpenCV axes)",
    np.stack(matrices)[order],
    intrinsics=np.stack(lenses)[order],
    size=size,
    notes=notes,
    dropped=("names of pictures",) if any("img_name" in frame for frame in frames) else (),
  )


def encode_transforms(cameras: Cameras, times: Float[np.ndarray, "f"]) -> dict[str, Any]:
  """The object of a transforms.json; pictures are to be called images/frame_00001.png and so on."""
  lenses = np.asarray(cameras.intrinsics, np.float64)
  matrices = np.asarray(cameras.world_from_camera, np.float64) @ OPENGL
  names = ("fl_x", "fl_y", "cx", "cy")
  numbers = lenses[:, [0, 1, 0, 1], [0, 1, 2, 2]].tolist()
  one = all(row == numbers[0] for row in numbers)
  frames = []
  for index, (matrix, row) in enumerate(zip(matrices.tolist(), numbers), 1):
    frame = {"file_path": f"images/frame_{index:05}.png", "transform_matrix": matrix}
    frames.append(
      frame | {"time": float(times[index - 1])} | ({} if one else dict(zip(names, row)))
    )
  size = {"w": cameras.width, "h": cameras.height}
  shared = dict(zip(names, numbers[0])) if one else {}
  return {"camera_model": "OPENCV", **size, **shared, "frames": frames}


def encode_camera_path(cameras: Cameras, fps: float) -> dict[str, Any]:
  """The object of a camera_path.json."""
  lenses = np.asarray(cameras.intrinsics, np.float64)
  matrices = np.asarray(cameras.world_from_camera, np.float64) @ OPENGL
  aspect = cameras.width / cameras.height
  frames = []
  for index, (matrix, matrix_k) in enumerate(zip(matrices, lenses)):
    fov = math.degrees(2 * math.atan(0.5 * cameras.height / matrix_k[1, 1]))
    share = index / max(len(matrices) - 1, 1)
    frame = {"camera_to_world": matrix.ravel().tolist(), "fov": fov, "aspect": aspect}
    frames.append(frame | {"render_time": share})
  return {
    "camera_type": "perspective",
    "render_height": cameras.height,
    "render_width": cameras.width,
    "fps": fps,
    "seconds": len(frames) / fps,
    "camera_path": frames,
  }


def _square(value: Any, where: str) -> np.ndarray:
  """A 4x4 matrix; the last row may be missing."""
  if isinstance(value, list) and len(value) == 3:
    value = [*value, [0, 0, 0, 1]]
  return checked.numbers(value, where, (4, 4))
