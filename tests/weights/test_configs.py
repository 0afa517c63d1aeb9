"""Published configurations pass; switches that we don't know do not."""

import inspect
import json

import pytest

from d4s_jax.weights import encoders
from d4s_jax.weights.components import COMPONENTS
from tests.weights.test_cogvideox import AUTOENCODERS, TRANSFORMERS

# As the published config.json files say it, with all that they carry along.
WAN = {
  "_class_name": "WanTransformer3DModel",
  "_diffusers_version": "0.33.0.dev0",
  "added_kv_proj_dim": None,
  "attention_head_dim": 128,
  "cross_attn_norm": True,
  "eps": 1e-06,
  "ffn_dim": 8960,
  "freq_dim": 256,
  "image_dim": None,
  "in_channels": 16,
  "num_attention_heads": 12,
  "num_layers": 30,
  "out_channels": 16,
  "patch_size": [1, 2, 2],
  "pos_embed_seq_len": None,
  "qk_norm": "rms_norm_across_heads",
  "rope_max_seq_len": 1024,
  "text_dim": 4096,
}
WAN_VAE = {
  "_class_name": "AutoencoderKLWan",
  "_diffusers_version": "0.33.0.dev0",
  "attn_scales": [],
  "base_dim": 96,
  "dim_mult": [1, 2, 4, 4],
  "dropout": 0.0,
  "latents_mean": [0.5] * 16,
  "latents_std": [2.0] * 16,
  "num_res_blocks": 2,
  "temperal_downsample": [False, True, True],
  "z_dim": 16,
}
WAN22_VAE = WAN_VAE | {
  "base_dim": 160,
  "decoder_base_dim": 256,
  "clip_output": False,
  "in_channels": 12,
  "out_channels": 12,
  "is_residual": True,
  "latents_mean": [0.5] * 48,
  "latents_std": [2.0] * 48,
  "patch_size": 2,
  "scale_factor_spatial": 16,
  "scale_factor_temporal": 4,
  "z_dim": 48,
}
WAN_I2V = WAN | {
  "added_kv_proj_dim": 5120,
  "ffn_dim": 13824,
  "image_dim": 1280,
  "in_channels": 36,
  "num_attention_heads": 40,
  "num_layers": 40,
}
UMT5 = {
  "architectures": ["UMT5EncoderModel"],
  "classifier_dropout": 0.0,
  "d_ff": 10240,
  "d_kv": 64,
  "d_model": 4096,
  "decoder_start_token_id": 0,
  "dense_act_fn": "gelu_new",
  "dropout_rate": 0.1,
  "eos_token_id": 1,
  "feed_forward_proj": "gated-gelu",
  "initializer_factor": 1.0,
  "is_encoder_decoder": True,
  "is_gated_act": True,
  "layer_norm_epsilon": 1e-06,
  "model_type": "umt5",
  "num_decoder_layers": 24,
  "num_heads": 64,
  "num_layers": 24,
  "output_past": True,
  "pad_token_id": 0,
  "relative_attention_max_distance": 128,
  "relative_attention_num_buckets": 32,
  "scalable_attention": True,
  "tie_word_embeddings": False,
  "tokenizer_class": "T5Tokenizer",
  "torch_dtype": "float32",
  "transformers_version": "4.49.0",
  "use_cache": True,
  "vocab_size": 256384,
}
T5 = UMT5 | {
  "_name_or_path": "google/t5-v1_1-xxl",
  "architectures": ["T5EncoderModel"],
  "model_type": "t5",
  "n_positions": 512,
  "task_specific_params": {"summarization": {"max_length": 200, "num_beams": 4}},
  "vocab_size": 32128,
}
CLIP = {
  "_name_or_path": "laion/CLIP-ViT-H-14",
  "architectures": ["CLIPVisionModel"],
  "attention_dropout": 0.0,
  "dropout": 0.0,
  "hidden_act": "gelu",
  "hidden_size": 1280,
  "image_size": 224,
  "initializer_factor": 1.0,
  "initializer_range": 0.02,
  "intermediate_size": 5120,
  "layer_norm_eps": 1e-05,
  "model_type": "clip_vision_model",
  "num_attention_heads": 16,
  "num_channels": 3,
  "num_hidden_layers": 32,
  "patch_size": 14,
  "projection_dim": 1024,
  "torch_dtype": "float32",
  "transformers_version": "4.49.0",
}
PUBLISHED = {
  **{"wan": WAN, "wan i2v": WAN_I2V, "vae": WAN_VAE, "vae22": WAN22_VAE, "umt5": UMT5, "t5": T5},
  "clip": CLIP,
}


def _fields(config):
  name = config.get("_class_name") or config["architectures"][0]
  # As it is read from a file.
  return COMPONENTS[name].fields(json.loads(json.dumps(config)))


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_published_configurations_pass(config):
  assert _fields(config)


# Keys that versions of diffusers added after the first files were published.
LATER = {
  "WanTransformer3DModel": ["pos_embed_seq_len", "image_dim", "added_kv_proj_dim"],
  "AutoencoderKLWan": [
    *("decoder_base_dim", "is_residual", "in_channels", "out_channels", "patch_size"),
    *("scale_factor_temporal", "scale_factor_spatial"),
  ],
  "CogVideoXTransformer3DModel": [
    *("ofs_embed_dim", "patch_size_t", "patch_bias", "use_learned_positional_embeddings"),
    *("temporal_interpolation_scale", "spatial_interpolation_scale"),
  ],
  "AutoencoderKLCogVideoX": [
    *("invert_scale_latents", "latents_mean", "latents_std", "shift_factor"),
    *("use_quant_conv", "use_post_quant_conv", "force_upcast"),
  ],
}


@pytest.mark.parity
@pytest.mark.parametrize("name", LATER)
def test_every_key_that_diffusers_registers_is_known(name):
  diffusers = pytest.importorskip("diffusers")
  parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
  registered = {key: x.default for key, x in parameters.items() if key != "self"}
  config = {"_class_name": name, "_diffusers_version": diffusers.__version__} | registered
  fields = _fields(config)
  # No key is told from an unknown one by its value.
  for key in registered:
    assert _is_known(config, key), key
  # What is not in the oldest files means what diffusers takes it for.
  for key in LATER[name]:
    assert _fields({x: y for x, y in config.items() if x != key}) == fields, key


def _is_known(config, key):
  """Whether a key may have, or is refused by name for, a value of no model."""
  try:
    _fields(config | {key: "strange"})
  except ValueError as error:
    return f"{key!r} is 'strange', which our" not in str(error)
  return True


# Values of what no result depends on.
ASIDE = {
  "wan": (WAN, dict(rope_max_seq_len=2048)),
  "vae": (WAN_VAE, dict(dropout=0.1, clip_output=False)),
  "cogvideox": (TRANSFORMERS["cogvideox-5b"], dict(dropout=0.1, spatial_interpolation_scale=1.0)),
  "cogvideox vae": (
    AUTOENCODERS["cogvideox-5b"],
    dict(sample_height=768, sample_width=1360, force_upcast=False),
  ),
  "umt5": (
    UMT5,
    dict(dropout_rate=0.3, tokenizer_class="T5TokenizerFast", dtype="bfloat16", torch_dtype=None)
    | dict(_attn_implementation_autoset=True, use_bfloat16=True, gradient_checkpointing=True)
    | dict(num_decoder_layers=3, id2label={"0": "LABEL_0"}, max_length=20, pruned_heads={}),
  ),
  "clip": (CLIP, dict(projection_dim=3, initializer_range=0.5, output_attentions=True)),
}


@pytest.mark.parametrize(("config", "change"), ASIDE.values(), ids=ASIDE)
def test_what_no_result_depends_on_refuses_nothing(config, change):
  assert _fields(config | change) == _fields(config)


@pytest.mark.parity
@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("T5Config", dict(architectures=["T5EncoderModel"], feed_forward_proj="gated-gelu")),
    ("UMT5Config", dict(architectures=["UMT5EncoderModel"])),
    ("CLIPVisionConfig", dict(architectures=["CLIPVisionModel"], hidden_act="gelu")),
    (
      "CLIPVisionConfig",
      dict(architectures=["CLIPVisionModelWithProjection"], hidden_act="gelu"),
    ),
  ],
)
def test_every_key_that_transformers_writes_is_known(name, said):
  transformers = pytest.importorskip("transformers")
  config = getattr(transformers, name)(**said).to_dict()
  assert _fields(config)
  for key in config.keys() - {"architectures"}:
    # That of a decoder is true, or refused.
    assert _is_known(config, key) or key == "is_decoder", key


@pytest.mark.parity
@pytest.mark.parametrize("name", ["CLIPConfig", "ViTConfig"])
def test_what_evaluation_looks_with_may_say_all_that_transformers_writes(name, tmp_path):
  transformers = pytest.importorskip("transformers")
  said = dict(architectures=[name.replace("Config", "Model")])
  config = getattr(transformers, name)(**said).to_dict()
  (tmp_path / "config.json").write_text(json.dumps(config))
  read = encoders.read_clip if name == "CLIPConfig" else encoders.read_dino
  with pytest.raises(FileNotFoundError, match="model.safetensors"):
    read(tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize("config", [UMT5, T5, CLIP], ids=["umt5", "t5", "clip"])
def test_what_transformers_makes_of_them_passes_too(config, tmp_path):
  transformers = pytest.importorskip("transformers")
  kind = {"umt5": "UMT5Config", "t5": "T5Config", "clip_vision_model": "CLIPVisionConfig"}
  made = getattr(transformers, kind[config["model_type"]])(**config)
  # All keys that it has, and those alone that it would write.
  assert _fields(made.to_dict()) == _fields(config)
  made.save_pretrained(tmp_path)
  assert _fields(json.loads((tmp_path / "config.json").read_text())) == _fields(config)


@pytest.mark.parity
@pytest.mark.parametrize("config", [WAN, WAN_VAE, WAN22_VAE], ids=["wan", "vae", "vae22"])
def test_what_diffusers_makes_of_them_passes_too(config):
  diffusers = pytest.importorskip("diffusers")
  torch = pytest.importorskip("torch")
  with torch.device("meta"):
    made = getattr(diffusers, config["_class_name"]).from_config(config)
  assert _fields(json.loads(made.to_json_string())) == _fields(config)


REFUSED = {
  "attention": (WAN, dict(new_gated_attention=True), "'new_gated_attention' is True, which our"),
  "positions": (WAN, dict(rope_theta=500.0), "'rope_theta' is 500.0, which our model doesn't"),
  "window": (WAN, dict(window_size=[4, 4]), r"window_size is \[4, 4\]"),
  "quantised": (WAN, dict(quantization_config={"bits": 4}), "'quantization_config' is"),
  "one for true": (WAN, dict(cross_attn_norm=1), "cross_attn_norm is 1, and our"),
  "vae": (WAN_VAE, dict(mid_block_attention=True), "'mid_block_attention' is True"),
  "many levels": (WAN_VAE, dict(dim_mult=[1] * 16), "dim_mult: a list of 16; expected"),
  "many blocks": (WAN_VAE, dict(num_res_blocks=8), "dim_mult and num_res_blocks make 32; expected"),
  "time": (WAN_VAE, dict(scale_factor_temporal=8), "scale_factor_temporal is 8, .* only 4"),
  "space": (WAN22_VAE, dict(scale_factor_spatial=8), "scale_factor_spatial is 8, .* only 16"),
  "no key": (
    WAN_VAE,
    dict(dim_mult=[1, 2, 4], temperal_downsample=[True, True]),
    "is 8, .* only 4",
  ),
  "one for residual": (WAN_VAE, dict(is_residual=1), "is_residual is 1; expected true or false"),
  "activation": (T5, dict(dense_act_fn="silu"), "dense_act_fn is 'silu'"),
  "not gated": (UMT5, dict(is_gated_act=False), "is_gated_act is False"),
  "scaled": (UMT5, dict(scale_attention=True), "'scale_attention' is True"),
  "rotary": (CLIP, dict(use_rope=True), "'use_rope' is True"),
}


@pytest.mark.parametrize(("config", "change", "message"), REFUSED.values(), ids=REFUSED)
def test_models_that_ours_are_not_are_refused(config, change, message):
  with pytest.raises(ValueError, match=message):
    _fields(config | change)


_SECTION = {
  name: CLIP[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
} | {"intermediate_size": 5120, "hidden_act": "gelu", "projection_dim": 512}
# As OpenAI's were written once: some of it twice, and how texts would be generated.
_GENERATION = dict(max_length=20, num_beams=1, temperature=1.0, top_k=50, top_p=1.0, typical_p=1.0)
BOTH = {
  "architectures": ["CLIPModel"],
  "logit_scale_init_value": 2.6592,
  "projection_dim": 1024,
  "text_config": _SECTION | _GENERATION | {"vocab_size": 49408, "max_position_embeddings": 77},
  "text_config_dict": {"hidden_size": 1280, "hidden_act": "gelu"},
  "vision_config": _SECTION | _GENERATION | {"image_size": 224, "patch_size": 14},
  "vision_config_dict": None,
}


def _read_clip(folder, change):
  (folder / "config.json").write_text(json.dumps(BOTH | change))
  encoders.read_clip(folder)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(fancy=3), "'fancy' is 3"),
    (dict(text_config=BOTH["text_config"] | {"rope": True}), "'rope' is True"),
    (dict(vision_config=BOTH["vision_config"] | {"windows": 2}), "'windows' is 2"),
    (dict(text_config_dict={"hidden_act": "quick_gelu"}), "text_config_dict is .*quick_gelu"),
    (dict(vision_config_dict=[[1]]), "vision_config_dict is"),
  ],
)
def test_clip_of_both_kinds_is_read_as_strictly(change, message, tmp_path):
  # All is well with it but that there are no weights.
  with pytest.raises(FileNotFoundError, match="model.safetensors"):
    _read_clip(tmp_path, {})
  with pytest.raises(ValueError, match=f"config.json: .*{message}"):
    _read_clip(tmp_path, change)


def test_sizes_of_no_model_are_refused_by_name(tmp_path):
  config = {**_SECTION, "architectures": ["ViTModel"], "hidden_act": "gelu", "qkv_bias": True}
  config |= dict(image_size=2**14, patch_size=1, hidden_size=2**14, layer_norm_eps=1e-12)
  del config["projection_dim"]
  (tmp_path / "config.json").write_text(json.dumps(config))
  (tmp_path / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
  with pytest.raises(ValueError, match=f"{tmp_path}.*positions would have"):
    encoders.read_dino(tmp_path)


def test_dino_is_read_as_strictly(tmp_path):
  config = {"architectures": ["ViTModel"], "hidden_act": "gelu", "qkv_bias": True, **_SECTION}
  config |= dict(image_size=224, patch_size=16, layer_norm_eps=1e-12, encoder_stride=16)
  del config["projection_dim"]
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(FileNotFoundError, match="model.safetensors"):
    encoders.read_dino(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps(config | {"register_tokens": 4}))
  with pytest.raises(ValueError, match="config.json: 'register_tokens' is 4, which our model"):
    encoders.read_dino(tmp_path)
