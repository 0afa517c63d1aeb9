"""What `d4s_jax.evaluate` scores, and how; the keys are explained in `evaluation/settings.py`.

python -m d4s_jax.evaluate --config=configs/evaluate.py --config.samples=scenes
"""

import dataclasses

from ml_collections import ConfigDict

from d4s_jax.evaluation.settings import Settings


def get_config():
  return ConfigDict(dataclasses.asdict(Settings()))
