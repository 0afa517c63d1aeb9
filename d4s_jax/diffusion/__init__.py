"""Noise schedules, guidance schedules and the sampler; nothing here knows a model."""
