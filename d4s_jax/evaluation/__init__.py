"""Scores of arrays: features, camera paths, depth, motion; nothing here knows a model or a file."""
