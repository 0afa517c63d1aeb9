"""d4s_jax: one image, a camera trajectory and a prompt in; a deformable 3D Gaussian scene out."""

__version__ = "0.1.0"
