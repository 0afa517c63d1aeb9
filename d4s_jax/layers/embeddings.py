"""Embeddings of scalars and of grid positions."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from d4s_jax.layers.partitioning import platform


def sinusoidal(
  t: Float[Array, "*b"], dim: int, max_period: float = 10000.0
) -> Float[Array, "*b {dim}"]:
  """Cosines, then sines, of `t` at dim / 2 frequencies that fall from 1 to 1 / max_period.

  The order and the frequencies are those of Wan. Always float32.
  """
  half = dim // 2
  frequencies = np.exp(-np.log(max_period) * np.arange(half) / half).astype(np.float32)
  angles = t.astype(jnp.float32)[..., None] * frequencies.reshape((1,) * t.ndim + (half,))
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rotary_3d(
  frames: int, height: int, width: int, head_dim: int, theta: float = 10000.0
) -> tuple[Float[Array, "n r"], Float[Array, "n r"]]:
  """Cosines and sines of the rotary angles of a grid of tokens in frame, row, column order.

  The r = head_dim / 2 pairs of channels are shared out as in Wan: head_dim // 6 of them for rows,
  as many for columns, the rest for frames.

  Raises:
    ValueError: `head_dim` is odd or below 6, so that an axis would have no channels.
  """
  if head_dim % 2 or head_dim < 6:
    raise ValueError(f"Head dimension {head_dim} can't hold 3D rotary positions; use an even >= 6.")
  space = head_dim // 6
  pairs = (head_dim // 2 - 2 * space, space, space)
  positions = np.arange(frames), np.arange(height), np.arange(width)
  return rotary_grid(positions, pairs, theta)


def rotary_grid(
  positions: tuple[np.ndarray, np.ndarray, np.ndarray],
  pairs: tuple[int, int, int],
  theta: float = 10000.0,
) -> tuple[Float[Array, "n r"], Float[Array, "n r"]]:
  """Cosines and sines of the rotary angles of tokens at the crossings of three axes.

  Args:
    positions: those along frames, rows and columns.
    pairs: of channels, for each axis; r in all.
    theta: the longest period is about 2 pi theta.
  """
  grid = tuple(len(axis) for axis in positions)
  tables = []
  for axis, (places, count) in enumerate(zip(positions, pairs, strict=True)):
    # In float64 on the host: far positions lose their phase in float32.
    frequencies = theta ** (-np.arange(count) / count)
    angles = np.outer(places, frequencies)
    shape = tuple(size if i == axis else 1 for i, size in enumerate(grid)) + (count,)
    tables.append(angles.reshape(shape))

  def flat(function):
    parts = [jnp.broadcast_to(function(a).astype(np.float32), (*grid, a.shape[-1])) for a in tables]
    return rearrange(jnp.concatenate(parts, axis=-1), "f h w r -> (f h w) r")

  return flat(np.cos), flat(np.sin)


def apply_rotary(
  x: Float[Array, "b n h d"], cos: Float[Array, "n r"], sin: Float[Array, "n r"]
) -> Float[Array, "b n h d"]:
  """Rotates neighbouring pairs of channels (0, 1), (2, 3), ... by the angle of the token."""
  wide = x.astype(jnp.float32)
  if platform() == "tpu":
    cos, sin = (jnp.repeat(y, 2, axis=-1)[None, :, None, :] for y in (cos, sin))
    return (wide * cos + _quarter_turned(x).astype(jnp.float32) * sin).astype(x.dtype)
  even, odd = jnp.moveaxis(rearrange(wide, "b n h (r p) -> b n h r p", p=2), -1, 0)
  cos, sin = cos[None, :, None, :], sin[None, :, None, :]
  rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
  return rearrange(rotated, "b n h r p -> b n h (r p)").astype(x.dtype)


def _quarter_turned(x: Float[Array, "b n h d"]) -> Float[Array, "b n h d"]:
  """Each pair (u, v) of channels as (-v, u), by a product, to the last bit.

  A TPU has no cheap way to move numbers between neighbouring lanes: taken apart and put together
  again they went through memory four times. In bfloat16 the gradient is rounded once more.
  """
  turn = np.kron(np.eye(x.shape[-1] // 2), [[0.0, 1.0], [-1.0, 0.0]])
  # One for each head: remat policies keep products without such an axis.
  turns = jnp.broadcast_to(jnp.asarray(turn, x.dtype), (x.shape[2], *turn.shape))
  return jnp.einsum("bnhd,hde->bnhe", x, turns, precision=jax.lax.Precision.HIGHEST)
