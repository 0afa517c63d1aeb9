"""Which clips are held out: one rule for shards and for datasets that are read as they come."""

import hashlib
import warnings
from collections.abc import Mapping

# Of few groups one in ten is held out, by their order: an even share. Of as many as this one in 32,
# by its name alone, so that it is on the same side of a folder that grew, and of another folder.
_MANY = 320


class EmptySplit(ValueError):
  """There are clips, but none of the split."""


def of_split(clips: Mapping[str, tuple[str, str]], wanted: str) -> list[str]:
  """The clips of a split, in the order that they are given in.

  If a dataset holds some out, it is those. Else some groups, at least one of several; of one group
  alone, such as one film, single clips, with a warning.

  Args:
    clips: by name: its dataset's own split ("train", "heldout", or "" to be decided here), and its
      group; clips of one group show the same place and are held out together.
    wanted: "train" or "heldout".
  """
  held = {name for name, (split, _) in clips.items() if split == "heldout"}
  if not held:
    group = {name: group for name, (split, group) in clips.items() if not split}
    groups = set(group.values())
    if len(groups) == 1 < len(group):
      if wanted == "heldout":
        warnings.warn(
          f"All clips are of {groups.pop()}: those that are held out look like those that are"
          " trained on, and scores flatter. Fetch or curate more films or places.",
          stacklevel=1,
        )
      group = {name: name for name in group}
    chosen = _chosen(sorted(set(group.values())))
    held = {name for name in group if group[name] in chosen}
  return [name for name in clips if (name in held) == (wanted == "heldout")]


def _chosen(groups: list[str]) -> set[str]:
  if len(groups) < _MANY:
    return set(groups[9::10] or groups[1:][-1:])
  return {x for x in groups if hashlib.sha256(x.encode()).digest()[0] % 32 == 0} or {groups[-1]}
