"""Small pipelines with random weights, as diffusers saves those of the published families.

The overrides beside each make its preset as narrow: what `d4s_jax.train` is given as --config.KEY.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import pytest

from tests.models.cogvideox_oracle import torch_autoencoder, torch_transformer
from tests.published_tokenizers import write_t5, write_umt5

_T5: dict[str, Any] = dict(
  vocab_size=384,
  d_model=16,
  d_kv=8,
  d_ff=16,
  num_layers=1,
  num_heads=2,
  feed_forward_proj="gated-gelu",
)
_TEXT_ENCODER = dict(vocabulary=384, dim=16, depth=1, heads=2, head_dim=8, ffn_dim=16)
_AUTOENCODER = dict(widths=(4, 4, 6, 6), z_dim=4, num_res_blocks=1, groups=2)
_TRANSFORMER = dict(heads=2, head_dim=16, depth=2)
# What the presets of CogVideoX don't have alike. Learned positions are of 5 x 32 x 32 pixels alone.
_VARIANTS: dict[str, dict[str, Any]] = {
  "cogvideox-2b": dict(positions="sine", grid=(2, 4, 4)),
  "cogvideox-5b-i2v": dict(positions="learned", grid=(2, 2, 2), takes_image=True),
  "cogvideox-1.5-5b": dict(patch=(2, 2, 2)),
}
PRESETS = ("wan1.3b", "wan2.2-5b-ti2v", *_VARIANTS)


def write(preset: str, folder: pathlib.Path) -> dict[str, Any]:
  """Leaves a pipeline in `folder`; returns the overrides of its preset, by key."""
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  parts, overrides = (_wan if preset.startswith("wan") else _cogvideox)(preset)
  for name, part in parts.items():
    if isinstance(part, torch.nn.Module):
      # diffusers makes tables of positions in double precision, and publishes none so.
      part.float()
    with torch.no_grad():
      for value in getattr(part, "parameters", list)():
        value.add_(0.05 * torch.randn_like(value))
    part.save_pretrained(folder / name)
  is_wan = preset.startswith("wan")
  (write_umt5 if is_wan else write_t5)(folder / "tokenizer")
  index: dict[str, Any] = {
    name: [type(part).__module__.partition(".")[0], type(part).__name__]
    for name, part in parts.items()
  }
  index |= {"_class_name": "WanPipeline" if is_wan else "CogVideoXPipeline"}
  index |= {"tokenizer": ["transformers", "T5TokenizerFast" if is_wan else "T5Tokenizer"]}
  (folder / "model_index.json").write_text(json.dumps(index))
  backbone = {"text_encoder": _TEXT_ENCODER, "text_length": _length(preset)} | overrides
  return {f"model.backbone.{key}": value for key, value in _flat(backbone)}


def _length(preset: str) -> int:
  """Tokens of a prompt: as published where each has its learnt position, else fewer."""
  return 226 if preset == "cogvideox-5b-i2v" else 24


def _flat(tree: dict[str, Any]):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from ((f"{key}.{inner}", x) for inner, x in _flat(value))
    else:
      yield key, value


def wan_transformer(**others: Any) -> Any:
  """A small transformer of Wan as diffusers has it; `others` replace its fields or add to them."""
  fields = dict(num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4)
  fields |= dict(text_dim=16, ffn_dim=32, num_layers=2)
  return _libraries()[0].WanTransformer3DModel(**fields | others)


def wan22_autoencoder(mean: Sequence[float], std: Sequence[float]) -> Any:
  """A small autoencoder of Wan 2.2 with as many channels as there are means."""
  sizes = dict(base_dim=4, decoder_base_dim=8, z_dim=len(mean), num_res_blocks=1)
  pixels = dict(patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=16)
  latents = dict(latents_mean=list(mean), latents_std=list(std))
  return _libraries()[0].AutoencoderKLWan(is_residual=True, **sizes, **pixels, **latents)


def _wan(preset: str) -> tuple[dict[str, Any], dict[str, Any]]:
  diffusers, transformers = _libraries()
  mean, std = (0.5, -0.25, 0.0, 0.125), (2.0, 1.0, 4.0, 0.5)
  autoencoder: dict[str, Any] = dict(base_dim=4, z_dim=4, num_res_blocks=1)
  autoencoder |= dict(latents_mean=mean, latents_std=std)
  if preset == "wan1.3b":
    vae = diffusers.AutoencoderKLWan(**autoencoder)
  else:
    vae = wan22_autoencoder(mean, std)
    autoencoder |= {"decoder_base_dim": 8}
  parts = {
    "transformer": wan_transformer(),
    "vae": vae,
    "text_encoder": transformers.UMT5EncoderModel(transformers.UMT5Config(**_T5)),
    "scheduler": diffusers.UniPCMultistepScheduler(
      prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    ),
  }
  transformer = dict(dim=32, ffn_dim=32, heads=2, depth=2)
  return parts, {"autoencoder": autoencoder, "transformer": transformer}


def _cogvideox(preset: str) -> tuple[dict[str, Any], dict[str, Any]]:
  diffusers, transformers = _libraries()
  variant = _VARIANTS[preset]
  name = "CogVideoXDPMScheduler" if preset == "cogvideox-5b-i2v" else "CogVideoXDDIMScheduler"
  scheduler = getattr(diffusers, name)
  shift, scale = (3.0, 1.15258426) if preset == "cogvideox-2b" else (1.0, 0.7)
  fields = _TRANSFORMER | variant | {"out_channels": 4, "text_length": _length(preset)}
  parts = {
    "transformer": torch_transformer(fields, text_dim=16),
    "vae": torch_autoencoder(_AUTOENCODER | {"scale": scale}, inverted="patch" in variant),
    "text_encoder": transformers.T5EncoderModel(transformers.T5Config(**_T5)),
    "scheduler": scheduler(
      prediction_type="v_prediction",
      rescale_betas_zero_snr=True,
      timestep_spacing="trailing",
      clip_sample=False,
      snr_shift_scale=shift,
    ),
  }
  # What the preset says already is not said again.
  grid = {"grid": variant["grid"]} if preset == "cogvideox-5b-i2v" else {}
  overrides = {"autoencoder": _AUTOENCODER, "transformer": _TRANSFORMER | grid}
  return parts, overrides


def _libraries() -> tuple[Any, Any]:
  return pytest.importorskip("diffusers"), pytest.importorskip("transformers")
