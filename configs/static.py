r"""Stages 1 and 2: the reconstruction model on static scenes, its deformation frozen.

  python -m d4s_jax.train --config=configs/static.py
  python -m d4s_jax.train --config=configs/static.py:wan1.3b,256 \
      --config.init.autoencoder=weights/wan1.3b
  python -m d4s_jax.train --config=configs/static.py:wan1.3b,512 --workdir=runs/static-512 \
      --config.init.autoencoder=weights/wan1.3b --config.init.ldrm=runs/static-wan1.3b

The number after the preset is the height and width in pixels: 256 is stage 1 of the paper and 512
stage 2. The Gaussian map has a cell for each pixel, so it grows with them; its budget M does not.
"""

from d4s_jax.config import base


def get_config(argument: str = "tiny"):
  preset, _, size = argument.partition(",")
  config = base(preset)
  config.stage = "static"
  config.steps = 400 if preset == "tiny" else 40_000
  if size:
    config.clip.height = config.clip.width = int(size)
  return config
