"""Inspection of a downloaded dataset: what is there, what is broken, what it looks like."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from d4s_jax.curation.agreement import CLOSE, depth_agreement, partner
from d4s_jax.curation.sheet import draw_scene
from d4s_jax.curation.units import VIDEOS
from d4s_jax.data.datasets.registry import entry, open_dataset
from d4s_jax.data.datasets.scene import Scene, View
from d4s_jax.formats import atomic

# Below this share of depths that agree, a still scene's cameras or depth are not what they seem.
_DISAGREE = 0.5


@dataclasses.dataclass
class Findings:
  """What an inspection found.

  Attributes:
    scenes: scenes that can be used.
    frames: usable frames of them, over all cameras.
    cameras: cameras of them.
    depth: frames with depth, as many of all as of those that are read.
    tracks: cameras with tracks.
    agreement: of each scene whose depth could be compared with its cameras (`depth_agreement`).
    sheets: contact sheets that were drawn.
    problems: what is broken or missing.
  """

  scenes: int = 0
  frames: int = 0
  cameras: int = 0
  depth: int = 0
  tracks: int = 0
  agreement: list[float] = dataclasses.field(default_factory=list)
  sheets: list[pathlib.Path] = dataclasses.field(default_factory=list)
  problems: list[str] = dataclasses.field(default_factory=list)

  def summary(self) -> str:
    """The counts in a sentence or two."""
    text = (
      f"{self.scenes} scenes, {self.cameras} cameras, {self.frames} frames,"
      f" {self.depth} of them with depth, {self.tracks} cameras with tracks;"
      f" {len(self.problems)} problems."
    )
    if self.agreement:
      text += (
        f" Seen from another frame, {np.median(self.agreement):.0%} of depths agree within"
        f" {CLOSE:.0%} (median over {len(self.agreement)} scenes)."
      )
    return text


def inspect(
  name: str,
  root: pathlib.Path,
  output: pathlib.Path,
  *,
  frames: int = 0,
  sheets: int = 3,
  bar: Callable[[str, int, str], Any],
) -> Findings:
  """Opens every scene and reads its files; writes `report.json`, `problems.txt` and sheets.

  Args:
    name: of the dataset.
    root: its folder.
    output: folder for what is written.
    frames: that are read of each camera, evenly spaced; 0 is all.
    sheets: scenes that are drawn, evenly spaced.
    bar: makes a progress bar of a label, a length and a unit.

  Raises:
    OSError: there is no such folder, or nothing can be written.
    ValueError: the name is unknown, or the folder holds nothing of the dataset.
  """
  if name == VIDEOS:
    raise ValueError(
      f"--check is for the datasets of --list; leave it out for --dataset={VIDEOS}, whose report"
      " names what can't be read."
    )
  line = entry(name)
  dataset = open_dataset(name, root)
  atomic.check_place(output)
  found = Findings(problems=list(dataset.problems))
  names = dataset.names
  drawn = set(np.linspace(0, len(names) - 1, min(sheets, len(names))).round().astype(int).tolist())
  with bar(f"Inspecting {line.title}", len(names), "scene") as progress:
    for index, scene_name in enumerate(names):
      try:
        scene = dataset.open(scene_name)
      except (OSError, ValueError) as error:
        found.problems.append(f"{scene_name} is left out: {error}")
        progress.update(1)
        continue
      broken = list(_broken(found, scene, frames))
      # A damaged video says so at each frame.
      found.problems += dict.fromkeys([*scene.problems, *broken])
      _count(found, scene)
      if line.depth:
        _compare(found, scene)
      if index in drawn:
        sheet = output / f"scene_{len(found.sheets):02d}.png"
        try:
          draw_scene(sheet, scene)
          found.sheets.append(sheet)
        except ValueError as error:
          if not broken:
            found.problems.append(f"{scene_name} can't be drawn: {error}")
      progress.update(1)
  # Names of files need not be text.
  found.problems = [x.encode("utf-8", "backslashreplace").decode() for x in found.problems]
  _write(found, output)
  return found


def _count(found: Findings, scene: Scene) -> None:
  found.scenes += 1
  found.cameras += len(scene.views)
  for view in scene.views:
    found.frames += len(view)
    found.tracks += view.tracks is not None


def _broken(found: Findings, scene: Scene, frames: int) -> Iterator[str]:
  """What of a scene can't be read; counts frames with depth."""
  for view in scene.views:
    with_depth = 0
    count = min(frames or len(view), len(view))
    chosen = np.unique(np.linspace(0, len(view) - 1, count).round().astype(int))
    readers = (view.pixels, view.depth, view.instances)
    for index in chosen.tolist():
      for read in readers:
        if read is None:
          continue
        try:
          values = read(index)
          with_depth += read is view.depth and bool(values.any())
        except (OSError, ValueError) as error:
          yield str(error)
    found.depth += round(with_depth * len(view) / len(chosen))
    if view.tracks is not None:
      for index in chosen.tolist():
        try:
          view.tracks(np.array([index]))
        except (OSError, ValueError) as error:
          yield str(error)


def _compare(found: Findings, scene: Scene) -> None:
  """Notes how well depth and cameras of a scene agree."""
  for view in scene.views[:1]:
    share = _agreement(view)
    if math.isnan(share):
      continue
    found.agreement.append(share)
    if share < _DISAGREE and not scene.dynamic:
      found.problems.append(
        f"{scene.name}, {view.name}: only {share:.0%} of the depths of its first frame agree with"
        " another frame's; expected most in a still scene. Are depth and cameras of one version?"
        " Look at its sheet."
      )


def _agreement(view: View) -> float:
  if view.depth is None or len(view) < 2:
    return float("nan")
  try:
    depth = view.depth(0)
    other = partner(view.cameras, depth)
    return depth_agreement(depth, view.cameras[0], view.depth(other), view.cameras[other])
  except (OSError, ValueError):  # told already
    return float("nan")


def _write(found: Findings, output: pathlib.Path) -> None:
  report = dataclasses.asdict(found) | {"sheets": [path.name for path in found.sheets]}
  with atomic.replacing(output / "report.json") as temporary:
    temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
  with atomic.replacing(output / "problems.txt") as temporary:
    temporary.write_text("".join(f"{text}\n" for text in found.problems), encoding="utf-8")
