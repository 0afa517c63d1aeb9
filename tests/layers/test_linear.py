"""Dense layers whose product has an axis of heads."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.layers import linear
from d4s_jax.layers.linear import FromHeads, ToHeads, dense
from tests.support import on_devices


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


def test_heads_that_do_not_fit_the_width_are_refused(key):
  with pytest.raises(ValueError, match="5 heads don't divide a width of 24"):
    ToHeads(24, 5).init(key, jnp.zeros((1, 2, 3)))


_ON_FOUR_DEVICES = """
import flax.linen as nn, jax, jax.numpy as jnp
from d4s_jax.layers import linear
from d4s_jax.training import sharding

linear.platform = lambda: "tpu"
mesh = sharding.make_mesh(tensor=4)
x = jax.ShapeDtypeStruct((1, 64, 96), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P()))
for heads in (8, 6):
  layer = linear.ToHeads(48, heads)
  boxed = jax.eval_shape(layer.init, jax.random.key(0), x)
  cut = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, sharding.RULES)
  params = jax.tree.map(
    lambda x, cut: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cut), nn.unbox(boxed), cut
  )
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
    print(jax.jit(layer.apply).lower(params, x).compile().cost_analysis()["flops"])
"""


def test_devices_that_do_not_divide_the_heads_share_the_product_all_the_same():
  done = subprocess.run(
    [sys.executable, "-c", _ON_FOUR_DEVICES],
    env=on_devices(4),
    **{"capture_output": True, "text": True, "check": False},
  )
  assert done.returncode == 0, done.stderr
  fitting, other = (float(line) for line in done.stdout.split())
  # A quarter of the product each; by heads, each would compute all of it.
  whole = 2 * 64 * 96 * 48
  assert whole / 4 <= fitting < 1.2 * whole / 4 and whole / 4 <= other < 1.2 * whole / 4
