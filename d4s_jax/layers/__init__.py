"""What networks are made of; nothing here knows a model."""
