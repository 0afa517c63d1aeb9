"""How far off metric scale is, and how often it is refused, for anchors whose truth is known.

  python tests/benchmarks/scale.py [--sets=300]

Of each kind so many sets are drawn as the tests draw them: 5% noise, and outliers of which half are
far off and half have another scale.
"""

import pathlib
import sys

import numpy as np
from absl import app, flags

from d4s_jax.curation import scale

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from tests.curation.test_scale import TRUTH, anchors  # noqa: E402

_SETS = flags.DEFINE_integer("sets", 300, "Sets of anchors of each kind.")
_NOISE = 0.05


def main(argv):
  del argv
  print("| outliers | anchors | refused | error: median | largest | variation: largest |")
  print("|---|---|---|---|---|---|")
  for outliers in (0.3, 0.6):
    for count in (30, 100, 400):
      errors, variations = [], []
      for seed in range(_SETS.value):
        try:
          found = scale.estimate(*anchors(seed, count, outliers, _NOISE))
        except scale.Refused:
          continue
        errors.append(abs(found.scale / TRUTH - 1))
        variations.append(found.variation)
      refused = 1 - len(errors) / _SETS.value
      parts = [np.median(errors), max(errors), max(variations)] if errors else []
      shown = [f"{100 * x:.1f}%" for x in parts] or ["-"] * 3
      print(f"| {100 * outliers:.0f}% | {count} | {100 * refused:.0f}% | {' | '.join(shown)} |")


if __name__ == "__main__":
  app.run(main)
