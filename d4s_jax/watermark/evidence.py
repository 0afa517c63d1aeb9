"""How sure it is that a mark is there.

Both marks turn the phases of complex numbers x_k by angles that the key draws. What is measured is

  z = sum_k Re(x_k exp(-i angle_k)) / sqrt(sum_k |x_k|^2 / 2).

In what bears no mark of this key, the x_k know nothing of the angles, which are independent and
uniform. Each term then is |x_k| times the cosine of a uniform angle, whose moment generating
function is I_0(s) <= exp(s^2 / 4); by Chernoff's bound z exceeds t with a probability of at most
exp(-t^2 / 2), whatever the x_k are. No assumption on pictures or scenes is needed. Where many
places are looked at, their probabilities are added (Boole).
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Complex, Float


@dataclasses.dataclass(frozen=True)
class Evidence:
  """What was found of a mark.

  Attributes:
    score: z above; of unmarked things about 1 at most of the time, a few where many places
      were looked at.
    log10_false: a bound on the false-positive rate: the decimal logarithm of the probability that
      anything unmarked, or marked with another key, has such a score.
    where: in words, at which place it was found; empty where there is only one.
    left_out: pictures of another shape than most, which were not looked at.
  """

  score: float
  log10_false: float
  where: str = ""
  left_out: int = 0

  @property
  def rate(self) -> str:
    """The bound in figures, which may be smaller than any float."""
    exponent = math.floor(self.log10_false)
    if exponent < -300:
      return f"1e{exponent + 1}"
    return f"{10**self.log10_false:.2g}"


NOTHING = Evidence(0.0, 0.0)


def score(
  values: Complex[np.ndarray, "k"], turned: Float[np.ndarray, "k"]
) -> Float[np.ndarray, ""]:
  """The z of complex numbers and the angles that would have turned them; 0 if all numbers are 0."""
  size = np.sqrt(np.sum(np.abs(values) ** 2) / 2)
  total = np.real(np.sum(values * np.exp(-1j * turned)))
  return np.asarray(total / size if size > 0 else 0.0)


def log10_bound(score: float, places: float = 1) -> float:
  """The logarithm of the bound for the best of so many places."""
  if score <= 0:
    return 0.0
  return min(0.0, (math.log(places) - score**2 / 2) / math.log(10))
