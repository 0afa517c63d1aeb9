"""Data sources, read as `Clip`s, and the loader that batches them for training."""
