"""What a curation run does; written beside its results, and the same when it goes on."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from d4s_jax.curation import plugins, stages


@dataclasses.dataclass(frozen=True)
class Settings:
  """Everything that results depend on.

  Attributes:
    frames: most frames of a clip.
    shortest: fewest.
    side: most pixels of the shorter side of the pictures that are kept.
    shard: clips of a shard.
    height: metres of the cameras over a flat ground, for clips of unknown scale; 0 if unknown.
    baseline: metres between the two cameras of a rig, likewise.
    limits: changes of the limits of figures, "LEAST:MOST" by figure; see `curation.stages`.
    plugins: text of each plug-in by kind; see `curation.plugins`.
  """

  frames: int = 97
  shortest: int = 17
  side: int = 576
  shard: int = 64
  height: float = 0.0
  baseline: float = 0.0
  limits: dict[str, str] = dataclasses.field(default_factory=dict)
  plugins: dict[str, str] = dataclasses.field(default_factory=dict)

  def check(self) -> None:
    """Refuses what can't be run, before anything is read.

    Raises:
      ValueError, OSError: a value is out of range, or a plug-in can't be found.
    """
    least = {"frames": self.shortest, "shortest": 2, "side": 16, "shard": 1}
    for name, low in least.items():
      if getattr(self, name) < low:
        raise ValueError(f"{name} is {getattr(self, name)}; expected at least {low}.")
    for name in ("height", "baseline"):
      if not 0 <= getattr(self, name) < math.inf:
        raise ValueError(f"{name} is {getattr(self, name)}; expected metres, or 0 for unknown.")
    stages.limits(self.limits)
    for kind, name in self.plugins.items():
      plugins.check(kind, name)

  def to_json(self) -> dict[str, Any]:
    """As plain values."""
    return dataclasses.asdict(self)


# Settings that are numbers, and options that results don't depend on, with their types.
_NUMBERS = {
  **{"frames": int, "shortest": int, "side": int, "shard": int},
  **{"height": float, "baseline": float},
}
_SPREAD = {"batch": int, "gpus": float, "workers": int, "patience": float}


def parse(
  values: Sequence[str], limits: Sequence[str], chosen: Sequence[str]
) -> tuple[Settings, dict[str, Any]]:
  """Settings, and options of `pipeline.run`, from texts "NAME=VALUE".

  Args:
    values: fields of `Settings` that are numbers, and options of how plug-ins are spread.
    limits: limits by figure.
    chosen: plug-ins by kind.

  Raises:
    ValueError: a name is unknown or a value is none.
  """
  numbers, spread = {}, {}
  for name, value in _pairs(values).items():
    kind = (_NUMBERS | _SPREAD).get(name)
    if kind is None:
      raise ValueError(f"Unknown setting {name!r}; choose one of {', '.join(_NUMBERS | _SPREAD)}.")
    try:
      number = kind(value)
    except ValueError:
      raise ValueError(f"{name}={value}; expected a number.") from None
    if not number >= (1 if kind is int else 0):
      raise ValueError(f"{name}={value}; expected a positive number.")
    (spread if name in _SPREAD else numbers)[name] = number
  plugged = _pairs(chosen)
  unknown = set(plugged) - set(plugins.KINDS)
  if unknown:
    raise ValueError(f"Unknown plug-ins {sorted(unknown)}; choose one of {plugins.KINDS}.")
  return Settings(**numbers, limits=_pairs(limits), plugins=plugged), spread


def _pairs(texts: Sequence[str]) -> dict[str, str]:
  found = {}
  for text in texts:
    name, sign, value = text.partition("=")
    if not sign or not name or name in found:
      raise ValueError(f"{text!r}; expected NAME=VALUE, each name once.")
    found[name] = value
  return found
