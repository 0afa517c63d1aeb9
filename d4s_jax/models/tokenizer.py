"""Text to token ids."""

import dataclasses

import numpy as np
from jaxtyping import Int

PAD, END, FIRST_BYTE = 0, 1, 3


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
  """UTF-8 bytes as tokens, numbered as in ByT5: 0 pads, 1 ends the text, byte b is b + 3.

  Attributes:
    max_length: number of tokens of every text, the end mark included.
  """

  max_length: int = 128

  def __post_init__(self):
    if self.max_length < 1:
      raise ValueError(f"A text needs at least 1 token for its end, got {self.max_length}.")

  def __call__(self, text: str) -> Int[np.ndarray, "l"]:
    """Token ids, int32; a long text is cut after the last whole character that fits."""
    # Half a surrogate pair is not text; it becomes "?" instead of an error.
    kept = text.encode("utf-8", errors="replace")[: self.max_length - 1]
    kept = kept.decode("utf-8", errors="ignore").encode("utf-8")
    tokens = np.full(self.max_length, PAD, np.int32)
    tokens[: len(kept)] = np.frombuffer(kept, np.uint8).astype(np.int32) + FIRST_BYTE
    tokens[len(kept)] = END
    return tokens
