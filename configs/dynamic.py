r"""The reconstruction model alone on moving scenes, from the latents of true videos.

python -m d4s_jax.train --config=configs/dynamic.py --config.init.ldrm=runs/static-tiny
"""

from d4s_jax.config import base


def get_config(preset: str = "tiny"):
  config = base(preset)
  config.stage = "dynamic"
  return config
