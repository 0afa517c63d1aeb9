"""Where clips come from: the protocol of a data source and the table of all sources."""

from collections.abc import Callable
from typing import Protocol

from d4s_jax.data.synthetic import SyntheticScenes
from d4s_jax.types import Clip


class Source(Protocol):
  """Clips by number, in NumPy arrays, without augmentation.

  Reading is a pure function of the index and safe in many processes and threads at once.
  """

  def __len__(self) -> int:
    """The number of clips."""
    ...

  def read(self, index: int) -> Clip:
    """One clip without a batch axis; `text` is its caption."""
    ...


SOURCES: dict[str, Callable[..., Source]] = {
  "synthetic": SyntheticScenes,
}
