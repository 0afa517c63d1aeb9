"""What a transformer is told of the photograph that a video is to start with."""

from typing import NamedTuple

from jaxtyping import Array, Float


class Condition(NamedTuple):
  """A photograph as the transformers take it; made by `Backbone.condition`.

  Attributes:
    first: clean latents of the photograph, which are those of the first frame and of what is
      padded in front of it.
    video: clean latents of the photograph followed by mid-grey frames; None for models without an
      image encoder.
    image: embeddings of the photograph's parts; None for the same models.
  """

  first: Float[Array, "b k h w c"]
  video: Float[Array, "b f h w c"] | None = None
  image: Float[Array, "b m d"] | None = None
