"""The Wan family: video transformer and causal 3D autoencoder."""
