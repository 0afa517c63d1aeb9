"""What published pipelines agree on and their files don't say."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Published:
  """A family of published pipelines.

  Attributes:
    transformer: class of the transformer, in diffusers.
    told_by: keys and values of the transformer's config.json that tell the family from others of
      this class.
    family: a key of `models.backbone.BACKBONES`.
    text_length: tokens of a prompt.
    size: frames, rows, columns of a video where nobody says how large.
    fps: frames a second.
    scale: of the constant guidance.
    chunk: latents that the autoencoder computes at a time, to save memory.
    note: what people should know who make it start a video with a photograph.
  """

  transformer: str
  told_by: Mapping[str, Any]
  family: str
  text_length: int
  size: tuple[int, int, int]
  fps: int
  scale: float
  chunk: int
  note: str = ""


_WAN = ("wan", 512)
_COGVIDEOX = ("cogvideox", 226)
_TEXT_ONLY = (
  "note: these weights were trained to start from text alone; the photograph takes the place of"
  " their first frame, which they have never seen given."
)

# The first that fits is meant.
PUBLISHED = (
  Published("WanTransformer3DModel", {"out_channels": 48}, *_WAN, (121, 704, 1280), 24, 5.0, 1),
  Published("WanTransformer3DModel", {"in_channels": 36}, *_WAN, (81, 480, 832), 16, 5.0, 1),
  Published("WanTransformer3DModel", {}, *_WAN, (81, 480, 832), 16, 5.0, 1, _TEXT_ONLY),
  Published(
    "CogVideoXTransformer3DModel",
    {"patch_size_t": 2, "in_channels": 32},
    *(*_COGVIDEOX, (81, 768, 1360), 16, 6.0, 2),
  ),
  Published(
    "CogVideoXTransformer3DModel",
    {"patch_size_t": 2},
    *(*_COGVIDEOX, (81, 768, 1360), 16, 6.0, 2, _TEXT_ONLY),
  ),
  Published(
    "CogVideoXTransformer3DModel",
    {"in_channels": 32},
    *(*_COGVIDEOX, (49, 480, 720), 8, 6.0, 2),
  ),
  Published("CogVideoXTransformer3DModel", {}, *_COGVIDEOX, (49, 480, 720), 8, 6.0, 2, _TEXT_ONLY),
)


def published(config: Mapping[str, Any]) -> Published | None:
  """The family of a transformer's config.json; None for one that is not known."""
  for candidate in PUBLISHED:
    fits = all(config.get(key) == value for key, value in candidate.told_by.items())
    if config.get("_class_name") == candidate.transformer and fits:
      return candidate
  return None
