"""Says whether something was made by d4s_jax: looks for its invisible marks; signs what was.

Examples:
  python -m d4s_jax.watermark detect scenes/first
  python -m d4s_jax.watermark sign scenes/first/video.mp4 --certificates=chain.pem --key=key.pem

FILE is the folder of a scene, .safetensors .ply .compressed.ply .splat .spz .sog .glb .html, a
video, a picture, or point tracks with pictures (.npz). The score comes with a bound on the rate at
which unmarked things of any kind reach it; below 1 in a million, the mark is called found.
D4S_JAX_WATERMARK_KEY is the key to look for; without it, the public one is. Meshes and depth bear
no mark; where they come from is told as of the others. `sign` adds a C2PA manifest to a file, in
place.
"""

import pathlib

from absl import flags, logging

from d4s_jax import errors
from d4s_jax.formats import credentials, provenance, splat_colors
from d4s_jax.pipeline import detection
from d4s_jax.watermark import keys

_CERTIFICATES = flags.DEFINE_string("certificates", None, "PEM of the signer's chain.")
_KEY = flags.DEFINE_string("key", None, "PEM of the signer's private key, on P-256.")
# A false alarm in a million.
_FOUND = -6.0


def main(argv: list[str]) -> None:
  """Looks at one file, or signs it."""
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    if len(argv) != 3 or argv[1] not in ("detect", "sign"):
      raise ValueError(f"Words {argv[1:]}; expected: detect FILE, or sign FILE.")
    path = pathlib.Path(argv[2])
    if not path.exists():
      raise FileNotFoundError(f"Nothing is at {path}; check the path.")
    if argv[1] == "detect":
      _detect(path)
      return
    if _CERTIFICATES.value is None or _KEY.value is None:
      raise ValueError("sign needs --certificates and --key; --help has an example.")
    credentials.sign(path, pathlib.Path(_CERTIFICATES.value), pathlib.Path(_KEY.value))
    print(f"Signed: {path}")


def _detect(path: pathlib.Path) -> None:
  key = keys.key()
  known = "the public key" if key == keys.PUBLIC else f"the key of {keys.VARIABLE}"
  try:
    found = detection.detect(path, key)
  except splat_colors.NoGaussians as error:
    print(f"{path}: bears no mark, whoever made it. {error}")
  else:
    verdict = "marked" if found.log10_false <= _FOUND else "no mark found"
    where = f", in {found.where}" if found.where and verdict == "marked" else ""
    print(f"{path}: {verdict} with {known}{where}")
    print(f"score {found.score:.1f}, false-positive rate at most {found.rate}")
    if found.left_out:
      print(f"{found.left_out} pictures of another shape than most were not looked at")
  for name, value in (provenance.read(path) or {}).items():
    print(f"{name}: {value}")
  if credentials.installed():
    signed = credentials.read(path)
    said = "unsigned" if signed is None else f"{signed['state']}, signed by {signed['signer']}"
    print(f"C2PA: {said}")
  else:
    print(f"C2PA: not looked for; pip install 'd4s_jax[{credentials.EXTRA}]' brings what reads it")


if __name__ == "__main__":
  errors.run(main, words=2)
