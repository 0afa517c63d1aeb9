"""Signed provenance: C2PA manifests (Content Credentials) in pictures and videos, by c2pa-python.

What is signed is that a trained model made the file, and the facts of `formats.provenance`. A
manifest is bound to the bytes of its file; who edits the file breaks it, and who strips it leaves a
file that says nothing. The certificate decides whether anyone trusts it.
"""

import importlib.util
import json
import pathlib
from typing import Any

from d4s_jax.formats import atomic, checked, provenance

EXTRA = "c2pa"
# By suffix: what c2pa calls them. Others say nothing of their origin that could be signed.
KINDS = {
  ".mp4": "video/mp4",
  ".png": "image/png",
  ".jpg": "image/jpeg",
  ".gif": "image/gif",
  ".webp": "image/webp",
}
_LABEL = "org.d4s-jax.provenance"
_MOST_KEY = 2**20


def installed() -> bool:
  """Whether the package is there that reads and writes manifests."""
  return importlib.util.find_spec("c2pa") is not None


def sign(path: pathlib.Path, certificates: pathlib.Path, private_key: pathlib.Path) -> None:
  """Signs a file in place; what it says of its origin becomes part of the manifest.

  Args:
    path: a picture or a video that we made.
    certificates: PEM, the signer's first, then those that vouch for it.
    private_key: PEM of an elliptic curve key on P-256 (ES256).

  Raises:
    ValueError: the package is missing, the file says nothing of its origin or is of another kind,
      or the certificates can't sign it.
    OSError: a file can't be read or written.
  """
  c2pa = _library()
  if path.suffix.lower() not in KINDS:
    raise ValueError(f"{path} can't be signed; expected one of {', '.join(KINDS)}.")
  facts = provenance.read(path)
  if facts is None:
    raise ValueError(f"{path} says nothing of its origin; expected a file that d4s_jax wrote.")
  action = {"action": "c2pa.created", "digitalSourceType": provenance.SOURCE_TYPE}
  manifest = {
    "claim_generator_info": [{"name": "d4s_jax", "version": str(facts["generator"]).split()[-1]}],
    "title": path.name,
    "assertions": [
      {"label": "c2pa.actions.v2", "data": {"actions": [action]}},
      {"label": _LABEL, "data": facts},
    ],
  }
  chain = checked.read_bytes(certificates, _MOST_KEY, "certificates")
  key = checked.read_bytes(private_key, _MOST_KEY, "private key")
  with atomic.replacing(path) as temporary:
    try:
      # No time stamp: that would need a server.
      info = c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, chain, key, None)
      with c2pa.Signer.from_info(info) as signer, c2pa.Builder(json.dumps(manifest)) as builder:
        builder.sign_file(str(path), str(temporary), signer)
    except c2pa.C2paError as error:
      raise ValueError(f"{path} can't be signed with {certificates}: {error}.") from error


def read(path: pathlib.Path) -> dict[str, Any] | None:
  """The manifest of a file: `signer`, `state` (Valid, Trusted or Invalid) and our `facts`.

  Returns:
    None if there is none, or the kind of file can't have one.

  Raises:
    ValueError: the package is missing.
  """
  c2pa = _library()
  if path.suffix.lower() not in KINDS:
    return None
  try:
    with c2pa.Reader(str(path)) as reader:
      found = json.loads(reader.json())
  except c2pa.C2paError:
    return None
  active = found["manifests"][found["active_manifest"]]
  said = {x["label"]: x["data"] for x in active.get("assertions", [])}
  return {
    "signer": active.get("signature_info", {}).get("issuer"),
    "state": found.get("validation_state"),
    "facts": said.get(_LABEL),
  }


def _library() -> Any:
  try:
    import c2pa
  except ImportError as error:
    raise ValueError(f"c2pa is missing: pip install 'd4s_jax[{EXTRA}]'.") from error
  return c2pa
