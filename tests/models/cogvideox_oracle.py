"""CogVideoX in diffusers: models of our configurations, and their weights in our layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.models.cogvideox.autoencoder import CogVideoXAutoencoder
from d4s_jax.models.cogvideox.transformer import CogVideoXTransformer
from d4s_jax.weights import cogvideox
from tests.support import from_torch


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
  channels = config["out_channels"] * (2 if config.get("takes_image") else 1)
  text = jnp.zeros((1, 1, values["patch_embed.text_proj.weight"].shape[1]))
  latents = jnp.zeros((1, *config.get("patch", (1, 2, 2)), channels))
  module = CogVideoXTransformer(**config)
  shapes = jax.eval_shape(module.init, jax.random.key(0), latents, jnp.zeros(1), text)
  return from_torch(cogvideox.TRANSFORMER, shapes, values)


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


def autoencoder_parameters(values, config):
  """Our tree of the named arrays of a PyTorch model: its weights or their gradients."""
  module = CogVideoXAutoencoder(**config)
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 5, 8, 8, 3)))
  return from_torch(cogvideox.AUTOENCODER, shapes, values)
