"""The held-out scenes that figures are of stay what they are: heldout.txt lists them.

A line is the kind of the source, the clip's number, whether something moves, and numbers: the
focal length in widths, where the camera ends, the mean colour of the first frame, and place and
time of the last of eight target views; then its caption.
"""

import pathlib

import numpy as np
import pytest

from d4s_jax.data.synthetic import SyntheticScenes

LIST = pathlib.Path(__file__).with_name("heldout.txt")
SIDE = 32


def described(kind: str, number: int) -> tuple[str, list[float]]:
  """A clip's line without its numbers, and these."""
  scenes = SyntheticScenes(
    split="heldout", kind=kind, frames=5, height=SIDE, width=SIDE, views=8, tracks=0
  )
  clip = scenes.read(number)
  cameras, targets = clip.source.cameras, clip.target.cameras
  numbers = [
    cameras.intrinsics[0, 0, 0] / SIDE,
    *cameras.world_from_camera[-1, :3, 3],
    *clip.source.images[0].mean((0, 1)),
    *targets.world_from_camera[-1, :3, 3],
    clip.target.times[-1],
  ]
  moves = "moves" if clip.dynamic else "stands"
  return f"{kind} {number} {moves}: {clip.text}", [float(x) for x in numbers]


def parsed(line: str) -> tuple[str, list[float]]:
  head, _, caption = line.partition(": ")
  *words, numbers = head.split(" ", 3)
  return f"{' '.join(words)}: {caption}", [float(x) for x in numbers.split()]


@pytest.mark.parametrize(("kind", "count"), [("mixed", 64), ("dynamic", 64)])
def test_they_are_those_of_the_list(kind, count):
  listed = [x for x in LIST.read_text().splitlines() if x.startswith(f"{kind} ")]
  assert len(listed) == count
  for number, line in enumerate(listed):
    (words, numbers), expected = described(kind, number), parsed(line)
    assert words == expected[0]
    np.testing.assert_allclose(numbers, expected[1], atol=2e-3, err_msg=words)
