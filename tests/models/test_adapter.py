"""Low-rank adapters: what they add, where they are, and that a new one changes nothing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.config import base
from d4s_jax.models.backbone import Text, build
from d4s_jax.models.condition import Condition
from d4s_jax.training.state import flatten, unflatten
from tests.support import small_config

FAMILIES = {
  "wan": dict(family="wan", transformer=dict(dim=16, ffn_dim=24, heads=2, depth=2, remat="all")),
  "cogvideox": dict(
    family="cogvideox",
    schedule={},
    transformer=dict(heads=2, head_dim=16, depth=2),
    autoencoder=dict(widths=(4, 4), z_dim=4, num_res_blocks=1, temporal_levels=1, groups=2),
  ),
}
LORA = {"rank": 3, "scale": 0.5, "targets": base("tiny").model.lora.targets}


def make(family, **lora):
  config = small_config().model.backbone.to_dict() | {"camera_channels": 6} | FAMILIES[family]
  return build(config | {"lora": lora} if lora else config)


def draw(backbone):
  """Random parameters in which nothing is zero."""
  random = np.random.default_rng(0)

  def parameter(path, leaf):
    return jnp.asarray(0.2 * random.standard_normal(leaf.shape) + (path[-1].key == "scale"))

  shapes = jax.eval_shape(backbone.init, jax.random.key(0))
  return jax.tree_util.tree_map_with_path(
    parameter, {name: shapes[name] for name in ("transformer", "adapter")}
  )


def denoise(backbone, params):
  latents = jax.random.normal(jax.random.key(1), (1, 3, 4, 4, 4))
  text = Text(jax.random.normal(jax.random.key(2), (1, 5, 16)), jnp.ones((1, 5), bool))
  sigma, known = jnp.array([0.5]), Condition(latents[:, :1])
  return backbone.denoise(params, latents, sigma, text, None, known)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_adds_what_the_merged_kernel_would_and_a_new_one_changes_no_bit(family):
  plain, adapted = make(family), make(family, **LORA)
  params = draw(adapted)
  with_adapter = jax.jit(lambda x: denoise(adapted, x))
  without = jax.jit(lambda x: denoise(plain, x))

  flat, adapter = flatten(params["transformer"]), flatten(params["adapter"])
  for path in [path for path in adapter if path.endswith("/down")]:
    layer = path.removesuffix("/down")
    flat[f"{layer}/kernel"] += 0.5 * adapter[path] @ adapter[f"{layer}/up"]
  want, base_output = without({"transformer": unflatten(flat)}), without(params)
  # 2e-5: float32 sums in another order.
  np.testing.assert_allclose(with_adapter(params), want, atol=2e-5 * np.abs(want).max())
  assert np.abs(want - base_output).max() > 0.1 * np.abs(base_output).max()

  params["adapter"] = nn.unbox(adapted.adapter.boxed(jax.random.key(0), boxes(adapted)))
  np.testing.assert_array_equal(with_adapter(params), base_output)


def test_all_of_it_learns():
  backbone = make("wan", **LORA)
  params = draw(backbone)
  new = nn.unbox(backbone.adapter.boxed(jax.random.key(0), boxes(backbone)))

  def loss(adapter):
    return jnp.mean(denoise(backbone, params | {"adapter": adapter}) ** 2)

  gradient = jax.jit(jax.grad(loss))
  # At the start only `up` has a gradient, after a step `down` has one too, in every block.
  for path, value in flatten(gradient(new)).items():
    assert bool(jnp.any(value != 0)) == path.endswith("/up"), path
  for path, value in flatten(gradient(params["adapter"])).items():
    assert np.abs(value).reshape(2, -1).max(-1).min() > 0, path


def boxes(backbone):
  """The transformer's parameters in their boxes, abstract."""
  return jax.eval_shape(backbone.boxed, jax.random.key(0))["transformer"]


def test_axes_are_those_of_the_kernels_and_targets_are_chosen_by_path():
  backbone = make("wan", **LORA | {"targets": ("mlp_out$", "^text/in$")})
  found = flatten(jax.eval_shape(backbone.boxed, jax.random.key(0))["adapter"])
  assert {path: (x.names, x.value.shape) for path, x in found.items()} == {
    "blocks/mlp_out/down": (("layers", "mlp", None), (2, 24, 3)),
    "blocks/mlp_out/up": (("layers", None, "embed"), (2, 3, 16)),
    "text/in/down": ((None, None), (16, 3)),
    "text/in/up": ((None, "embed"), (3, 16)),
  }
  chosen = flatten(jax.eval_shape(make("wan", **LORA).boxed, jax.random.key(0))["adapter"])
  # Four projections of two attentions, two layers of the feed-forward network.
  assert len(chosen) == 2 * (2 * 4 + 2)
  bound = np.abs(
    nn.unbox(backbone.adapter.boxed(jax.random.key(0), boxes(backbone)))["blocks"]["mlp_out"][
      "down"
    ]
  )
  assert 0.8 * 24**-0.5 < bound.max() <= 24**-0.5


def test_without_rank_there_is_none():
  assert "adapter" not in jax.eval_shape(make("wan").init, jax.random.key(0))


@pytest.mark.parametrize(
  "change, message",
  [
    ({"targets": ("atention",)}, r"targets \['atention'\] match no layer.*blocks/mlp_in"),
    ({"targets": ()}, "match no layer"),
    ({"targets": ("patch_embedding",)}, "match patch_embedding; expected dense layers only"),
    ({"rank": -1}, "rank is -1; expected 0"),
  ],
)
def test_other_settings_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(make("wan", **LORA | change).init, jax.random.key(0))
