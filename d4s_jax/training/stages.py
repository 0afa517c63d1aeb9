"""The stages of the curriculum as values (supplement, section 2.3).

A stage says which objectives it computes and which parameters it trains. Everything else
(resolution, data, weights of the loss terms) is configuration.
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of training.

  Attributes:
    objectives: names in `training.objectives.OBJECTIVES`.
    trainable: regular expressions; a parameter is trained if one of them matches its path.
    kind: the kind of scenes it trains on, "static", "dynamic" or "mixed".
  """

  objectives: tuple[str, ...]
  trainable: tuple[str, ...]
  kind: str


STAGES = {
  "autoencoder": Stage(("autoencoding",), ("^autoencoder/",), "mixed"),
  "diffusion": Stage(("diffusion",), ("^transformer/",), "mixed"),
  # The deformation head stays the identity: only what is under ldrm/ but not under its
  # deformation/ moves.
  "static": Stage(("reconstruction",), ("^ldrm/(?!deformation/)",), "static"),
  # Not of the paper: depth and motion are learnt from the exact ones, before anything is drawn.
  "geometry": Stage(("distillation",), ("^ldrm/",), "mixed"),
  # Not of the paper: motion is learnt from true latents before the video model's guesses.
  "dynamic": Stage(("reconstruction",), ("^ldrm/",), "mixed"),
  "joint": Stage(("diffusion", "reconstruction"), ("^transformer/", "^ldrm/"), "mixed"),
}


def stage(name: str) -> Stage:
  """The stage of that name; raises ValueError with the known names for another."""
  if name not in STAGES:
    raise ValueError(f"Unknown stage {name!r}; choose one of {sorted(STAGES)}.")
  return STAGES[name]


def trained(patterns: tuple[str, ...], adapted: bool) -> tuple[str, ...]:
  """The patterns of a run whose transformer may be adapted.

  "^transformer/" then stands for the adapters and the conditioning on cameras, which no published
  model has; other patterns mean what they say.
  """
  if not adapted:
    return patterns
  instead = {"^transformer/": ("^adapter/", "^transformer/camera/")}
  return tuple(y for x in patterns for y in instead.get(x, (x,)))


def split_by_path(paths: list[str], patterns: tuple[str, ...]) -> tuple[list[str], list[str]]:
  """Splits parameter paths into those that match a pattern and the rest.

  Raises:
    ValueError: a pattern matches nothing, which is nearly always a misspelt path.
  """
  idle = [pattern for pattern in patterns if not any(re.search(pattern, path) for path in paths)]
  if idle:
    roots = sorted({path.split("/")[0] for path in paths})
    raise ValueError(f"Patterns {idle} match no parameter; parameter paths start with {roots}.")
  matched = [path for path in paths if any(re.search(pattern, path) for pattern in patterns)]
  chosen = set(matched)
  return matched, [path for path in paths if path not in chosen]
