"""Whether tracks can be learnt from: long enough, and smooth."""

import numpy as np

from d4s_jax.curation.sample import Sample


def measure(sample: Sample) -> dict[str, float]:
  """Figures of tracks.

  track_share: share of all points and frames at which a point is known and seen; track_jerk: 95th
  percentile over tracks of the median second difference, over the distance to the camera.
  """
  if sample.tracks is None or not len(sample.tracks.points) or len(sample.images) < 3:
    return {}
  points, valid = np.asarray(sample.tracks.points, np.float64), np.asarray(sample.tracks.valid)
  seen = np.asarray(sample.tracks.visible) & valid
  figures = {"track_share": float(seen.mean())}
  three = valid[:, 2:] & valid[:, 1:-1] & valid[:, :-2]
  second = np.linalg.norm(points[:, 2:] - 2 * points[:, 1:-1] + points[:, :-2], axis=-1)
  if sample.cameras is not None and three.any():
    place = np.asarray(sample.cameras.world_from_camera)[None, 1:-1, :3, 3]
    second = second / np.maximum(np.linalg.norm(points[:, 1:-1] - place, axis=-1), 1e-6)
    medians = [np.median(row[known]) for row, known in zip(second, three) if known.any()]
    figures["track_jerk"] = float(np.percentile(medians, 95))
  return figures
