"""Procedural dynamic scenes, drawn exactly and fast: training data without files."""

from d4s_jax.data.synthetic.scene import Scene as Scene
from d4s_jax.data.synthetic.source import SyntheticScenes as SyntheticScenes
