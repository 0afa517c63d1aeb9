"""What can be told of a camera path by looking at it: size, speed, jumps, wrong conventions."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from d4s_jax.formats.trajectories.shots import Shots
from d4s_jax.geometry import poses

# A step is a jump if it is so many times the median one.
_JUMP = 8.0
# Least angle, degrees, between optical axes for the point where they meet to mean anything.
_SPREAD = 8.0
# With about so many axes all are compared: memory for all pairs of 20,000 frames is 3 GB.
_COMPARED = 500
# How much nearer, as a share, another reading has to bring the axes to a point to be suspected.
_BETTER = 0.25
# An axis that misses the common point by more of its distance than this doesn't look at it.
_MISS = 0.1
# Rates of which a file without seconds may be, if its steps are whole.
_MOST_REPORTED = 5


@dataclasses.dataclass(frozen=True)
class Findings:
  """Of a path.

  Attributes:
    lines: what was found, for people.
    warnings: what is probably wrong.
  """

  lines: tuple[str, ...]
  warnings: tuple[str, ...]


def examine(shots: Shots) -> Findings:
  """Looks at a path as it was read. Key frames of the viewer, in a scene, may lie anywhere."""
  pose = shots.world_from_camera
  eyes, count = pose[:, :3, 3], len(pose)
  steps = np.linalg.norm(np.diff(eyes, axis=0), axis=1)
  turns = _angles(pose)
  lines = [f"format       {shots.format}", f"frames       {count}"]
  lines += [f"note         {note}" for note in shots.notes]
  warnings = [*shots.warnings]
  if shots.size is not None:
    lines.append(f"pictures     {shots.size[1]} x {shots.size[0]} pixels")
  lines.append(f"lens         {_lens(shots)}")
  extent = np.ptp(eyes, axis=0)
  lines.append(
    f"scale        path of {steps.sum():.4g} units in a box of"
    f" {extent[0]:.4g} x {extent[1]:.4g} x {extent[2]:.4g}; no file says what a unit is,"
    " and it is taken for a metre"
  )
  if count > 1:
    lines.append(
      f"steps        {np.median(steps):.4g} units and {np.median(turns):.3g} degrees, most"
      f" {steps.max():.4g} and {turns.max():.3g}"
    )
  if steps.sum() > 1000:
    warnings.append(
      "the path is longer than a kilometre: are its units millimetres or centimetres?"
    )
  lines.append(f"frame rate   {_rate(shots, warnings)}")
  if not shots.in_scene:
    if count > 1 and steps.sum() == 0 and turns.max() == 0:
      warnings.append("the camera stands still")
    warnings += _jumps(steps, "moves", "units") + _jumps(turns, "turns", "degrees")
    warnings += _conventions(pose)
  return Findings(tuple(lines), tuple(warnings))


def _lens(shots: Shots) -> str:
  if shots.intrinsics is None:
    return "not in the file"
  wide = np.degrees(2 * np.arctan(0.5 / shots.intrinsics[:, 0, 0]))
  high = np.degrees(2 * np.arctan(0.5 / shots.intrinsics[:, 1, 1]))
  if np.ptp(wide) < 0.05:
    return f"{wide[0]:.1f} degrees wide and {high[0]:.1f} high in all frames"
  return f"zooms from {wide[0]:.1f} to {wide[-1]:.1f} degrees wide"


def _rate(shots: Shots, warnings: list[str]) -> str:
  times = shots.times
  if times is None or len(times) < 2:
    return "no times in the file"
  gaps = np.diff(times)
  if not (gaps > 0).all():
    late = int(np.argmin(gaps > 0)) + 1
    warnings.append(f"frame {late} is not later than the one before: sort the frames")
    return "times don't rise"
  middle = np.median(gaps)
  even = np.abs(gaps - middle).max() < 0.02 * middle
  if not even:
    holes = int((gaps > 1.5 * middle).sum())
    if holes and not shots.in_scene:
      warnings.append(f"{holes} gaps in time are longer than 1.5 frames: frames are missing")
  if shots.seconds is None:
    return f"times from {times[0]:g} to {times[-1]:g} of no stated unit{'' if even else ', uneven'}"
  rate = 1 / (middle * shots.seconds)
  if not 0.1 < rate < 1000:
    warnings.append(f"{rate:.3g} frames a second: are the times in another unit?")
  return f"{rate:.4g} a second{'' if even else ', uneven'}, {len(times)} frames"


def _jumps(steps: Float[np.ndarray, "s"], verb: str, unit: str) -> list[str]:
  if len(steps) < 4:
    return []
  usual = max(float(np.median(steps)), float(steps.mean()) / 20, 1e-9)
  where = np.flatnonzero(steps > _JUMP * usual)
  if not len(where):
    return []
  shown = ", ".join(f"{i + 1} ({steps[i]:.3g} {unit})" for i in where[:_MOST_REPORTED])
  more = f" and {len(where) - _MOST_REPORTED} more" if len(where) > _MOST_REPORTED else ""
  return [
    f"the camera {verb} by more than {_JUMP:g} times the usual at frame {shown}{more}: a cut?"
  ]


def _angles(pose: Float[np.ndarray, "f 4 4"]) -> Float[np.ndarray, "s"]:
  """Degrees between neighbours."""
  # By the chord: the cosine of a small angle holds half of its digits.
  chord = np.linalg.norm(np.diff(pose[:, :3, :3], axis=0), axis=(1, 2)) / math.sqrt(8)
  return np.degrees(2 * np.arcsin(np.minimum(chord, 1)))


def _meeting(pose: Float[np.ndarray, "f 4 4"]) -> tuple[float, float]:
  """Where optical axes meet: how far they miss it over its distance, and the share in front."""
  eyes, ahead = pose[:, :3, 3], pose[:, :3, 2]
  across = np.eye(3) - ahead[:, :, None] * ahead[:, None, :]
  point = np.linalg.lstsq(across.sum(0), np.einsum("fij,fj->i", across, eyes), rcond=None)[0]
  to = point - eyes
  along = np.sum(to * ahead, axis=1)
  miss = np.linalg.norm(to - along[:, None] * ahead, axis=1)
  return float(np.median(miss) / max(np.median(np.abs(along)), 1e-9)), float((along > 0).mean())


def _conventions(pose: Float[np.ndarray, "f 4 4"]) -> list[str]:
  """Names other conventions in which the path makes more sense; they show on a path that turns."""
  ahead = pose[:, :3, 2]
  some = ahead[:: len(ahead) // _COMPARED + 1]
  spread = math.degrees(math.acos(float(np.clip((ahead @ some.T).min(), -1, 1))))
  moved = np.ptp(pose[:, :3, 3], axis=0).max()
  if spread < _SPREAD or moved < 1e-9:
    return []
  inverse = poses.invert(pose)
  as_is, front = _meeting(pose)
  other, other_front = _meeting(inverse)
  if as_is < _MISS and front < 0.2:
    return [
      "the optical axes meet behind the cameras: the axes are probably OpenGL's (x right, y up, z"
      " backward); multiply each matrix by diag(1, -1, -1, 1) on the right"
    ]
  if other < _MISS and other < _BETTER * as_is:
    what = "camera_from_world" if other_front > 0.8 else "camera_from_world with OpenGL axes"
    said = "the optical axes meet in one point if the matrices are inverted"
    return [f"{said}: they are probably {what}; invert each"]
  return []
