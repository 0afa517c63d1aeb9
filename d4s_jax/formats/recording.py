"""Recordings for the Rerun viewer (.rrd): moving Gaussians and cameras on a timeline, axes ours.

`rerun-sdk` writes them. What doesn't move is logged once: scales and quaternions too, as long as
they stay. Colour is of degree 0, in bytes, as is opacity.
"""

import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from d4s_jax.formats import atomic
from d4s_jax.formats.visible import byte, rgb, visible
from d4s_jax.types import Cameras, Gaussians

TIMELINE = "clip_time"
GAUSSIANS, CAMERA, COMMENT = "scene/gaussians", "scene/camera", "provenance"


def write(
  path: str | os.PathLike,
  moments: Iterable[tuple[float, Gaussians]],
  cameras: Cameras,
  title: str,
  comment: str = "",
) -> None:
  """Writes a recording.

  Args:
    path: the file.
    moments: clip times and the Gaussians [n] then.
    cameras: one for each time, in NumPy.
    title: shown as the recording's name.
    comment: kept as a text, "provenance".

  Raises:
    ValueError: rerun-sdk is not installed.
  """
  try:
    import rerun
  except ModuleNotFoundError as error:
    raise ValueError("A recording needs rerun-sdk: pip install 'd4s_jax[rerun]'.") from error
  with atomic.replacing(pathlib.Path(path)) as temporary:
    log = rerun.RecordingStream("d4s_jax")
    log.save(temporary)
    log.send_recording_name(title or "scene")
    log.log("scene", rerun.ViewCoordinates.RDF, static=True)
    if comment:
      log.log(COMMENT, rerun.TextDocument(comment), static=True)
    before: dict[str, Any] = {}
    for index, (time, gaussians) in enumerate(moments):
      log.set_time(TIMELINE, duration=float(time))
      g = visible(gaussians)
      now: dict[str, Any] = {
        "centers": g.means,
        "quaternions": g.quaternions[:, [1, 2, 3, 0]],
        "scales": g.scales,
        "colors": np.concatenate([byte(255 * rgb(g)), byte(255 * g.opacities[:, None])], axis=1),
      }
      new = {
        name: x
        for name, x in now.items()
        if name not in before or not np.array_equal(x, before[name])
      }
      before = now
      if new:
        log.log(GAUSSIANS, rerun.GaussianSplats3D.from_fields(**new))
      pose, lens = cameras.world_from_camera[index], cameras.intrinsics[index]
      log.log(CAMERA, rerun.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
      size = [cameras.width, cameras.height]
      log.log(CAMERA, rerun.Pinhole(image_from_camera=lens, resolution=size))
    log.flush()
    log.disconnect()
