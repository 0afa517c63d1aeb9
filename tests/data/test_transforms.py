"""Checks and changes that every clip goes through."""

import numpy as np
import pytest

from d4s_jax.data.synthetic import SyntheticScenes
from d4s_jax.data.transforms import check_frame_count, with_tokens


@pytest.mark.parametrize("frames", [1, 5, 9, 81])
def test_legal_frame_counts_pass(frames):
  check_frame_count(frames)


@pytest.mark.parametrize(
  ("frames", "neighbours"), [(0, "such as 1"), (2, "1 or 5"), (8, "5 or 9"), (16, "13 or 17")]
)
def test_illegal_frame_counts_name_their_neighbours(frames, neighbours):
  with pytest.raises(ValueError, match=f"{frames} frames.*{neighbours}"):
    check_frame_count(frames)


def test_tokens_take_the_place_of_the_caption():
  clip = SyntheticScenes(frames=1, height=8, width=8, views=0, tracks=0).read(0)
  tokens = with_tokens(clip, lambda text: [len(text), 7]).text
  assert tokens.dtype == np.int32 and tokens.tolist() == [len(clip.text), 7]
