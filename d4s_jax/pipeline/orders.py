"""What a person asks for, checked before the long work, and the work."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from d4s_jax.formats import images
from d4s_jax.pipeline import Pipeline, results, shot
from d4s_jax.types import Cameras


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
  """One scene or video to be made.

  Attributes:
    image: the photograph as the models take it.
    cameras: the path [f].
    times: clip time of each camera.
    prompt: what is seen and what happens.
    seed: of the noise.
  """

  image: Float[np.ndarray, "h w 3"]
  cameras: Cameras
  times: Float[np.ndarray, "f"]
  prompt: str
  seed: int


def take(
  image: str | pathlib.Path,
  trajectory: str,
  prompt: str,
  seed: int,
  size: tuple[int, int, int],
  fov: float | None = None,
  *,
  most_pixels: int = images.MAX_PIXELS,
) -> Order:
  """Reads the photograph and the path.

  Args:
    image: file of the photograph.
    trajectory: name, with parameters or without, or file; see `shot.camera_path`.
    prompt: the text.
    seed: of the noise.
    size: frames, height and width of the clip.
    fov: horizontal degrees that the photograph sees; see `shot.photograph`.
    most_pixels: of the photograph.

  Raises:
    FileNotFoundError: there is no such photograph.
    ValueError: something can't be used.
  """
  frames, height, width = size
  shot.check_pixels(frames, height, width)
  path = shot.camera_path(trajectory, frames)
  photo = images.read_image(image, most_pixels)
  fitted, cameras = shot.photograph(photo, path, height, width, fov)
  return Order(fitted, cameras, path.times, prompt, seed)


@dataclasses.dataclass(frozen=True, eq=False)
class Workshop:
  """A checkpoint that is ready to work.

  Attributes:
    pipeline: the models.
    kind: what is made, of `results.RESULTS`.
    config: the checkpoint's.
    name: of the checkpoint.
    digest: SHA-256 of its files.
    fps: frames a second.
    key: of the watermark; None for none.
  """

  pipeline: Pipeline
  kind: str
  config: Mapping[str, Any]
  name: str
  digest: str
  fps: float
  key: str | None

  def make(self, order: Order, folder: pathlib.Path) -> None:
    """Makes what was ordered and leaves it in a folder.

    Raises:
      ValueError: the order can't be used after all, or the weights give no numbers.
      OSError: the folder can't be written.
    """
    latents = self.pipeline.sample(order.image, order.cameras, order.prompt, order.seed)
    config = {**self.config, "sampling": self.pipeline.sampling}
    metadata = results.metadata(
      *(config, self.name, self.digest),
      *(order.cameras, order.times, order.prompt, order.seed),
    )
    write = results.WRITE[self.kind]
    write(folder, self.pipeline, latents, order.image, metadata, self.fps, self.key)
