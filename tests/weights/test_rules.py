"""Tables of names: both directions are derived from one, and each table fits its model."""

import re

import numpy as np
import pytest

from d4s_jax.config import PRESETS
from d4s_jax.weights.components import COMPONENTS
from d4s_jax.weights.rules import Rule, dense, pairs

RULES = (
  *dense("blocks.{layer}.fc", "blocks/dense"),
  Rule("norms.{i}.gamma", "norm_{i}/scale", "c 1 -> c"),
)


def test_stacked_blocks_and_numbers_that_both_sides_have():
  found = pairs(RULES, {"blocks/dense/kernel": (2, 3, 4), "norm_11/scale": (5,)})
  assert [(x.torch, x.torch_shape, x.flax, x.row) for x in found] == [
    ("blocks.0.fc.weight", (4, 3), "blocks/dense/kernel", 0),
    ("blocks.1.fc.weight", (4, 3), "blocks/dense/kernel", 1),
    ("norms.11.gamma", (5, 1), "norm_11/scale", None),
  ]


def test_layouts_are_their_own_inverse():
  for pair in pairs(RULES, {"blocks/dense/kernel": (1, 3, 4), "norm_0/scale": (5,)}):
    x = np.random.default_rng(0).random(pair.torch_shape)
    np.testing.assert_array_equal(pair.to_torch(pair.to_flax(x)), x)
  assert pair.to_flax(x).shape == (5,)


def test_a_model_that_stores_a_kernel_in_two_ways_shares_a_table():
  rules = (
    Rule("proj.weight", "kernel", "o i s -> 1 s i o"),
    Rule("proj.weight", "kernel", "o (i t s) -> t s i o", {"t": 2}),
  )
  (convolution,) = pairs(rules, {"kernel": (1, 3, 4, 5)})
  assert convolution.torch_shape == (5, 4, 3)
  (flattened,) = pairs(rules, {"kernel": (2, 3, 4, 5)})
  assert flattened.torch_shape == (5, 24)
  x = np.arange(120).reshape(5, 24)
  np.testing.assert_array_equal(flattened.to_flax(x)[1, 2, 3], x[:, 3 * 6 + 1 * 3 + 2])
  np.testing.assert_array_equal(flattened.to_torch(flattened.to_flax(x)), x)
  with pytest.raises(LookupError, match="0 rules for kernel"):
    pairs(rules, {"kernel": (3, 3, 4, 5)})


@pytest.mark.parametrize("rules", [RULES[1:], RULES + RULES[:1]])
def test_a_parameter_with_no_rule_or_two_is_an_error(rules):
  with pytest.raises(LookupError, match="[02] rules for blocks/dense/kernel; expected one"):
    pairs(rules, {"blocks/dense/kernel": (2, 3, 4)})


def _published(preset):
  """What the config.json of a published size says, as far as it matters."""
  model = PRESETS[preset]["backbone"]
  transformer, text = model["transformer"], model["text_encoder"]
  return {
    "WanTransformer3DModel": dict(
      num_attention_heads=transformer["heads"],
      attention_head_dim=transformer["dim"] // transformer["heads"],
      ffn_dim=transformer["ffn_dim"],
      num_layers=transformer["depth"],
      in_channels=16,
      out_channels=16,
      patch_size=[1, 2, 2],
      freq_dim=256,
      text_dim=text["dim"],
    ),
    "UMT5EncoderModel": dict(
      vocab_size=text["vocabulary"],
      d_model=text["dim"],
      num_layers=text["depth"],
      num_heads=text["heads"],
      d_kv=text["head_dim"],
      d_ff=text["ffn_dim"],
      feed_forward_proj="gated-gelu",
    ),
  }


@pytest.mark.parametrize("preset", ["wan1.3b", "wan14b"])
def test_published_sizes_become_the_presets(preset):
  for name, config in _published(preset).items():
    component = COMPONENTS[name]
    fields = component.fields(config)
    expected = PRESETS[preset]["backbone"][component.part]
    assert {key: fields[key] for key in expected if key != "remat"} == {
      key: value for key, value in expected.items() if key != "remat"
    }
    table = pairs(component.rules, component.shapes(config, fields))
    assert len({pair.torch for pair in table}) == len(table)


# Those of CogVideoX are in test_cogvideox.py.
def _variants(name):
  """config.json and fields of models that together have all that a table names."""
  component, backbones = COMPONENTS[name], PRESETS["wan14b-i2v-480p"]["backbone"]
  if name == "AutoencoderKLWan":
    presets = ("wan1.3b", "wan2.2-5b-ti2v")
    return [({}, PRESETS[preset]["backbone"]["autoencoder"]) for preset in presets]
  if name.startswith("CLIP"):
    return [({}, backbones["image_encoder"] | {"projection_dim": 1024})]
  config = _published("wan1.3b")[name.replace("UMT5", "T5").replace("T5", "UMT5")]
  image = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 1536}
  kind = {"model_type": "t5" if name == "T5EncoderModel" else "umt5"}
  configs = [config, config | image] if name.startswith("Wan") else [config | kind]
  return [(config, component.fields(config)) for config in configs]


@pytest.mark.parametrize("name", [name for name in COMPONENTS if "CogVideoX" not in name])
def test_every_rule_names_something(name):
  """A rule that names nothing would be a misspelt one."""
  component, used = COMPONENTS[name], set()
  for config, fields in _variants(name):
    shapes = component.shapes(config, fields)
    used |= {re.sub(r"_\d+", "_0", pair.flax) for pair in pairs(component.rules, shapes)}
  unused = {re.sub(r"\{\w+\}", "0", rule.flax) for rule in component.rules} - used
  # The middle of the autoencoder keeps its width; T5 and umT5 share a table.
  unused = {path for path in unused if "middle/block_0/shortcut" not in path}
  assert unused <= ({"bias/table", "blocks/bias/table"} if "T5" in name else set())
