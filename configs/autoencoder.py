"""The causal video autoencoder; only `tiny` needs its own, the others have published weights.

python -m d4s_jax.train --config=configs/autoencoder.py
"""

from d4s_jax.config import base


def get_config(preset: str = "tiny"):
  config = base(preset)
  config.stage = "autoencoder"
  config.init.autoencoder = ""
  config.steps = 2000
  if preset == "tiny":
    # Pictures of 64 pixels: LPIPS at the weight of the other stages costs decibels.
    config.loss.weights.perceptual = 0.1
  config.clip.targets = 1
  config.optimizer.peak = 2e-3
  return config
