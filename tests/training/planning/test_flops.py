"""Operations counted from jaxprs: products whose number is known."""

import jax
import jax.numpy as jnp

from d4s_jax.config import base
from d4s_jax.layers.convolution import FrameConv
from d4s_jax.models.system import System
from d4s_jax.training.planning import flops


def _shape(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products_loops_and_gradients():
  a, b = _shape(3, 4, 5), _shape(5, 6)
  product = 2 * 3 * 4 * 5 * 6
  assert flops.count(jnp.matmul, a, b) == product
  assert flops.count(jax.jit(jnp.matmul), a, b) == product

  def loop(a, b):
    return jax.lax.scan(lambda total, x: (total + jnp.sum(jnp.sin(x @ b)), None), 0.0, a)[0]

  # Two products for each of the forward pass, and that one again where it is not kept.
  assert flops.count(loop, a, b) == product
  assert flops.count(jax.value_and_grad(loop, (0, 1)), a, b) == 3 * product
  again = jax.value_and_grad(jax.checkpoint(loop), (0, 1))
  assert flops.count(again, a, b) == 4 * product

  def branch(a, b):
    return jax.lax.cond(jnp.sum(a) > 0, lambda: jnp.sum(a @ b), lambda: 0.0)

  assert flops.count(branch, a, b) == product


def test_convolutions():
  x, module = _shape(2, 3, 8, 10, 4), FrameConv(5)
  params = jax.eval_shape(module.init, jax.random.key(0), x)
  forward = 2 * (2 * 3 * 8 * 10) * (3 * 3 * 4) * 5
  assert flops.count(module.apply, params, x) == forward

  def strided(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME")

  x, kernel = _shape(1, 4, 16, 16), _shape(6, 4, 2, 2)
  forward = 2 * (8 * 8) * (2 * 2 * 4) * 6
  assert flops.count(strided, x, kernel) == forward
  both = jax.grad(lambda x, kernel: jnp.sum(strided(x, kernel)), (0, 1))
  # The gradient by x has borders that are multiplied with zeros.
  assert 3 * forward <= flops.count(both, x, kernel) < 3.5 * forward


def test_a_transformer_takes_what_arithmetic_says():
  """Six operations for each weight of the blocks and token, and attention's two products."""
  config = base("tiny")
  system = System.build(config.model.to_dict())
  module = system.backbone.transformer
  shape = system.backbone.latent_shape(1, 17, 64, 64)
  tokens = (shape[1] * shape[2] * shape[3]) // 4
  params = system.abstract()["transformer"]
  text = _shape(1, 24, system.backbone.text_encoder.dim)

  def velocity(params, latents, time, text):
    return module.apply({"params": params}, latents, time, text)

  counted = flops.count(velocity, params, _shape(*shape), _shape(1), text)
  blocks = params["blocks"]
  weights = sum(
    x.size
    for path, x in jax.tree_util.tree_leaves_with_path(blocks)
    if path[-1].key == "kernel" and not {"key", "value"} & {entry.key for entry in path[1:2]}
  )
  width, depth = module.dim, module.depth
  crossing = sum(blocks["cross_attention"][name]["kernel"].size for name in ("key", "value"))
  expected = 2 * tokens * (weights - crossing) + 2 * 24 * crossing
  expected += depth * 4 * tokens * (tokens + 24) * width
  # Embeddings and the head are a little more.
  assert expected < counted < 1.3 * expected
