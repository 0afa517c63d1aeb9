"""What published pipelines agree on and their files don't say, by class of the transformer."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Published:
  """A family of published pipelines.

  Attributes:
    family: a key of `models.backbone.BACKBONES`.
    text_length: tokens of a prompt.
    size: frames, rows, columns of a video where nobody says how large.
    fps: frames a second.
    scale: of the constant guidance.
    chunk: latents that the autoencoder computes at a time, to save memory.
  """

  family: str
  text_length: int
  size: tuple[int, int, int]
  fps: int
  scale: float
  chunk: int


PUBLISHED = {
  "WanTransformer3DModel": Published("wan", 512, (81, 480, 832), 16, 5.0, 1),
  "CogVideoXTransformer3DModel": Published("cogvideox", 226, (49, 480, 720), 8, 6.0, 2),
}
