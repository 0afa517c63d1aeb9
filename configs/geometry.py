"""Before stage 1: the reconstruction model on exact depth and motion, nothing drawn.

python -m d4s_jax.train --config=configs/geometry.py
"""

from d4s_jax.config import base


def get_config(preset: str = "tiny"):
  config = base(preset)
  config.stage = "geometry"
  # The paper's form starts slowly: its minimum over all points is near no motion.
  config.loss.motion_form = "huber"
  # All times: a Gaussian's motion at one more costs next to nothing while nothing is drawn.
  config.loss.motion_times = config.clip.frames
  return config
