"""What a clip goes through between its source and a batch, and the checks on its size."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int

from d4s_jax.types import Clip


def with_tokens(clip: Clip, tokenize: Callable[[str], Int[np.ndarray, "l"]]) -> Clip:
  """The clip with token ids instead of its caption."""
  return dataclasses.replace(clip, text=np.asarray(tokenize(clip.text), np.int32))


def in_floats(leaf: Any) -> Any:
  """A leaf of a clip or batch: images that are still in 8 bits in [0, 1], others as they are."""
  if isinstance(leaf, np.ndarray) and leaf.dtype == np.uint8:
    return np.divide(np.asarray(leaf), np.float32(255), dtype=np.float32)
  return leaf


def parse_shape(text: str) -> tuple[int, int, int]:
  """Frames, height and width of "FRAMESxHEIGHTxWIDTH".

  Raises:
    ValueError: it isn't of that form.
  """
  found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
  if not found:
    raise ValueError(f"Shape {text!r}; expected frames, height and width, such as '49x480x832'.")
  frames, height, width = (int(number) for number in found.groups())
  return frames, height, width


def check_frame_count(frames: int) -> None:
  """Refuses a number of frames that a causal autoencoder cannot divide.

  Raises:
    ValueError: `frames` is not 1 + 4k; the message names the legal neighbours.
  """
  if frames >= 1 and frames % 4 == 1:
    return
  below = max(1, (frames - 1) // 4 * 4 + 1)
  legal = f"{below}" if frames < 1 else f"{below} or {below + 4}"
  raise ValueError(f"{frames} frames; a clip has 1 + 4k of them, such as {legal}.")
