"""Says whether something was made by d4s_jax: looks for its invisible marks.

Example:
  python -m d4s_jax.watermark detect scenes/first

FILE is the folder of a scene, .ply, .splat, .spz or .glb, a video, or a picture. The score comes
with a bound on the rate at which unmarked things of any kind reach it; below 1 in a million, the
mark is called found. D4S_JAX_WATERMARK_KEY is the key to look for; without it, the public one is.
"""

import pathlib

from absl import logging

from d4s_jax import errors
from d4s_jax.formats import provenance
from d4s_jax.pipeline import detection
from d4s_jax.watermark import keys

# A false alarm in a million.
_FOUND = -6.0


def main(argv: list[str]) -> None:
  """Looks at one file."""
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    if len(argv) != 3 or argv[1] != "detect":
      raise ValueError(f"Words {argv[1:]}; expected: detect FILE.")
    path = pathlib.Path(argv[2])
    if not path.exists():
      raise FileNotFoundError(f"Nothing is at {path}; check the path.")
    key = keys.key()
    found = detection.detect(path, key)
    known = "the public key" if key == keys.PUBLIC else f"the key of {keys.VARIABLE}"
    verdict = "marked" if found.log10_false <= _FOUND else "no mark found"
    where = f", in {found.where}" if found.where and verdict == "marked" else ""
    print(f"{path}: {verdict} with {known}{where}")
    print(f"score {found.score:.1f}, false-positive rate at most {found.rate}")
    for name, value in (provenance.read(path) or {}).items():
      print(f"{name}: {value}")


if __name__ == "__main__":
  errors.run(main, words=2)
