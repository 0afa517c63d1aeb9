"""Recordings, read back by Rerun's own reader."""

import numpy as np

from d4s_jax.formats import recording
from d4s_jax.formats.visible import byte
from d4s_jax.geometry import harmonics
from d4s_jax.pipeline.clips import moment
from tests.formats.test_page import make
from tests.formats.test_splats import seen


def columns(path, entity):
  """Each component of an entity: clip time in seconds to its numbers."""
  from rerun.chunk import RrdReader

  found = {}
  for chunk in RrdReader(path).stream().to_chunks():
    if chunk.entity_path != f"/{entity}" or chunk.is_static:
      continue
    batch = chunk.to_record_batch()
    times = batch.column(recording.TIMELINE).to_pylist()
    for name in batch.schema.names:
      if ":" in name:
        rows = batch.column(name).to_pylist()
        pairs = zip(times, rows, strict=True)
        found.setdefault(name.partition(":")[2], {}).update(
          {time.total_seconds(): np.array(row) for time, row in pairs if row is not None}
        )
  return found


def text(path, entity):
  """A text that stands for the whole recording."""
  from rerun.chunk import RrdReader

  for chunk in RrdReader(path).stream().to_chunks():
    if chunk.entity_path == f"/{entity}" and chunk.is_static:
      batch = chunk.to_record_batch()
      (name,) = (x for x in batch.schema.names if x.endswith(":text"))
      return batch.column(name).to_pylist()[0][0]
  return None


def test_rerun_reads_what_was_logged(tmp_path):
  dynamic, metadata = make(degree=0)
  times = [0.0, 0.5, 1.0]
  moments = [moment(dynamic, time) for time in times]
  cameras = metadata.cameras[np.array([0, 2, 4])]
  path = tmp_path / "a.rrd"
  recording.write(path, zip(times, moments), cameras, "a scene", "made by a test")
  found = columns(path, recording.GAUSSIANS)
  for time, gaussians in zip(times, moments):
    want = seen(gaussians)
    np.testing.assert_array_equal(found["centers"][time], want["means"])
    np.testing.assert_allclose(found["scales"][time], want["scales"], rtol=1e-6)
    # What doesn't change isn't repeated.
    latest = max(known for known in found["quaternions"] if known <= time)
    turn = found["quaternions"][latest][:, [3, 0, 1, 2]]
    np.testing.assert_allclose(turn, want["quaternions"], atol=1e-6)
  # Colour and opacity don't change, so that they stand there once.
  assert [*found["colors"]] == [0.0]
  want = seen(moments[0])
  rgb = np.clip(0.5 + harmonics.C0 * want["harmonics"][:, 0], 0, 1)
  rgba = byte(255 * np.concatenate([rgb, want["opacities"][:, None]], axis=1)).astype(np.uint32)
  np.testing.assert_array_equal(found["colors"][0.0], rgba @ [2**24, 2**16, 2**8, 1])
  assert text(path, recording.COMMENT) == "made by a test"
  seen_from = columns(path, recording.CAMERA)
  for index, time in enumerate(times):
    pose = np.asarray(cameras.world_from_camera)[index]
    # Column by column.
    np.testing.assert_array_equal(seen_from["mat3x3"][time].reshape(3, 3).T, pose[:3, :3])
    np.testing.assert_array_equal(seen_from["translation"][time].ravel(), pose[:3, 3])
    lens = seen_from["image_from_camera"][time].reshape(3, 3).T
    np.testing.assert_allclose(lens, np.asarray(cameras.intrinsics)[index])
