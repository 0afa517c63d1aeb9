"""The causal video autoencoder; only `tiny` needs one of its own, the others have published weights.

  python -m d4s_jax.train --config=configs/autoencoder.py
"""

from d4s_jax.config import base


def get_config(preset: str = "tiny"):
  config = base(preset)
  config.stage = "autoencoder"
  config.init.autoencoder = ""
  config.clip.targets = 1
  return config
