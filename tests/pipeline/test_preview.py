"""What the preview of a video says that it shows, it shows."""

import numpy as np
import pytest

from d4s_jax.formats.scene import SceneMetadata
from d4s_jax.pipeline import preview
from d4s_jax.types import Cameras


@pytest.mark.parametrize(
  ("count", "captions"),
  [
    (5, ["frames 0, 1, 2, 3, 4 of 5"]),
    (9, ["frames 0, 1, 2, 3, 4, 5 of 9", "frames 6, 7, 8 of 9"]),
    (49, ["frames 0, 4, 9, 13, 17, 22 of 49", "frames 26, 31, 35, 39, 44, 48 of 49"]),
  ],
)
def test_every_frame_that_a_caption_names_is_shown(count, captions, tmp_path, monkeypatch):
  sheets = []
  monkeypatch.setattr(preview.marking, "write_video", lambda *_: None)
  monkeypatch.setattr(preview, "_write_sheet", lambda folder, rows, metadata: sheets.append(rows))
  video = np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1) * np.ones((1, 2, 2, 3), "f4")
  cameras = Cameras(
    world_from_camera=np.eye(4)[None], intrinsics=np.eye(3)[None], height=2, width=2
  )
  metadata = SceneMetadata(cameras=cameras, times=np.zeros(1), prompt="", package_version="0")
  preview.write_clip(tmp_path, np.zeros((2, 2, 3), "f4"), video / count, metadata, 8.0, None)
  rows = list(sheets[0].items())[1:]
  assert [caption for caption, _ in rows] == captions
  for caption, images in rows:
    assert len(images) <= preview._COLUMNS
    named = [int(word.strip(",")) for word in caption.split()[1:-2]]
    np.testing.assert_allclose(images[:, 0, 0, 0] * count, named, rtol=1e-6)
