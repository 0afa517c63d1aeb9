"""CogVideoX in diffusers: models of our configurations, and their weights in our layout."""

import functools
import re

import numpy as np
import pytest

# Ours to those of diffusers; a leading "blocks/" is a stack over layers.
TRANSFORMER_NAMES = {
  "patch_embedding": "patch_embed.proj",
  "text": "patch_embed.text_proj",
  "time/in": "time_embedding.linear_1",
  "time/out": "time_embedding.linear_2",
  "offset/in": "ofs_embedding.linear_1",
  "offset/out": "ofs_embedding.linear_2",
  "norm": "norm_final",
  "head_modulation": "norm_out.linear",
  "head_norm": "norm_out.norm",
  "head": "proj_out",
  "blocks/attention_norm/modulation": "norm1.linear",
  "blocks/attention_norm/norm": "norm1.norm",
  "blocks/attention/query": "attn1.to_q",
  "blocks/attention/key": "attn1.to_k",
  "blocks/attention/value": "attn1.to_v",
  "blocks/attention/out": "attn1.to_out.0",
  "blocks/attention/query_norm": "attn1.norm_q",
  "blocks/attention/key_norm": "attn1.norm_k",
  "blocks/mlp_norm/modulation": "norm2.linear",
  "blocks/mlp_norm/norm": "norm2.norm",
  "blocks/mlp_in": "ff.net.0.proj",
  "blocks/mlp_out": "ff.net.2",
}
# Patterns of names in PyTorch, and ours.
AUTOENCODER_NAMES = {
  r"\.resnets\.": "_block_",
  r"mid_block": "middle",
  r"(down|up)_blocks\.(\d+)": r"\1_\2",
  r"\.(down|up)samplers\.0\.conv\.": "_resample.",
  r"\.conv_shortcut\.": ".shortcut.",
  r"\.norm_layer\.": ".norm.",
  r"\.conv_y\.": ".scale.",
  r"\.conv_b\.": ".shift.",
  r"\.conv\.(weight|bias)": r".\1",
}


def torch_transformer(config, text_dim, device="cpu"):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  channels, (time, space, _) = config.get("out_channels", 16), config.get("patch", (1, 2, 2))
  frames, rows, columns = config.get("grid") or (13, 30, 45)
  positions = config.get("positions", "rotary")
  with torch.device(device):
    return diffusers.CogVideoXTransformer3DModel(
      num_attention_heads=config["heads"],
      attention_head_dim=config["head_dim"],
      in_channels=channels * (2 if config.get("takes_image") else 1),
      out_channels=channels,
      time_embed_dim=config.get("time_dim", 512),
      ofs_embed_dim=config.get("time_dim", 512) if config.get("offset") else None,
      text_embed_dim=text_dim,
      num_layers=config["depth"],
      sample_frames=4 * (frames - 1) + 1,
      sample_height=rows * space,
      sample_width=columns * space,
      patch_size=space,
      patch_size_t=time if time > 1 else None,
      max_text_seq_length=config.get("text_length", 226),
      use_rotary_positional_embeddings=positions != "sine",
      use_learned_positional_embeddings=positions == "learned",
      patch_bias=time == 1,
    ).eval()


def transformer_parameters(values, config):
  """Our tree of the named arrays of a PyTorch model: its weights or their gradients."""
  tree = {}
  patch, channels = config.get("patch", (1, 2, 2)), config["out_channels"]

  def put(path, leaf, value):
    functools.reduce(lambda t, key: t.setdefault(key, {}), path.split("/"), tree)[leaf] = value

  for ours, theirs in TRANSFORMER_NAMES.items():
    stacked = ours.startswith("blocks/")
    for theirs_leaf in ("weight", "bias"):
      layers = [f"transformer_blocks.{i}." for i in range(config["depth"])] if stacked else [""]
      names = [f"{layer}{theirs}.{theirs_leaf}" for layer in layers]
      if names[0] not in values:
        continue
      leaf = {"weight": "scale" if values[names[0]].ndim == 1 else "kernel"}.get(
        theirs_leaf, theirs_leaf
      )
      value = [values[name] for name in names]
      if ours == "patch_embedding" and leaf == "kernel":
        in_channels = channels * (2 if config.get("takes_image") else 1)
        kernel = value[0].reshape(-1, in_channels, *patch)
        value = [np.moveaxis(kernel, (0, 1), (-1, -2))]
      elif leaf == "kernel":
        value = [v.T for v in value]
      put(ours, leaf, np.stack(value) if stacked else value[0])
  if "patch_embed.pos_embedding" in values:
    table, length = values["patch_embed.pos_embedding"][0], config["text_length"]
    put("positions", "text", table[:length])
    put("positions", "video", table[length:].reshape(*config["grid"], -1))
  return tree


def rotary(config, frames, rows, columns):
  """What the pipelines of diffusers give the model."""
  torch = pytest.importorskip("torch")
  embeddings = pytest.importorskip("diffusers.models.embeddings")
  pipelines = pytest.importorskip("diffusers.pipelines.cogvideo.pipeline_cogvideox")
  common = dict(embed_dim=config["head_dim"], temporal_size=frames, device=torch.device("cpu"))
  if config.get("positions") == "sine":
    return None
  if config.get("grid") is None:
    return embeddings.get_3d_rotary_pos_embed(
      crops_coords=None, grid_size=(rows, columns), grid_type="slice", max_size=(99, 99), **common
    )
  height, width = config["grid"][1:]
  crop = pipelines.get_resize_crop_region_for_grid((rows, columns), width, height)
  return embeddings.get_3d_rotary_pos_embed(crops_coords=crop, grid_size=(rows, columns), **common)


def channel_last(x, channels=2):
  """An array of a tensor whose axis `channels` goes last."""
  return np.moveaxis(x.detach().numpy(), channels, -1)


def torch_autoencoder(config, device="cpu", inverted=False):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  levels = len(config["widths"])
  with torch.device(device):
    return diffusers.AutoencoderKLCogVideoX(
      down_block_types=("CogVideoXDownBlock3D",) * levels,
      up_block_types=("CogVideoXUpBlock3D",) * levels,
      block_out_channels=tuple(config["widths"]),
      latent_channels=config["z_dim"],
      layers_per_block=config["num_res_blocks"],
      norm_num_groups=config["groups"],
      scaling_factor=config["scale"],
      invert_scale_latents=inverted,
    ).eval()


def autoencoder_parameters(values):
  tree = {}
  for name, value in values.items():
    for theirs, ours in AUTOENCODER_NAMES.items():
      name = re.sub(theirs, ours, name)
    *path, leaf = name.split(".")
    if leaf == "weight":
      leaf = "scale" if value.ndim == 1 else "kernel"
      value = np.moveaxis(value, (0, 1), (-1, -2)) if value.ndim > 1 else value
    functools.reduce(lambda t, key: t.setdefault(key, {}), path, tree)[leaf] = value
  return tree
