"""Dense layers whose product has an axis of heads."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.layers import linear
from d4s_jax.layers.linear import FromHeads, ToHeads, dense


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_heads_come_and_go_as_by_dense_layers_with_the_same_parameters(
  dtype, platform, key, monkeypatch
):
  monkeypatch.setattr(linear, "platform", lambda: platform)
  x = jax.random.normal(key, (2, 5, 12)).astype(dtype)
  plain = dense(24, "embed", "heads", dtype=dtype, name="plain")
  heads = ToHeads(24, 4, dtype)
  params = nn.unbox(plain.init(key, x))
  assert jax.tree.map(jnp.shape, nn.unbox(heads.init(key, x))) == jax.tree.map(jnp.shape, params)
  params["params"]["bias"] = jax.random.normal(key, (24,))
  want, got = plain.apply(params, x), heads.apply(params, x)
  assert got.shape == (2, 5, 4, 6) and got.dtype == dtype
  # Sums in another order, in bfloat16 rounded once.
  close = dict(rtol=1e-5, atol=1e-5) if dtype == jnp.float32 else dict(rtol=2**-7, atol=2**-7)
  np.testing.assert_allclose(*(np.asarray(y, np.float32).ravel() for y in (got, want)), **close)

  back = FromHeads(12, dtype)
  plain = dense(12, "heads", "embed", dtype=dtype, name="plain")
  params = nn.unbox(plain.init(key, want))
  assert jax.tree.map(jnp.shape, nn.unbox(back.init(key, got))) == jax.tree.map(jnp.shape, params)
  params["params"]["bias"] = jax.random.normal(key, (12,))
  want, got = plain.apply(params, got.reshape(2, 5, 24)), back.apply(params, got)
  assert got.shape == (2, 5, 12) and got.dtype == dtype
  np.testing.assert_allclose(*(np.asarray(y, np.float32) for y in (got, want)), **close)
