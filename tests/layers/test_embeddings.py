import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.layers import embeddings
from d4s_jax.layers.embeddings import apply_rotary, rotary_3d, sinusoidal


def test_sinusoidal_is_cosines_then_sines():
  got = sinusoidal(jnp.array([[0.0, 3.0]]), 4)
  want = [[1, 1, 0, 0], [np.cos(3), np.cos(0.03), np.sin(3), np.sin(0.03)]]
  # 1e-6: float32 angles.
  np.testing.assert_allclose(got[0], want, atol=1e-6)


def test_rotary_shares_channels_between_axes():
  cos, sin = rotary_3d(2, 3, 4, head_dim=48)
  assert cos.shape == sin.shape == (24, 24)
  angles = np.arctan2(sin, cos).reshape(2, 3, 4, 24)
  # The first channel of each axis turns by one radian a step.
  np.testing.assert_allclose(
    angles[1, 0, 0], np.r_[1e4 ** (-np.arange(8) / 8), [0] * 16], atol=1e-6
  )
  np.testing.assert_allclose(angles[0, 2, 0, 8:10], [2, 2 * 1e4 ** (-1 / 8)], atol=1e-6)
  np.testing.assert_allclose(angles[0, 0, 3, 16], 3, atol=1e-6)


def test_rotary_keeps_lengths_and_sees_only_differences(key):
  cos, sin = rotary_3d(1, 1, 6, head_dim=12)
  q, k = jax.random.normal(key, (2, 1, 1, 1, 12))
  q, k = (jnp.broadcast_to(x, (1, 6, 1, 12)) for x in (q, k))
  turned_q, turned_k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
  # 1e-5: float32 rotations.
  np.testing.assert_allclose(
    jnp.linalg.norm(turned_q, axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-5
  )
  products = np.einsum("nd,md->nm", turned_q[0, :, 0], turned_k[0, :, 0])
  np.testing.assert_allclose(products[1:, 1:], products[:-1, :-1], atol=1e-5)
  assert np.ptp(products[0]) > 0.01


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_form_for_tpus_rotates_alike(dtype, key, monkeypatch):
  cos, sin = rotary_3d(2, 2, 3, head_dim=16)
  x = jax.random.normal(key, (2, 12, 3, 16)).astype(dtype)
  want = apply_rotary(x, cos, sin)
  monkeypatch.setattr(embeddings, "platform", lambda: "tpu")
  got = apply_rotary(x, cos, sin)
  assert got.dtype == dtype
  # 1e-6: float32 may keep the products of a sum unrounded. In bfloat16 that is a last bit at most.
  tolerance = 1e-6 if dtype == jnp.float32 else 2**-7
  np.testing.assert_allclose(*(np.asarray(y, np.float32) for y in (got, want)), tolerance, 1e-6)


@pytest.mark.parametrize("head_dim", [4, 15])
def test_heads_too_small_or_odd_are_refused(head_dim):
  with pytest.raises(ValueError, match=f"{head_dim} can't hold"):
    rotary_3d(1, 2, 2, head_dim)
