"""Real spherical harmonics up to degree 3 with the signs of 3D Gaussian Splatting.

rgb = max(0, 0.5 + sum_k Y_k(d) c_k) with d the unit direction from the camera to the Gaussian.
The signs are those of the Condon-Shortley phase: Y_1 = (-y, z, -x) times a positive constant.
"""

import math

from jaxtyping import Float

from d4s_jax.geometry import AnyArray, namespace

C0 = math.sqrt(1 / (4 * math.pi))

# Number of coefficients to degree.
DEGREES = {1: 0, 4: 1, 9: 2, 16: 3}


def evaluate(
  harmonics: Float[AnyArray, "*b n k 3"], directions: Float[AnyArray, "*b n 3"]
) -> Float[AnyArray, "*b n 3"]:
  """RGB, at least 0, seen along unit `directions` (camera to Gaussian, world axes).

  Raises:
    ValueError: k is not 1, 4, 9 or 16.
  """
  xp = namespace(harmonics, directions)
  values = basis(directions, harmonics.shape[-2])
  return xp.maximum(0.0, 0.5 + xp.sum(values[..., None] * harmonics, axis=-2))


def basis(directions: Float[AnyArray, "*b 3"], count: int) -> Float[AnyArray, "*b k"]:
  """The first `count` basis functions at unit directions.

  Raises:
    ValueError: `count` is not 1, 4, 9 or 16.
  """
  if count not in DEGREES:
    raise ValueError(
      f"{count} spherical-harmonic coefficients; expected one of {list(DEGREES)} (degree 0 to 3)."
    )
  xp = namespace(directions)
  x, y, z = (directions[..., i] for i in range(3))
  degrees = [lambda: [xp.full_like(x, C0)], lambda: _degree_1(x, y, z)]
  degrees += [lambda: _degree_2(x, y, z), lambda: _degree_3(x, y, z)]
  terms = [term for degree in degrees[: DEGREES[count] + 1] for term in degree()]
  return xp.stack(terms, axis=-1)


def from_rgb(rgb: Float[AnyArray, "*b 3"]) -> Float[AnyArray, "*b 1 3"]:
  """Degree-0 coefficients that show `rgb` from every side."""
  return ((rgb - 0.5) / C0)[..., None, :]


def _degree_1(x, y, z):
  c = math.sqrt(3 / (4 * math.pi))
  return [-c * y, c * z, -c * x]


def _degree_2(x, y, z):
  c = math.sqrt(15 / (4 * math.pi))
  return [
    c * x * y,
    -c * y * z,
    c / math.sqrt(12) * (2 * z * z - x * x - y * y),
    -c * x * z,
    c / 2 * (x * x - y * y),
  ]


def _degree_3(x, y, z):
  c = math.sqrt(35 / (32 * math.pi))
  a = math.sqrt(105 / (4 * math.pi))
  b = math.sqrt(21 / (32 * math.pi))
  return [
    -c * y * (3 * x * x - y * y),
    a * x * y * z,
    -b * y * (4 * z * z - x * x - y * y),
    math.sqrt(7 / (16 * math.pi)) * z * (2 * z * z - 3 * x * x - 3 * y * y),
    -b * x * (4 * z * z - x * x - y * y),
    a / 2 * z * (x * x - y * y),
    -c * x * (x * x - 3 * y * y),
  ]
