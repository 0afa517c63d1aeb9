"""What a reader of clips is asked for: which of them, and of what size."""

import dataclasses

from d4s_jax.data.transforms import check_frame_count

SPLITS, KINDS = ("train", "heldout"), ("static", "dynamic", "mixed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
  """The clips that are asked for.

  Attributes:
    split: "train" or "heldout".
    kind: "static" (nothing moves), "dynamic" (something may) or "mixed".
    frames: source frames, 1 + 4k.
    height: image height, pixels.
    width: image width, pixels.
    views: target views.
    tracks: number of point tracks; those that aren't there are not valid.
    seed: of the choice of clips.
    length: number of clips, of sources that have any number of them.

  Raises:
    ValueError: a name is unknown or a number is out of range.
  """

  split: str = "train"
  kind: str = "mixed"
  frames: int = 9
  height: int = 64
  width: int = 64
  views: int = 6
  tracks: int = 256
  seed: int = 0
  length: int = 100_000

  def __post_init__(self):
    for what, value, known in (("split", self.split, SPLITS), ("kind", self.kind, KINDS)):
      if value not in known:
        raise ValueError(f"Unknown {what} {value!r}; expected one of {', '.join(known)}.")
    check_frame_count(self.frames)
    if min(self.height, self.width, self.views, self.length) < 1 or self.tracks < 0:
      raise ValueError(
        f"Clips of {self.height}x{self.width} pixels, {self.views} views, {self.tracks} tracks,"
        f" {self.length} in all; expected positive sizes."
      )

  @property
  def shape(self) -> tuple[int, int, int]:
    """Frames, height and width."""
    return self.frames, self.height, self.width

  @property
  def entropy(self) -> tuple[int, int]:
    """What the choice of clips depends on, beside their number."""
    return self.seed, SPLITS.index(self.split)

  def check(self, index: int, length: int) -> None:
    """Refuses a clip that isn't there.

    Raises:
      IndexError: the number is out of range.
    """
    if not 0 <= index < length:
      raise IndexError(f"Clip {index}; expected 0 to {length - 1}.")
