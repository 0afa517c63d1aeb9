"""The key of the marks, and the angles that it draws."""

import hashlib
import os

import numpy as np
from jaxtyping import Float

# A text that nobody else knows makes marks that nobody else finds.
VARIABLE = "D4S_JAX_WATERMARK_KEY"
# Public, so that anyone can check what was made without a key of one's own.
PUBLIC = "d4s_jax"


def key() -> str:
  """The key of this process: the environment's, or the public one.

  Raises:
    ValueError: the variable is set to nothing, which is no key.
  """
  found = os.environ.get(VARIABLE, PUBLIC)
  if not found.strip():
    raise ValueError(f"{VARIABLE} is empty; expected a secret text, or no such variable.")
  return found


def angles(key: str, purpose: str, count: int) -> Float[np.ndarray, "count"]:
  """Independent uniform angles in [0, 2 pi) that follow from a key; the same everywhere, for ever.

  Args:
    key: any text.
    purpose: what they are for; angles for other purposes are independent of these.
    count: how many.
  """
  seed = hashlib.sha256(f"d4s_jax {purpose}".encode()).digest()
  seed += hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
  words = np.frombuffer(hashlib.shake_256(seed).digest(4 * count), "<u4")
  return words * (2 * np.pi / 2**32)
