r"""Stage 3: the video model and the reconstruction model together, all losses.

python -m d4s_jax.train --config=configs/joint.py
python -m d4s_jax.train --config=configs/joint.py:wan1.3b \
      --config.init.transformer=runs/diffusion-wan1.3b --config.init.ldrm=runs/static-wan1.3b \
      --config.init.autoencoder=weights/wan1.3b --config.init.text_encoder=weights/wan1.3b \
      --config.model.backbone.tokenizer=weights/wan1.3b/tokenizer
"""

from d4s_jax.config import base


def get_config(preset: str = "tiny"):
  config = base(preset)
  config.stage = "joint"
  if preset == "tiny":
    # Its text encoder is ours; the others are published and stay as they are.
    config.trainable = ("^transformer/", "^text_encoder/", "^ldrm/")
    # Goes on from what the package carries; --config.init.ldrm= and so on start from nothing.
    for part in ("transformer", "text_encoder", "ldrm"):
      config.init[part] = "shipped"
    config.optimizer.peak = 3e-4
  return config
