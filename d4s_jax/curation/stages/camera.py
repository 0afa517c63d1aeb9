"""How much the camera moves: in the picture, and, where it is known, in space."""

import numpy as np

from d4s_jax.curation.sample import Sample
from d4s_jax.curation.stages.flow import affine_residual, block_flow
from d4s_jax.data.sampling import trembling

_PAIRS = 6
_FEWEST_BLOCKS = 6


def measure(sample: Sample) -> dict[str, float]:
  """Figures of motion.

  flow: 90th percentile of the displacement of blocks between sampled frames, by the camera or by
  things, as a share of the width; parallax_2d: how far blocks stray from one affine motion, which
  parallax and moving things do, likewise.
  With cameras, turn: largest rotation between sampled frames, degrees; with depth too, parallax:
  the angle in degrees at which the median point sees the camera's path; with metres and seconds,
  speed in m/s. Where a unit of length could be taken from the path alone, trembling: how far it is
  from being one, see `data.sampling`.
  """
  grey = sample.grey()
  figures = {}
  flows, residuals = [], []
  for index in (
    np.unique(np.linspace(0, len(grey) - 2, _PAIRS).astype(int)) if len(grey) > 1 else []
  ):
    center, moved = block_flow(grey[index], grey[index + 1])
    if len(center) >= _FEWEST_BLOCKS:
      flows.append(np.percentile(np.linalg.norm(moved, axis=1), 90))
      residuals.append(np.percentile(affine_residual(center, moved), 75))
  if flows:
    width = grey.shape[2]
    figures["flow"] = float(np.median(flows)) / width
    figures["parallax_2d"] = float(np.median(residuals)) / width
  if sample.cameras is None:
    return figures
  poses = np.asarray(sample.cameras.world_from_camera, np.float64)
  rotation, place = poses[:, :3, :3], poses[:, :3, 3]
  trace = np.einsum("fij,fij->f", rotation[1:], rotation[:-1])
  turn = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
  figures["turn"] = float(turn.max()) if len(turn) else 0.0
  known = None if sample.depth is None else sample.depth[sample.depth > 0]
  travel = np.linalg.norm(place - place[0], axis=1).max()
  if known is not None and len(known):
    figures["parallax"] = float(np.degrees(np.arctan2(travel, np.median(known))))
  tracked = sample.tracks is not None and bool(np.asarray(sample.tracks.valid).any())
  if not (sample.metric or tracked or known is not None and len(known)):
    figures["trembling"] = trembling(poses)
  if sample.fps and len(place) > 1:
    step = np.linalg.norm(np.diff(place, axis=0), axis=1)
    figures["speed"] = float(np.percentile(step, 95)) * sample.fps
  return figures
