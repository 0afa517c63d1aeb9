"""What a stack of blocks adds to its tokens, kept in one pass and reused in another.

From one step of denoising to the next, what all blocks together add to their input hardly changes.
A pass may keep it, and a later one adds it to its own tokens instead of going through the blocks
(TeaCache, Liu et al. 2024; MagCache, Ma et al. 2025). It is a Linen collection: a pass that is
given it reuses it, a pass in which it is mutable keeps it, any other pass is as if it were not
there.
"""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

FEATURES, _ADDED = "features", "added"


def reusable(
  module: nn.Module,
  blocks: Callable[[Float[Array, "b n d"]], Float[Array, "b n d"]],
  x: Float[Array, "b n d"],
) -> Float[Array, "b n d"]:
  """The tokens after the blocks, or with what the blocks added in an earlier pass.

  Args:
    module: that the blocks belong to; it does this at most once.
    blocks: the stack, not called where features are given.
    x: the tokens in front of the blocks.
  """
  if module.has_variable(FEATURES, _ADDED):
    return x + module.get_variable(FEATURES, _ADDED)
  y = blocks(x)
  if module.is_mutable_collection(FEATURES) and not module.is_initializing():
    module.put_variable(FEATURES, _ADDED, y - x)
  return y
