"""The video model alone: camera-controlled image-to-video diffusion.

python -m d4s_jax.train --config=configs/diffusion.py
"""

from d4s_jax.config import base


def get_config(preset: str = "tiny"):
  config = base(preset)
  config.stage = "diffusion"
  if preset == "tiny":
    # Its text encoder starts at random; the others are published and stay as they are.
    config.trainable = ("^transformer/", "^text_encoder/")
  config.clip.targets = 1
  return config
