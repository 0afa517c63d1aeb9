"""Displacement of blocks between two pictures, by phase correlation: coarse, without a network."""

import numpy as np
from jaxtyping import Float

BLOCK = 32
# A peak of the correlation below this is no match: sky, a plain wall, or something that was hidden.
_PEAK = 0.06


def block_flow(
  before: Float[np.ndarray, "h w"], after: Float[np.ndarray, "h w"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
  """Centres (x, y) of the blocks that could be matched, and how far each moved, pixels.

  Displacements up to half a block are found.
  """
  step = BLOCK // 2
  rows = np.arange(0, before.shape[0] - BLOCK + 1, step)
  columns = np.arange(0, before.shape[1] - BLOCK + 1, step)
  corner = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
  if not len(corner):
    return np.zeros((0, 2)), np.zeros((0, 2))
  window = np.hanning(BLOCK)[:, None] * np.hanning(BLOCK)

  def spectra(image):
    blocks = np.stack([image[r : r + BLOCK, c : c + BLOCK] for r, c in corner])
    return np.fft.rfft2((blocks - blocks.mean(axis=(1, 2), keepdims=True)) * window)

  cross = spectra(after) * np.conj(spectra(before))
  peaks = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-6), s=(BLOCK, BLOCK))
  best = peaks.reshape(len(corner), -1).argmax(axis=1)
  row, column = np.divmod(best, BLOCK)
  numbers = np.arange(len(corner))
  strength = peaks[numbers, row, column]

  def refined(axis_before, axis_after, center):
    below, above = axis_before, axis_after
    curve = below + above - 2 * center
    return np.clip(0.5 * (below - above) / np.where(np.abs(curve) < 1e-9, -1e-9, curve), -0.5, 0.5)

  dy = refined(peaks[numbers, row - 1, column], peaks[numbers, (row + 1) % BLOCK, column], strength)
  dx = refined(peaks[numbers, row, column - 1], peaks[numbers, row, (column + 1) % BLOCK], strength)
  moved = np.stack([column + dx, row + dy], axis=1)
  moved = np.where(moved > BLOCK / 2, moved - BLOCK, moved)
  matched = strength > _PEAK
  center = corner[:, ::-1] + BLOCK / 2
  return center[matched], moved[matched]


def affine_residual(center: Float[np.ndarray, "n 2"], moved: Float[np.ndarray, "n 2"]):
  """How far each block moves off the affine motion that most of them follow, pixels [n]."""
  design = np.concatenate([center - center.mean(axis=0), np.ones((len(center), 1))], axis=1)
  weight = np.ones(len(center))
  residual = np.zeros(len(center))
  for _ in range(10):
    model, *_ = np.linalg.lstsq(design * weight[:, None], moved * weight[:, None], rcond=None)
    residual = np.linalg.norm(moved - design @ model, axis=1)
    weight = 1 / np.sqrt(np.maximum(residual, 0.1))
  return residual
