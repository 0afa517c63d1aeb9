"""The stages of curation as a table: what each measures, and between what limits a clip is kept.

A stage takes a `Sample` and returns figures; one that has nothing to go on (no cameras, no depth)
returns none, and then its limits don't apply. A limit is (least, most), None for none. Limits are
our choice; the paper states none.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

from d4s_jax.curation.sample import Sample
from d4s_jax.curation.scale import CONSISTENT
from d4s_jax.curation.stages import (
  camera,
  cuts,
  moving,
  picture,
  reprojection,
  tracking,
)
from d4s_jax.data.sampling import TREMBLING

Figures = dict[str, float]
Limits = dict[str, tuple[float | None, float | None]]


@dataclasses.dataclass(frozen=True)
class Stage:
  """One row of the table."""

  measure: Callable[[Sample], Figures]
  limits: Limits


STAGES = {
  "cuts": Stage(cuts.measure, {"cut": (None, 0.12)}),
  "picture": Stage(
    picture.measure,
    {
      "sharpness": (0.01, None),
      "dark": (None, 0.6),
      "bright": (None, 0.6),
      "contrast": (0.03, None),
    },
  ),
  "camera": Stage(
    camera.measure,
    {
      "flow": (0.001, 0.25),
      "turn": (None, 45.0),
      "parallax": (0.5, None),
      "speed": (None, 40.0),
      "trembling": (None, TREMBLING),
    },
  ),
  "reprojection": Stage(reprojection.measure, {"reprojection": (None, 0.15)}),
  "moving": Stage(moving.measure, {"moving": (None, 0.7)}),
  "tracks": Stage(tracking.measure, {"track_share": (0.02, None), "track_jerk": (None, 0.2)}),
  # Measured elsewhere: by `curation.metric`.
  "scale": Stage(
    lambda sample: {},
    {
      "scale": (1e-3, 1e3),
      "scale_variation": (None, CONSISTENT),
      # Depth in a dataset's metres over those of its poses: 1 but for noise, of some percent; units
      # that were mistaken are further off. Within 1.25 is how metric depth is mostly called right.
      "own_scale": (0.8, 1.25),
      "own_scale_variation": (None, CONSISTENT),
      # The same of a dataset's own depth and that of later frames, where nothing else is known:
      # a network's depth, however it was scaled, may waver and is not held against itself.
      "own_depth": (0.8, 1.25),
      "own_depth_variation": (None, CONSISTENT),
      # In any unit; of a network's metric depth it says how far off that was.
      "depth_scale": (None, None),
      "depth_scale_variation": (None, CONSISTENT),
    },
  ),
}


def measure(sample: Sample) -> Figures:
  """The figures of all stages."""
  figures: Figures = {}
  for stage in STAGES.values():
    figures |= stage.measure(sample)
  return {name: float(f"{value:.6g}") for name, value in figures.items()}


def limits(changes: Mapping[str, str]) -> Limits:
  """The limits of all figures, some of them replaced.

  Args:
    changes: figure to "LEAST:MOST", either of which may be left out.

  Raises:
    ValueError: there is no such figure, a limit is no number, or the least is above the most.
  """
  found = {name: limit for stage in STAGES.values() for name, limit in stage.limits.items()}
  for name, text in changes.items():
    if name not in found:
      raise ValueError(f"No figure {name!r} has a limit; choose one of {sorted(found)}.")
    parts = text.split(":")
    try:
      least, most = (float(part) if part else None for part in parts)
      known = [x for x in (least, most) if x is not None]
      if any(map(math.isnan, known)) or known != sorted(known):
        raise ValueError
    except ValueError:
      raise ValueError(
        f"The limits {text!r} of {name}; expected LEAST:MOST, such as 0.5: or :40 or 0.5:40."
      ) from None
    found[name] = (least, most)
  return found


def judge(figures: Mapping[str, float], within: Limits) -> str:
  """Why a clip is rejected; "" if it is not."""
  for name, (least, most) in within.items():
    value = figures.get(name)
    if value is None:
      continue
    if least is not None and not value >= least:
      return f"{name} {value:.4g} is below {least:g}"
    if most is not None and not value <= most:
      return f"{name} {value:.4g} is above {most:g}"
  return ""
