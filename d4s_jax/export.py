"""Turns a scene into files of other programs.

Examples:
  python -m d4s_jax.export --scene=scenes/first --output=first.ply --time=0.5
  python -m d4s_jax.export --scene=scenes/first --output=frames/first.ply --frames=25

The suffix chooses the format: .ply (3DGS), .splat, .spz or .glb (glTF with
KHR_gaussian_splatting). None of them knows motion: a file holds the scene at one --time, from 0 to
1 over the clip. With --frames it is that many numbered files in a new folder, evenly spaced over
the clip, as SuperSplat and the splat add-ons of Blender play them. The scene's own folder holds
canonical Gaussians and deformation (safetensors); the other formats can't.
"""

import pathlib

import jax
import numpy as np
from absl import flags, logging

from d4s_jax import errors
from d4s_jax.formats import atomic, scene, splats
from d4s_jax.geometry.deformation import at
from d4s_jax.pipeline import progress
from d4s_jax.types import DynamicGaussians, Gaussians

_SCENE = flags.DEFINE_string("scene", None, "Folder that generate wrote.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "File to write; see above.", required=True)
_TIME = flags.DEFINE_float("time", None, "Clip time in [0, 1]; 0 unless --frames.")
_FRAMES = flags.DEFINE_integer("frames", None, "Write so many numbered files instead of one.")
_MOST_FRAMES = 10_000


def main(argv: list[str]) -> None:
  """Exports one scene."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    output = pathlib.Path(_OUTPUT.value)
    times = _times()
    write = splats.writer(output)
    if _FRAMES.value is None:
      if output.is_dir():
        raise IsADirectoryError(f"{output} is a folder; expected the name of a file.")
      atomic.check_place(output)
    else:
      atomic.check_new_folder(output.parent)
    dynamic, _ = scene.read_scene(_SCENE.value)
    if _FRAMES.value is None:
      write(output, at_time(dynamic, times[0]))
      print(f"Splats: {output}   {output.stat().st_size / 1e6:.1f} MB, at time {times[0]:g}")
      return
    with atomic.new_folder(output.parent) as folder, progress.bar("export", len(times)) as bar:
      for number, time in enumerate(times, 1):
        write(folder / f"{output.stem}_{number:04}{output.suffix}", at_time(dynamic, time))
        bar.update()
    print(f"Splats: {output.parent}   {len(times)} files, {output.suffix[1:]}")


def at_time(dynamic: DynamicGaussians, time: float) -> Gaussians:
  """The Gaussians [n] of one scene at one clip time, in NumPy."""
  moment = at(dynamic, np.array([time], np.float32))
  return jax.tree.map(lambda x: np.asarray(x)[0], moment)


def _times() -> np.ndarray:
  """The clip times asked for."""
  if _FRAMES.value is None:
    time = 0.0 if _TIME.value is None else _TIME.value
    if not 0 <= time <= 1:
      raise ValueError(f"--time is {time}; expected a clip time from 0 to 1.")
    return np.array([time])
  if _TIME.value is not None:
    raise ValueError("--time chooses one moment and --frames all of them; give one of the two.")
  if not 1 <= _FRAMES.value <= _MOST_FRAMES:
    raise ValueError(f"--frames is {_FRAMES.value}; expected 1 to {_MOST_FRAMES}.")
  return np.linspace(0, 1, _FRAMES.value)


if __name__ == "__main__":
  errors.run(main)
