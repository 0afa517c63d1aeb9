"""A clip in chunks of time: what a causal layer has seen is carried from one chunk to the next.

A layer that looks back joins its input to the frames before it with `preceded`. As a part of a
module that runs through `by_chunks` it then finds there the end of its input of the chunk before;
anywhere else, what stands for the frames before the first one. The frames are a Linen collection.

It is the same formula for each frame: in double precision a clip in chunks and one at once are
equal to 14 digits, gradients too. In float32 convolutions are equal to the last bit, and only
normalisations round otherwise, since XLA chooses the order of a sum by how many there are to make.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Shaped

_PAST, _FRAMES = "past", "frames"


def preceded(
  module: nn.Module,
  x: Shaped[Array, "b f h w c"],
  before: Shaped[Array, "b k h w c"],
  keep: int,
) -> Shaped[Array, "b F h w c"]:
  """The frames before `x`, then `x`.

  Args:
    module: the layer whose input `x` is; each layer does this at most once.
    x: frames of a clip, or of a chunk of one.
    before: what stands before the first frame of a clip.
    keep: frames to keep for the next chunk; that many precede every chunk but the first.
  """
  past = module.get_variable(_PAST, _FRAMES, before)
  x = jnp.concatenate([past, x], axis=1)
  if module.is_mutable_collection(_PAST) and not module.is_initializing():
    module.put_variable(_PAST, _FRAMES, x[:, x.shape[1] - keep :])
  return x


def by_chunks(
  module: nn.Module, x: Shaped[Array, "b f ..."], first: int, length: int
) -> Shaped[Array, "b F ..."]:
  """Applies a causal module to a clip chunk by chunk, which needs the memory of a chunk alone.

  Args:
    module: called with frames and whether they begin the clip.
    x: the clip.
    first: frames of the first chunk; that of all makes it one chunk.
    length: frames of each further chunk, of which there is a whole number. They run in a loop, so
      that they are compiled once.
  """
  # Parameters are made from a clip at once; only then may a module change them.
  if first == x.shape[1] or module.is_initializing():
    return module(x, True)
  module, variables = module.unbind()
  y, past = module.apply(variables, x[:, :first], True, mutable=[_PAST])

  def step(past, chunk):
    y, past = module.apply({**variables, **past}, chunk, False, mutable=[_PAST])
    return past, y

  chunks = rearrange(x[:, first:], "b (n f) ... -> n b f ...", f=length)
  _, rest = jax.lax.scan(step, past, chunks)
  return jnp.concatenate([y, rearrange(rest, "n b f ... -> b (n f) ...")], axis=1)


def first_chunk(count: int, length: int) -> int:
  """How much of `count` the first chunk takes: its own and what is left over by the others."""
  return count - (max(count // length, 1) - 1) * length
