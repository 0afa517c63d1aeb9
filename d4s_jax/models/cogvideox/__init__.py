"""The CogVideoX family: video transformer and causal 3D autoencoder."""
