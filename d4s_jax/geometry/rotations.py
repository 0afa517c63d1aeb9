"""Quaternions (`wxyz`, unit, Hamilton product) and rotation matrices, over any leading axes.

`q` and `-q` are the same rotation. Every function has finite gradients at the identity.
"""

from jaxtyping import Float

from d4s_jax.geometry import AnyArray, namespace

# Squared norms below this are treated as this, which keeps the zero quaternion finite.
_TINY = 1e-20

# Above this cosine of the half angle (0.03 rad) a normalised straight line is within 1e-6 rad of
# the great arc, and the arc's own formula divides by almost zero.
_NEARLY_PARALLEL = 0.9995


def normalize(quaternions: Float[AnyArray, "*b 4"]) -> Float[AnyArray, "*b 4"]:
  """Scales to unit length; the zero quaternion stays zero."""
  xp = namespace(quaternions)
  squared = xp.sum(quaternions * quaternions, axis=-1, keepdims=True)
  return quaternions / xp.sqrt(xp.maximum(squared, _TINY))


def multiply(
  left: Float[AnyArray, "*#b 4"], right: Float[AnyArray, "*#b 4"]
) -> Float[AnyArray, "*#b 4"]:
  """Hamilton product: the rotation `right` followed by the rotation `left`."""
  xp = namespace(left, right)
  a, b, c, d = (left[..., i] for i in range(4))
  w, x, y, z = (right[..., i] for i in range(4))
  return xp.stack(
    [
      a * w - b * x - c * y - d * z,
      a * x + b * w + c * z - d * y,
      a * y - b * z + c * w + d * x,
      a * z + b * y - c * x + d * w,
    ],
    axis=-1,
  )


def to_matrix(quaternions: Float[AnyArray, "*b 4"]) -> Float[AnyArray, "*b 3 3"]:
  """The rotation matrix of a unit quaternion."""
  xp = namespace(quaternions)
  w, x, y, z = (quaternions[..., i] for i in range(4))
  rows = [
    [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
    [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
    [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
  ]
  return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)


def from_matrix(matrices: Float[AnyArray, "*b 3 3"]) -> Float[AnyArray, "*b 4"]:
  """The unit quaternion of a rotation matrix, with w >= 0.

  The matrix gives every product of two components; the row of the largest component is the
  quaternion up to length, so that nothing is divided by, or rooted from, a small number.
  """
  xp = namespace(matrices)
  m = [[matrices[..., i, j] for j in range(3)] for i in range(3)]
  xx, yy, zz = m[0][0], m[1][1], m[2][2]
  wx, wy, wz = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
  xy, xz, yz = m[0][1] + m[1][0], m[0][2] + m[2][0], m[1][2] + m[2][1]
  rows = [
    [1 + xx + yy + zz, wx, wy, wz],
    [wx, 1 + xx - yy - zz, xy, xz],
    [wy, xy, 1 - xx + yy - zz, yz],
    [wz, xz, yz, 1 - xx - yy + zz],
  ]
  products = xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)
  largest = xp.argmax(xp.stack([rows[i][i] for i in range(4)], axis=-1), axis=-1)
  row = xp.take_along_axis(products, largest[..., None, None], axis=-2)[..., 0, :]
  return normalize(xp.where(row[..., :1] < 0, -row, row))


def rotate(
  matrices: Float[AnyArray, "*#b 3 3"], vectors: Float[AnyArray, "*#b 3"]
) -> Float[AnyArray, "*#b 3"]:
  """Applies rotation matrices to vectors; the leading axes broadcast, rank for rank."""
  xp = namespace(matrices, vectors)
  return xp.sum(matrices * vectors[..., None, :], axis=-1)


def slerp(
  start: Float[AnyArray, "*#b 4"],
  end: Float[AnyArray, "*#b 4"],
  fraction: Float[AnyArray, "*#b"],
) -> Float[AnyArray, "*#b 4"]:
  """Turns at constant speed along the shorter arc: `start` at fraction 0, `end` at 1."""
  xp = namespace(start, end, fraction)
  cosine = xp.sum(start * end, axis=-1, keepdims=True)
  end = xp.where(cosine < 0, -end, end)
  cosine = xp.abs(cosine)
  parallel = cosine > _NEARLY_PARALLEL
  # The unused branch gets a harmless angle: where() alone would pass its NaN gradient on.
  angle = xp.arccos(xp.where(parallel, 0.0, cosine))
  t = fraction[..., None]
  near = xp.where(parallel, 1 - t, xp.sin((1 - t) * angle) / xp.sin(angle))
  far = xp.where(parallel, t, xp.sin(t * angle) / xp.sin(angle))
  return normalize(near * start + far * end)
