"""Named colours, and materials of one or two of them."""

import numpy as np

from d4s_jax.data.synthetic import textures
from d4s_jax.data.synthetic.description import Material
from d4s_jax.data.synthetic.motion import about

COLORS = {
  "red": (0.80, 0.16, 0.14),
  "orange": (0.93, 0.50, 0.12),
  "yellow": (0.93, 0.80, 0.20),
  "green": (0.25, 0.60, 0.25),
  "teal": (0.12, 0.58, 0.58),
  "blue": (0.18, 0.36, 0.80),
  "purple": (0.52, 0.26, 0.68),
  "pink": (0.93, 0.54, 0.68),
  "brown": (0.50, 0.33, 0.20),
  "tan": (0.80, 0.68, 0.48),
  "white": (0.90, 0.90, 0.88),
  "grey": (0.55, 0.56, 0.58),
  "black": (0.14, 0.14, 0.16),
}


def with_article(words: str) -> str:
  """The words with their indefinite article."""
  return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def shades(name: str) -> np.ndarray:
  """A dark and a light shade of one colour, RGB [2 3]."""
  color = np.array(COLORS[name])
  return np.stack([0.4 * color, color + 0.4 * (1 - color)])


def flat(rng: np.random.Generator, name: str, normal_axis: int, tile: float) -> Material:
  """A material of shades of one colour for a plane across an axis; `tile` in metres."""
  first, second = (np.eye(3)[axis] for axis in range(3) if axis != normal_axis)
  angle = rng.uniform(0, 2 * np.pi)
  across = np.cos(angle) * first + np.sin(angle) * second
  along = np.cos(angle) * second - np.sin(angle) * first
  projection = np.stack([across, along])[None] / tile
  return Material(
    int(rng.integers(textures.COUNT)), projection, rng.random((1, 2)), shades(name), name
  )


def solid(rng: np.random.Generator, names: tuple[str, ...], tile: float) -> Material:
  """A material of shades of one colour, or of two colours, for a solid; `tile` in metres."""
  colors = shades(names[0])
  if len(names) == 2:
    colors = np.stack([0.9 * np.array(COLORS[name]) for name in names])
  # Two planes, neither along an axis: no face of a box is seen edge-on by both.
  turn = about(np.array([0.0, 1.0, 0.0]), rng.uniform(0, 2 * np.pi))
  oblique = [[[0.8, 0.0, -0.6], [0.36, 0.8, 0.48]], [[0.8, 0.6, 0.0], [-0.36, 0.48, 0.8]]]
  projections = np.array(oblique) @ turn / tile
  return Material(
    int(rng.integers(textures.COUNT)), projections, rng.random((2, 2)), colors, " and ".join(names)
  )
