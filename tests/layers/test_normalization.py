import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.layers.normalization import ChannelNorm, LayerNorm, RMSNorm, modulate, timestep_runs


@pytest.mark.parametrize("module", [LayerNorm(), RMSNorm(), ChannelNorm()])
def test_results_have_unit_size_and_the_dtype_of_the_input(module, key):
  x = 7.0 * jax.random.normal(key, (2, 3, 64))
  params = module.init(key, x)
  y = module.apply(params, x)
  # 1e-4: epsilon of the normalisations.
  np.testing.assert_allclose(jnp.mean(y**2, axis=-1), 1.0, atol=1e-4)
  assert module.apply(params, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_layer_norm_takes_the_mean_away(key):
  x = 100.0 + jax.random.normal(key, (4, 32))
  y = LayerNorm().apply(LayerNorm().init(key, x), x)
  # 1e-4: what float32 keeps of a spread of 1 around 100.
  np.testing.assert_allclose(jnp.mean(y, axis=-1), 0.0, atol=1e-4)
  np.testing.assert_allclose(jnp.var(y, axis=-1), 1.0, atol=1e-3)


def test_channel_norm_has_a_gradient_at_zero(key):
  x = jnp.zeros((2, 8))
  params = ChannelNorm().init(key, x)
  gradient = jax.grad(lambda x: ChannelNorm().apply(params, x).sum())(x)
  assert bool(jnp.all(jnp.isfinite(gradient)))


def test_modulate_gives_each_run_of_tokens_its_own_row():
  x = jnp.ones((1, 4, 2))
  shift = jnp.array([[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]])
  y = modulate(x, shift, jnp.ones_like(shift), ends=(1, 3))
  np.testing.assert_array_equal(y[0], [[2, 3], [4, 5], [4, 5], [6, 7]])
  y = modulate(x, shift[:, 1:2], jnp.ones((1, 1, 2)))
  np.testing.assert_array_equal(y[0], [[4, 5]] * 4)
  with pytest.raises(ValueError, match="3 modulations for 4 tokens in 2 runs"):
    modulate(x, shift, shift, ends=(1,))


def test_rms_norm_over_heads_equals_that_over_all_channels(key):
  x = jax.random.normal(key, (2, 3, 24))
  params = {"params": {"scale": jnp.arange(24.0)}}
  want = RMSNorm().apply(params, x)
  got = RMSNorm(axes=2).apply(params, x.reshape(2, 3, 4, 6))
  # 1e-6: sums in another order.
  np.testing.assert_allclose(got.reshape(2, 3, 24), want, rtol=1e-6)


def test_clean_tokens_are_at_timestep_zero():
  rows, ends = timestep_runs(jnp.array([5.0, 7.0]), 3)
  np.testing.assert_array_equal(rows, [[0, 5], [0, 7]])
  assert ends == (3,)
  rows, ends = timestep_runs(jnp.array([5.0, 7.0]), 0)
  assert rows.shape == (2, 1) and ends == ()
  with pytest.raises(ValueError, match="3 clean tokens beside a timestep for each"):
    timestep_runs(jnp.ones((2, 4)), 3)
