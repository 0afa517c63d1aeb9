"""CogVideoX's tables and configurations, at the published sizes and in every variant."""

import functools
import json
import re

import pytest

from d4s_jax.config import PRESETS
from d4s_jax.models.backbone import build
from d4s_jax.weights.components import COMPONENTS
from d4s_jax.weights.rules import pairs

# What the published config.json files say; the first ones were written before there were more keys.
_FIRST = {
  "_class_name": "CogVideoXTransformer3DModel",
  "_diffusers_version": "0.30.0.dev0",
  "activation_fn": "gelu-approximate",
  "attention_bias": True,
  "attention_head_dim": 64,
  "dropout": 0.0,
  "flip_sin_to_cos": True,
  "freq_shift": 0,
  "in_channels": 16,
  "max_text_seq_length": 226,
  "norm_elementwise_affine": True,
  "norm_eps": 1e-05,
  "num_attention_heads": 30,
  "num_layers": 30,
  "out_channels": 16,
  "patch_size": 2,
  "sample_frames": 49,
  "sample_height": 60,
  "sample_width": 90,
  "spatial_interpolation_scale": 1.875,
  "temporal_compression_ratio": 4,
  "temporal_interpolation_scale": 1.0,
  "text_embed_dim": 4096,
  "time_embed_dim": 512,
  "timestep_activation_fn": "silu",
  "use_rotary_positional_embeddings": False,
}
_5B = _FIRST | dict(num_attention_heads=48, num_layers=42, use_rotary_positional_embeddings=True)
_LATER = dict(use_learned_positional_embeddings=False, ofs_embed_dim=None)
_15 = _5B | _LATER
_15 |= dict(sample_frames=81, sample_height=300, sample_width=300)
_15 |= dict(patch_size_t=2, patch_bias=False)
TRANSFORMERS = {
  "cogvideox-2b": _FIRST,
  "cogvideox-5b": _5B,
  "cogvideox-5b-i2v": _5B | dict(in_channels=32, use_learned_positional_embeddings=True),
  "cogvideox-1.5-5b": _15,
  "cogvideox-1.5-5b-i2v": _15 | dict(in_channels=32, ofs_embed_dim=512),
}
_VAE = {
  "_class_name": "AutoencoderKLCogVideoX",
  "_diffusers_version": "0.30.0.dev0",
  "act_fn": "silu",
  "block_out_channels": [128, 256, 256, 512],
  "down_block_types": ["CogVideoXDownBlock3D"] * 4,
  "force_upcast": True,
  "in_channels": 3,
  "latent_channels": 16,
  "latents_mean": None,
  "latents_std": None,
  "layers_per_block": 3,
  "norm_eps": 1e-06,
  "norm_num_groups": 32,
  "out_channels": 3,
  "sample_height": 480,
  "sample_width": 720,
  "scaling_factor": 1.15258426,
  "shift_factor": None,
  "temporal_compression_ratio": 4,
  "up_block_types": ["CogVideoXUpBlock3D"] * 4,
  "use_post_quant_conv": False,
  "use_quant_conv": False,
}
AUTOENCODERS = {
  "cogvideox-2b": _VAE,
  "cogvideox-5b": _VAE | dict(scaling_factor=0.7),
  "cogvideox-5b-i2v": _VAE | dict(scaling_factor=0.7, invert_scale_latents=False),
  "cogvideox-1.5-5b": _VAE | dict(scaling_factor=0.7, invert_scale_latents=True),
  "cogvideox-1.5-5b-i2v": _VAE | dict(scaling_factor=0.7, invert_scale_latents=True),
}
_T5 = {
  "architectures": ["T5EncoderModel"],
  "model_type": "t5",
  "vocab_size": 32128,
  "d_model": 4096,
  "num_layers": 24,
  "num_heads": 64,
  "d_kv": 64,
  "d_ff": 10240,
  "feed_forward_proj": "gated-gelu",
  "layer_norm_epsilon": 1e-06,
}
CASES = [
  *((preset, "transformer", config) for preset, config in TRANSFORMERS.items()),
  *((preset, "autoencoder", config) for preset, config in AUTOENCODERS.items()),
  ("cogvideox-2b", "text_encoder", _T5),
]
IDS = [f"{preset}-{part}" for preset, part, _ in CASES]


def _component(config):
  return COMPONENTS[config.get("_class_name") or config["architectures"][0]]


def _shapes(config):
  # These two change no shape.
  same = {"scaling_factor": 1.0, "invert_scale_latents": False}
  return _shapes_of(json.dumps(config | {key: same[key] for key in same if key in config}))


@functools.cache
def _shapes_of(text):
  config = json.loads(text)
  component = _component(config)
  return component.shapes(config, component.fields(config))


def _table(config):
  return pairs(_component(config).rules, _shapes(config))


def _module(preset, part):
  return getattr(build(PRESETS[preset]["backbone"] | {"camera_channels": 6}), part)


@pytest.mark.parametrize(("preset", "part", "config"), CASES, ids=IDS)
def test_published_sizes_become_the_presets(preset, part, config):
  fields = _component(config).fields(config)
  module = _module(preset, part)
  assert {name: getattr(module, name) for name in fields} == fields
  left = {name for name in PRESETS[preset]["backbone"][part] if name not in fields}
  # How to compute, not what.
  assert left <= {"remat", "chunk"}


@pytest.mark.parametrize(("preset", "part", "config"), CASES, ids=IDS)
def test_the_configuration_that_we_write_says_the_same(preset, part, config):
  component = _component(config)
  fields = component.fields(config)
  shapes = _shapes(config)
  ours = json.loads(json.dumps(component.config(component.module(**fields), shapes)))
  again = component.fields(ours)
  assert again == fields
  assert _shapes(ours) == shapes
  assert {name: ours[name] for name in ours if name in config} == {
    name: config[name] for name in ours if name in config
  }


@pytest.mark.parity
@pytest.mark.parametrize(("preset", "part", "config"), CASES, ids=IDS)
def test_full_sizes_have_the_tensors_of_diffusers(preset, part, config):
  del preset
  torch = pytest.importorskip("torch")
  with torch.device("meta"):
    if part == "text_encoder":
      transformers = pytest.importorskip("transformers")
      model = transformers.T5EncoderModel(transformers.T5Config(**config))
    else:
      diffusers = pytest.importorskip("diffusers")
      model = getattr(diffusers, config["_class_name"]).from_config(config)
  theirs = {name: tuple(x.shape) for name, x in model.state_dict().items()}
  theirs.pop("encoder.embed_tokens.weight", None)  # The same tensor twice.
  table = _table(config)
  assert {pair.torch: pair.torch_shape for pair in table} == theirs
  assert len(table) == len(theirs)


def test_every_rule_names_something():
  """A rule that names nothing would be a misspelt one."""
  for part in (TRANSFORMERS, AUTOENCODERS):
    used = {pair.flax for config in part.values() for pair in _table(config)}
    used = {re.sub(r"_\d+", "_0", path) for path in used}
    rules = _component(part["cogvideox-2b"]).rules
    assert {re.sub(r"\{\w+\}", "0", rule.flax) for rule in rules} == used


REFUSED = {
  "activation": (dict(activation_fn="geglu"), "activation_fn is 'geglu'"),
  "no bias": (dict(attention_bias=False, norm_eps=1e-6), "attention_bias is False.*; norm_eps"),
  "flipped": (dict(flip_sin_to_cos=False, freq_shift=1), "flip_sin_to_cos.*; freq_shift is 1"),
  "control": (dict(in_channels=33), "in_channels is 33, and our model has only 16"),
  "three frames": (dict(patch_size_t=3), "patch_size_t is 3, and our model has only None"),
  "one frame": (dict(patch_size_t=1), "patch_size_t is 1, and our model has only None"),
  "patch bias": (dict(patch_bias=False), "patch_bias is False"),
  "learned alone": (
    dict(use_learned_positional_embeddings=True, use_rotary_positional_embeddings=False),
    "use_rotary_positional_embeddings is False",
  ),
  "no flag": (dict(use_rotary_positional_embeddings="yes"), "is 'yes'; expected true or false"),
  "one for true": (
    dict(use_rotary_positional_embeddings=1),
    "use_rotary_positional_embeddings is 1; expected true or false",
  ),
  "offset": (dict(ofs_embed_dim=64), "ofs_embed_dim is 64, and our model has only None"),
  "unknown": (dict(use_fancy=True, dim_x=3), "'use_fancy' is True, which our.*; 'dim_x' is 3"),
  "many positions": (
    dict(
      sample_frames=4096,
      sample_height=4096,
      sample_width=4096,
      use_learned_positional_embeddings=True,
    ),
    "sample_frames, sample_height and sample_width make 4294967296; expected at most 262144",
  ),
  "far positions": (dict(sample_height=65536), "sample_height: 65536; expected .* 1 to 4096"),
  "many frames": (dict(sample_frames=10**9), "sample_frames: 1000000000; expected"),
  "interpolation": (
    dict(spatial_interpolation_scale=1.0, use_rotary_positional_embeddings=False),
    "spatial_interpolation_scale is 1.0",
  ),
  "frames a latent": (
    dict(temporal_compression_ratio=8, use_learned_positional_embeddings=True),
    "temporal_compression_ratio is 8",
  ),
  "sizes": (dict(text_embed_dim="a", num_layers=0), "num_layers: 0.*; text_embed_dim: 'a'"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_transformers_that_ours_is_not_are_refused(change, message):
  config = TRANSFORMERS["cogvideox-5b"] | change
  with pytest.raises(ValueError, match=message):
    _component(config).fields(config)


REFUSED_AUTOENCODERS = {
  "blocks": (dict(down_block_types=["DownEncoderBlock2D"] * 4), "down_block_types"),
  "normalised": (dict(latents_mean=[0.0], shift_factor=1), "shift_factor is 1.*; latents_mean"),
  "quantised": (dict(use_quant_conv=True), "use_quant_conv is True"),
  "many levels": (dict(block_out_channels=[32] * 16), "block_out_channels: a list of 16"),
  "many blocks": (dict(layers_per_block=8), "layers_per_block make 32; expected at most 24"),
  "ratio": (dict(temporal_compression_ratio=3), "temporal_compression_ratio is 3"),
  "list": (dict(temporal_compression_ratio=[4]), r"temporal_compression_ratio is \[4\]"),
  "scale": (dict(scaling_factor=0.0), "scaling_factor: 0.0; expected a number above 0"),
  "eps": (dict(norm_eps=1e-5, act_fn="relu"), "act_fn is 'relu'.*; norm_eps"),
  "unknown": (dict(mid_block_attention=True), "'mid_block_attention' is True"),
}


@pytest.mark.parametrize(
  ("change", "message"), REFUSED_AUTOENCODERS.values(), ids=REFUSED_AUTOENCODERS
)
def test_autoencoders_that_ours_is_not_are_refused(change, message):
  config = AUTOENCODERS["cogvideox-5b"] | change
  with pytest.raises(ValueError, match=message):
    _component(config).fields(config)


def test_a_switch_that_is_off_and_that_we_do_not_know_is_no_objection():
  config = TRANSFORMERS["cogvideox-5b"] | dict(use_fancy=False, fancy_dim=None, _name="anything")
  assert _component(config).fields(config) == _component(_5B).fields(_5B)
