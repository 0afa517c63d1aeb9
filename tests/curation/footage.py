"""Videos and records for tests of curation."""

import pathlib

import numpy as np

from d4s_jax.formats.video import write_video


def texture(seed: int, height: int = 200, width: int = 400) -> np.ndarray:
  """A picture with something to see everywhere, [h w 3] in [0, 1]."""
  rng = np.random.default_rng(seed)
  picture = np.zeros((height, width, 3))
  for cells in (8, 24, 72):
    coarse = rng.random((cells, 2 * cells, 3))
    rows = np.arange(height) * cells // height
    columns = np.arange(width) * 2 * cells // width
    picture += coarse[rows[:, None], columns]
  # Each in colours of its own.
  return (0.2 * picture + 0.4 * rng.random(3)).astype(np.float32)


def pan(seed: int, frames: int = 24, speed: int = 3, height: int = 96, width: int = 128):
  """A camera that pans over a texture."""
  whole = texture(seed, 120, width + frames * speed)
  return np.stack([whole[10 : 10 + height, i * speed : i * speed + width] for i in range(frames)])


def write_films(folder: pathlib.Path, count: int = 2, shots: int = 2) -> None:
  """Videos of some shots each."""
  folder.mkdir(parents=True, exist_ok=True)
  for number in range(count):
    film = np.concatenate([pan(10 * number + shot) for shot in range(shots)])
    write_video(folder / f"film {number}.mp4", film, 24)
