"""Every autoencoder in chunks of time: the same as the whole clip at once, in less memory."""

import functools

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.config import PRESETS
from d4s_jax.models.cogvideox.autoencoder import CogVideoXAutoencoder
from d4s_jax.models.wan.autoencoder import WanAutoencoder

_WAN = dict(base_dim=4, z_dim=3, num_res_blocks=1, dim_mult=(1, 2, 2))
MODELS = {
  "wan2.1": WanAutoencoder(**_WAN, temporal_downsample=(True, True)),
  "wan2.2": WanAutoencoder(
    **_WAN, temporal_downsample=(False, True), decoder_base_dim=8, patch=2, residual=True
  ),
  "cogvideox": CogVideoXAutoencoder(widths=(4, 6), z_dim=3, num_res_blocks=1, groups=2),
}


# One of each kind of model, and each direction; the others are slow.
_QUICK = {("wan2.1", "encode"), ("wan2.2", "decode"), ("cogvideox", "decode")}


@functools.cache
def _variables(name):
  module, random = MODELS[name], np.random.default_rng(0)
  shapes = nn.unbox(
    jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 5, *_size(name), 3)))
  )

  def draw(path, x):
    noise = random.normal(0, np.prod(x.shape[:-1]) ** -0.5 if x.ndim > 1 else 0.2, x.shape)
    return jnp.asarray(noise + (path[-1].key == "scale"), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def _size(name, rows=1, columns=2):
  _, height, width = MODELS[name].strides
  return rows * height, columns * width


def _apply(module, method, variables, x):
  out = module.apply(variables, x, method=method)
  return out[0] if method == "encode" else out


def _input(name, method, latents, batch=1, rows=1):
  random, module = np.random.default_rng(latents), MODELS[name]
  if method == "decode":
    return jnp.asarray(random.normal(size=(batch, latents, rows, 2, module.z_dim)), jnp.float32)
  frames = 1 + module.strides[0] * (latents - 1)
  shape = (batch, frames, *_size(name, rows), 3)
  return jnp.asarray(random.uniform(-1, 1, shape), jnp.float32)


def _assert_equal(got, want, units=32):
  """Equal but for so many times the spacing of numbers of that type.

  Convolutions and attention are equal to the last bit whatever the number of frames; XLA sums
  normalisations of few numbers by other code, in another order, than those of many. That is half a
  unit in the last place each, through some twenty of them.
  """
  spacing = np.finfo(want.dtype).eps
  np.testing.assert_allclose(got, want, rtol=0, atol=units * spacing * max(1.0, np.abs(want).max()))


_KINDS = [
  pytest.param(name, method, marks=[] if (name, method) in _QUICK else pytest.mark.slow)
  for name in MODELS
  for method in ("encode", "decode")
]


@pytest.mark.parametrize(("name", "method"), _KINDS)
def test_chunks_equal_the_whole(name, method):
  whole, variables = MODELS[name], _variables(name)
  # Latents that the chunks don't divide: the first one is longer.
  x = _input(name, method, 7)
  want = jax.jit(functools.partial(_apply, whole, method))(variables, x)
  _assert_equal(
    jax.jit(functools.partial(_apply, whole.clone(chunk=2), method))(variables, x), want
  )


@pytest.mark.parametrize(("name", "method"), _KINDS)
def test_values_and_gradients_are_the_same_formula(name, method, monkeypatch):
  # In double precision, where the order of sums changes a billionth of what it does in single:
  # whatever else chunks changed would be seen.
  monkeypatch.setattr(jnp, "float32", jnp.float64)
  with jax.enable_x64(True):
    whole = MODELS[name].clone(dtype=jnp.float64)
    variables, x = jax.tree.map(
      lambda x: jnp.asarray(x, jnp.float64), (_variables(name), _input(name, method, 7))
    )

    def run(module, variables, x):
      def objective(variables, x):
        out = _apply(module, method, variables, x)
        return jnp.sum(jnp.sin(out)), out

      (_, out), gradients = jax.value_and_grad(objective, (0, 1), has_aux=True)(variables, x)
      return out, gradients

    want = jax.jit(functools.partial(run, whole))(variables, x)
    got = jax.jit(functools.partial(run, whole.clone(chunk=2)))(variables, x)
  assert want[0].dtype == jnp.float64
  _assert_equal(got[0], want[0])
  for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
    # Sums over all pixels and frames besides.
    _assert_equal(a, b, units=1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@hypothesis.settings(max_examples=15)
@hypothesis.given(
  latents=st.integers(1, 6), batch=st.integers(1, 3), rows=st.integers(1, 3), more=st.booleans()
)
def test_clips_of_every_shape_are_the_same_in_chunks(name, latents, batch, rows, more):
  whole, variables = MODELS[name], _variables(name)
  chunk = (2 if name == "cogvideox" else 1) * (1 + more)
  for method in ("encode", "decode"):
    x = _input(name, method, latents, batch, rows)
    got = jax.jit(functools.partial(_apply, whole.clone(chunk=chunk), method))(variables, x)
    _assert_equal(got, jax.jit(functools.partial(_apply, whole, method))(variables, x))


@pytest.mark.parametrize("name", MODELS)
def test_chunks_take_the_memory_of_a_chunk(name):
  whole, variables = MODELS[name], _variables(name)

  def temporary(module):
    x = _input(name, "decode", 17, rows=8)
    compiled = jax.jit(functools.partial(_apply, module, "decode")).lower(variables, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # Of 17 latents the first chunk has three; the result is held twice while it is put together.
  assert 2 * temporary(whole.clone(chunk=2)) < temporary(whole)


def test_a_chunk_of_cogvideox_that_cuts_its_norms_is_refused():
  module = MODELS["cogvideox"].clone(chunk=3)
  with pytest.raises(ValueError, match="chunk is 3; expected a multiple of 2 latents"):
    jax.eval_shape(
      functools.partial(_apply, module, "decode"),
      _variables("cogvideox"),
      _input("cogvideox", "decode", 7),
    )


def test_full_sizes_run_in_chunks_as_published():
  for name, preset in PRESETS.items():
    want = {"tiny": 0}.get(name, 2 if name.startswith("cogvideox") else 1)
    assert preset["backbone"]["autoencoder"]["chunk"] == want
