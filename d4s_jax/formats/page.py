"""A scene as one HTML file that plays it in any browser with WebGL2, from disk, without a network.

The viewer (`viewer/page.html`) draws what `d4s_jax.render` draws. Canonical Gaussians are kept in
float32. Deformation is rounded: displacement to 0.02% of the distance to the scene, the turn's
quaternion to 1/512, the logarithm of scales to 1/64; its steps from time to time are what is
stored, compressed.
"""

import base64
import gzip
import json
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from d4s_jax.formats import atomic, provenance
from d4s_jax.formats.scene import SceneMetadata
from d4s_jax.formats.video import DEPTH_COLORS
from d4s_jax.formats.visible import finite
from d4s_jax.types import LOG_SCALE_RANGE, DynamicGaussians

_TEMPLATE = pathlib.Path(__file__).parent / "viewer" / "page.html"
_MOVE_SHARE, _TURN_STEP, _GROW_STEP = 2e-4, 1 / 512, 1 / 64
_LARGEST = 32_000
_MOST_HARMONICS = 4
# Of one level of 255.
_MARK_STEPS = 20
# Frames a second at which a clip plays.
_FPS = 8.0


def write_page(
  path: str | os.PathLike,
  dynamic: DynamicGaussians,
  metadata: SceneMetadata,
  mark: Float[np.ndarray, "t t"] | None = None,
) -> None:
  """Writes the page of one scene.

  Args:
    path: the file.
    dynamic: the scene; harmonics of degree 0 or 1.
    metadata: its cameras are the path to ride along, and its prompt is the title.
    mark: one tile, of half the picture's height, of a pattern that is added to the pictures and
      videos that are saved in the page; levels of 255, below 6.

  Raises:
    ValueError: a value is NaN or infinite, nothing is visible, or the degree is higher.
  """
  arrays, seen = finite(dynamic)
  if arrays["harmonics"].shape[1] > _MOST_HARMONICS:
    raise ValueError(
      f"{arrays['harmonics'].shape[1]} harmonics a Gaussian; a page shows 1 or 4 (degree 0 or 1)."
    )
  description = describe(dynamic, metadata)
  del arrays["times"]
  deformation = arrays.pop("deformation")[:, seen]
  arrays = {name: x[seen] for name, x in arrays.items()}
  values, steps = _rounded(deformation, description["pivot"])
  blobs: dict[str, tuple[str, np.ndarray]] = {name: ("f4", x) for name, x in arrays.items()}
  blobs["deformation"] = ("u1", _steps(values))
  packed, where = b"", {}
  for name, (kind, array) in blobs.items():
    where[name] = [kind, len(packed), array.size]
    packed += array.astype(f"<{kind}").tobytes()
  data = base64.b64encode(gzip.compress(packed, 6, mtime=0)).decode()
  description |= {"steps": steps, "arrays": where}
  if mark is not None:
    marks = np.clip(np.round(mark * _MARK_STEPS), -127, 127).astype(np.int8)
    description["mark"] = {
      "tile": base64.b64encode(marks.tobytes()).decode(),
      "side": len(marks),
      "steps": _MARK_STEPS,
    }
  page = fill(description, data)
  with atomic.replacing(pathlib.Path(path)) as temporary:
    temporary.write_text(page)


def describe(dynamic: DynamicGaussians, metadata: SceneMetadata) -> dict[str, Any]:
  """What the page knows of a scene besides its Gaussians."""
  means, opacities = np.asarray(dynamic.means), np.asarray(dynamic.opacities)
  seen = opacities > 0
  means, deformation = means[seen], np.asarray(dynamic.deformation)[:, seen]
  times = np.asarray(dynamic.times)
  first = np.asarray(metadata.cameras.world_from_camera)[0]
  depths = (means - first[:3, 3]) @ first[:3, 2]
  ahead = depths[depths > 0]
  near, pivot, far = np.quantile(ahead, (0.02, 0.5, 0.98)) if len(ahead) else (1.0, 2.0, 4.0)
  moved = np.linalg.norm(deformation[..., :3] - deformation[:1, :, :3], axis=-1)
  return _cameras(metadata) | {
    "title": metadata.prompt,
    "count": int(seen.sum()),
    "degree": round(np.asarray(dynamic.harmonics).shape[1] ** 0.5) - 1,
    "times": times.tolist(),
    "scaleRange": LOG_SCALE_RANGE,
    "depthColors": base64.b64encode(DEPTH_COLORS.tobytes()).decode(),
    "depths": [max(float(near), 0.01), max(float(far), 0.02)],
    "pivot": float(pivot),
    "motionScale": max(float(np.quantile(moved, 0.99)), 0.01),
    "seconds": max(len(times) - 1, 1) / _FPS,
    "origin": provenance.text(provenance.facts(metadata)),
  }


def fill(description: dict[str, Any], data: str = "") -> str:
  """The text of the page; a description with "stream" asks its server for pictures."""
  # No "<" may stand in a script element: "</script>" would end it.
  text = json.dumps(description).replace("<", "\\u003c")
  template = _TEMPLATE.read_text()
  if description.get("stream"):
    template = template.replace("default-src 'none';", "default-src 'none'; connect-src 'self';")
  # The arrays first: they hold no such mark, but a prompt may.
  return template.replace("/*ARRAYS*/", data).replace("/*DESCRIPTION*/", text)


def _cameras(metadata: SceneMetadata) -> dict[str, Any]:
  """The path, and the lens of its first camera: focal length over image height, and x over y."""
  cameras = metadata.cameras
  poses, lens = np.asarray(cameras.world_from_camera), np.asarray(cameras.intrinsics)[0]
  return {
    "cameras": [
      {"turn": pose[:3, :3].ravel().tolist(), "eye": pose[:3, 3].tolist()} for pose in poses
    ],
    "cameraTimes": np.asarray(metadata.times).tolist(),
    "view": cameras.width / cameras.height,
    "focal": float(lens[1, 1] / cameras.height),
    "aspect": float(lens[0, 0] / lens[1, 1]),
    "height": cameras.height,
  }


def _rounded(deformation: np.ndarray, pivot: float) -> tuple[np.ndarray, list[float]]:
  """Deformation [t n 10] as whole steps [t 9 n], and the size of a step of its three parts."""
  move, turn, grow = deformation[..., :3], deformation[..., 3:7], deformation[..., 7:]
  # The quaternion with w >= 0 stands for the same turn, and needs no w.
  turn = turn[..., 1:] * np.where(turn[..., :1] < 0, -1, 1)
  parts, steps = (move, turn, grow), []
  for part, least in zip(parts, (_MOVE_SHARE * abs(pivot), _TURN_STEP, _GROW_STEP)):
    steps.append(max(float(least), float(np.abs(part).max()) / _LARGEST))
  whole = [np.round(part / step) for part, step in zip(parts, steps)]
  return np.moveaxis(np.concatenate(whole, axis=-1), -1, 1).astype(np.int16), steps


def _steps(values: np.ndarray) -> np.ndarray:
  """Differences from time to time, modulo 2^16: all high bytes, then all low ones."""
  change = np.diff(values, axis=0, prepend=np.zeros_like(values[:1])).astype(np.uint16)
  return np.concatenate([(change >> 8).ravel(), (change & 255).ravel()]).astype(np.uint8)
