"""Random solids: what they are, how big, and how they move."""

import dataclasses

import numpy as np

from d4s_jax.data.synthetic.description import Body
from d4s_jax.data.synthetic.motion import Motion, about
from d4s_jax.data.synthetic.palette import solid

_DOWN = np.array([0.0, 1.0, 0.0])

# noun: shape, half extents as multiples of the size, motions that suit it. A rolling solid is round
# about its y axis, or a ball.
_NOUNS = {
  "ball": ("sphere", (1.0, 1.0, 1.0), ("stand", "roll", "bounce", "spin")),
  "egg": ("sphere", (0.8, 1.15, 0.8), ("stand", "slide", "bounce", "spin")),
  "stone": ("sphere", (1.25, 0.75, 1.0), ("stand", "slide", "spin")),
  "cube": ("box", (0.85, 0.85, 0.85), ("stand", "slide", "bounce", "spin")),
  "box": ("box", (1.15, 0.65, 0.8), ("stand", "slide", "bounce", "spin")),
  "pillar": ("box", (0.55, 1.6, 0.55), ("stand", "slide", "spin")),
  "drum": ("cylinder", (0.9, 0.85, 0.9), ("stand", "slide", "bounce", "spin")),
  "barrel": ("cylinder", (0.75, 1.1, 0.75), ("stand", "roll")),
  "cone": ("cone", (0.85, 1.1, 0.85), ("stand", "slide", "bounce", "spin")),
}


def random_solid(
  rng: np.random.Generator, motion: str, colors: tuple[str, ...], spot: np.ndarray, facing: float
) -> Body:
  """A solid of a given motion kind on the floor at `spot`.

  Args:
    rng: source of chance.
    motion: one of MOTIONS.
    colors: names of one or two colours.
    spot: position [3] on the floor at time 0, room axes.
    facing: heading of the camera about the vertical, radians: ways lead across its view.
  """
  noun = str(rng.choice([name for name, (_, _, kinds) in _NOUNS.items() if motion in kinds]))
  shape, proportions, _ = _NOUNS[noun]
  half = np.array(proportions) * rng.uniform(0.35, 0.75)
  material = solid(rng, colors, tile=float(half.mean()) * rng.uniform(4, 7))
  return Body(noun, shape, half, material, _random_motion(rng, motion, half, shape, spot, facing))


def _random_motion(rng, kind, half, shape, spot, facing) -> Motion:
  heading = facing + _heading(rng)
  ahead = np.array([np.sin(heading), 0.0, np.cos(heading)])
  length = 2 * max(half[0], half[2]) * rng.uniform(1.1, 2.6)
  standing = Motion(
    kind=kind,
    start=spot - _DOWN * half[1],
    way=np.zeros(3),
    upright=about(_DOWN, rng.uniform(0, 2 * np.pi)),
    axis=_DOWN,
    ease=float(rng.choice([0.0, rng.random()])),
  )
  if kind == "stand":
    return standing
  if kind == "spin":
    turn = rng.choice([-1, 1]) * rng.uniform(0.25, 0.75) * 2 * np.pi
    return dataclasses.replace(standing, turn=turn)
  if kind == "slide":
    return dataclasses.replace(standing, way=length * ahead)
  if kind == "bounce":
    return dataclasses.replace(
      standing,
      way=0.7 * length * ahead,
      ease=0.0,
      hops=rng.uniform(0.8, 2.2),
      hop_height=rng.uniform(0.9, 1.8) * half[1],
      hop_phase=rng.random(),
    )
  axis = np.cross(ahead, _DOWN)
  rolling = dataclasses.replace(
    standing, start=spot - _DOWN * half[0], way=length * ahead, axis=axis, turn=length / half[0]
  )
  if shape == "cylinder":  # lies on its side, its own axis along that of the turn
    return dataclasses.replace(
      rolling, upright=np.stack([np.cross(axis, _DOWN), axis, _DOWN], axis=1)
    )
  return rolling


def _heading(rng):
  """A heading from straight ahead: mostly across the view, where motion is plainest."""
  side = rng.choice([-1, 1]) * np.pi / 2
  return side + rng.choice([rng.normal(0, 0.3), rng.uniform(-np.pi, np.pi)], p=[0.7, 0.3])
