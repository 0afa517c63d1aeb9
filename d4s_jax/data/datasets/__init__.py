"""Datasets on disk: a registry, one reader for each, and the scenes that they yield."""
