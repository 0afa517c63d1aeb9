"""Invisible marks in what is generated: in the frames of videos, in the colours of Gaussians.

Arrays in, arrays out; `pipeline.detection` reads files. What a mark survives and what removes it is
in README.md.
"""
