"""Looking at camera files and turning them into others; `python -m d4s_jax.cameras`."""

import pathlib

import matplotlib.figure
import numpy as np
from jaxtyping import Float

from d4s_jax.formats import atomic, trajectories
from d4s_jax.formats.cameras import MAX_SIDE
from d4s_jax.formats.trajectories import examine
from d4s_jax.formats.trajectories.shots import Shots
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.types import Cameras

# Frames a second of a file that doesn't tell its own.
_FPS = 24.0
# Frames that are drawn with their view.
_FRUSTA = 12


def check(path: pathlib.Path, picture: pathlib.Path) -> str:
  """Reads a file and draws its path; returns what was found, for the user.

  Raises:
    ValueError: the file can't be used; the message says where and why.
    OSError: there is no file, or no place for the picture.
  """
  if picture.suffix.lower() not in (".png", ".pdf", ".svg"):
    raise ValueError(f"The picture is to be {picture}; expected a name that ends in .png.")
  atomic.check_place(picture)
  shots = trajectories.read(path)
  found = examine.examine(shots)
  draw_path(picture, shots.world_from_camera, shots.intrinsics, path.name)
  wrong = [f"warning      {line}" for line in found.warnings] or ["warnings     none"]
  return "\n".join([*found.lines, *wrong, f"picture      {picture}"])


def convert(
  path: pathlib.Path, output: pathlib.Path, name: str | None, fov: float | None, height: int | None
) -> str:
  """Reads a file and writes it in another format; returns what is lost and what looks wrong.

  The world stays that of the file.

  Args:
    path: the file, or the folder of a COLMAP model.
    output: the file, or a new folder.
    name: of the format, in `trajectories.WRITERS`; None if the suffix leaves no choice.
    fov: horizontal degrees, of a file without intrinsics.
    height: of the pictures, pixels, of a file without their size; they are as wide as the lens
      makes them.

  Raises:
    ValueError: the format is open, or needs what the file doesn't tell.
  """
  writer = trajectories.WRITERS[_format(output, name)]
  atomic.check_place(output)
  if output.exists() and output.samefile(path):
    raise ValueError(f"{output} is the file that is read; expected another one to write.")
  shots = trajectories.read(path)
  count = len(shots.world_from_camera)
  times = trajectories.unit_times(shots.times, count, path.name)
  cameras = _cameras(shots, writer.lenses, fov, height)
  writer.write(output, cameras, times, rate(shots))
  lost = [writer.lost, *shots.dropped]
  if shots.times is not None and shots.times[0] != 0:
    lost.append(f"the time at which it starts, {shots.times[0]:.15g}")
  notes = "".join(f"\nNote: {line}." for line in shots.notes)
  made = f"\nMade up: its times, {_FPS:.0f} frames a second." if shots.times is None else ""
  wrong = "".join(f"\nWARNING: {line}." for line in examine.examine(shots).warnings)
  return f"{output}   {count} frames\nNot in it: {', '.join(lost)}.{notes}{made}{wrong}"


def rate(shots: Shots) -> float:
  """Frames a second, on average; 24 if the file doesn't tell."""
  if shots.times is None or shots.seconds is None or len(shots.times) < 2:
    return _FPS
  return (len(shots.times) - 1) / float((shots.times[-1] - shots.times[0]) * shots.seconds)


def _format(output: pathlib.Path, name: str | None) -> str:
  suffix = output.suffix.lower()
  fitting = [key for key, row in trajectories.WRITERS.items() if row.suffix == suffix]
  if name is None and len(fitting) != 1:
    known = fitting or [*trajectories.WRITERS]
    raise ValueError(f"{output} can be of several formats; add --format={'|'.join(known)}.")
  if name is not None and name not in fitting:
    wanted = trajectories.WRITERS[name].suffix or "no suffix, a folder"
    raise ValueError(f"{output} with --format={name}; expected {wanted}.")
  return name or fitting[0]


def _cameras(shots: Shots, needed: bool, fov: float | None, height: int | None) -> Cameras:
  count = len(shots.world_from_camera)
  if shots.intrinsics is not None and fov is not None:
    raise ValueError("--fov given, but the file has intrinsics; leave it out.")
  if shots.size is not None and height is not None:
    raise ValueError("--height given, but the file has the size of its pictures; leave it out.")
  if shots.intrinsics is None and fov is None and needed:
    raise ValueError("The file has no intrinsics and the format needs them; add --fov=DEGREES.")
  lenses = shots.intrinsics
  if lenses is None:
    square = pinhole.intrinsics_from_fov(60.0 if fov is None else fov, 1, 1).astype(np.float64)
    lenses = np.tile(square, (count, 1, 1))
  if shots.size is not None:
    rows, columns = shots.size
  else:
    rows = 480 if height is None else height
    if not 1 <= rows <= MAX_SIDE:
      raise ValueError(f"--height is {rows}; expected 1 to {MAX_SIDE} pixels.")
    columns = max(1, round(rows * float(lenses[0, 1, 1] / lenses[0, 0, 0])))
  pixels = lenses * np.array([[columns], [rows], [1]])
  poses = shots.world_from_camera
  # NumPy's, in float64: JAX would round them.
  arrays: dict = {"world_from_camera": poses, "intrinsics": pixels}
  return Cameras(**arrays, height=rows, width=columns)


def draw_path(
  path: pathlib.Path,
  poses: Float[np.ndarray, "f 4 4"],
  lenses: Float[np.ndarray, "f 3 3"] | None,
  title: str,
) -> None:
  """Draws a path from above, from its right and from behind, with what some cameras look at.

  Args:
    path: the picture.
    poses: world_from_camera, OpenCV axes.
    lenses: normalised intrinsics; None for 60 degrees.
    title: above the picture.
  """
  # In the axes of the first camera, so that "above" is what its picture has above.
  local = np.linalg.inv(poses[0]) @ poses
  eyes = local[:, :3, 3]
  span = max(float(np.ptp(eyes, axis=0).max()), 1e-3)
  half = 0.577 if lenses is None else 0.5 / float(lenses[0, 0, 0])
  corners = np.array([[-half, 0, 1], [0, 0, 0], [half, 0, 1]]) * 0.12 * span
  upright = corners[:, [1, 0, 2]]
  picture = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) * half
  picture = np.concatenate([picture, np.ones((5, 1))], axis=1) * 0.12 * span
  chosen = np.unique(np.linspace(0, len(eyes) - 1, _FRUSTA).round().astype(int))
  figure = matplotlib.figure.Figure((12, 4.5), layout="constrained")
  figure.suptitle(f"{title}: {len(eyes)} cameras, axes of the first")
  sides = (
    ("from above", 0, 2, corners),
    ("from the right", 2, 1, upright),
    ("from behind", 0, 1, picture),
  )
  # The same room along all axes: most paths are flat along one of them.
  middle, room = (eyes.min(axis=0) + eyes.max(axis=0)) / 2, 0.65 * span
  for axis, (name, x, y, outline) in zip(figure.subplots(1, 3), sides):
    axis.plot(eyes[:, x], eyes[:, y], "-", color="0.7", zorder=1)
    shown = axis.scatter(eyes[:, x], eyes[:, y], c=np.arange(len(eyes)), s=12, zorder=2)
    for index in chosen:
      seen = outline @ local[index, :3, :3].T + eyes[index]
      axis.plot(seen[:, x], seen[:, y], color=shown.to_rgba(index), linewidth=1)
    axis.plot(*eyes[0, [x, y]], "o", mfc="none", mec="red", markersize=10)
    axis.set(title=name, xlabel="xyz"[x] + (" right" if x == 0 else " ahead"))
    axis.set(ylabel="z ahead" if y == 2 else "y down", aspect="equal")
    axis.set(xlim=(middle[x] - room, middle[x] + room), ylim=(middle[y] - room, middle[y] + room))
    if y == 1:
      axis.invert_yaxis()
  figure.colorbar(shown, ax=figure.axes, label="frame")
  with atomic.replacing(path) as temporary:
    figure.savefig(temporary, dpi=100)
