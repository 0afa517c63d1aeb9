"""`launch/Dockerfile` as text: no Docker daemon is needed, so none of it is run."""

import configparser
import re

import pytest

from tests.launch.stand_ins import LAUNCH, ROOT

TEXT = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")


@pytest.fixture(scope="module")
def extras():
  setup = configparser.ConfigParser()
  setup.read(ROOT / "setup.cfg")
  return set(setup["options.extras_require"])


def test_each_accelerator_is_a_stage_and_an_extra(extras):
  stages = re.findall(r"^FROM \S+ AS (\S+)$", TEXT, re.M)
  assert set(stages) == {"cuda", "tpu"} <= extras
  [default] = re.findall(r"^ARG ACCELERATOR=(\S+)$", TEXT, re.M)
  assert default in stages
  assert TEXT.count("\nFROM ${ACCELERATOR}\nARG ACCELERATOR\n") == 1


def test_it_installs_extras_that_there_are(extras):
  [names] = re.findall(r'"\.\[\$\{ACCELERATOR\},([\w,]+)\]"', TEXT)
  # With them, published tokenizers and --workdir=gs://...
  assert set(names.split(",")) == {"text", "gcs"} <= extras


def test_what_is_left_out_is_not_what_is_started():
  ignored = (LAUNCH / "Dockerfile.dockerignore").read_text().split()
  assert ".git" in ignored and not {"launch", "configs", "d4s_jax"} & set(ignored)
  # Where jobset.yaml and tpu_vm.sh look for launch/local.sh.
  assert "WORKDIR /d4s_jax\nCOPY . .\n" in TEXT
