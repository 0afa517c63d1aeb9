"""Schemathesis fuzzes the server from its own OpenAPI description."""

import subprocess
import sys

import httpx
import pytest

from tests.serving.test_serve import TOKEN, served

# FastAPI's 405 names the methods of one function alone; and in a form everything is text or a file,
# so that a number in place of a photograph looks like one.
LEFT_OUT = "allow_header_conformance,negative_data_rejection"


def take(image, trajectory, prompt, seed, fov):
  """Anything will do, so that the fuzzer comes to jobs and their results."""
  del image
  return {"trajectory": trajectory[:100], "prompt": prompt[:100], "seed": seed, "fov": fov}


def fuzz(address, folder, *arguments):
  command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json"]
  command += ["--checks=all", f"--exclude-checks={LEFT_OUT}", *arguments]
  done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
  assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
  return done.stdout


def test_strangers_do_no_harm(tmp_path):
  with served(take=take) as address:
    said = fuzz(address, tmp_path, "--max-examples=3", "--seed=0")
    assert httpx.get(f"{address}/about").status_code == 200
  assert "Tested: 6" in said


@pytest.mark.slow
def test_many_strangers_and_those_who_have_the_token(tmp_path):
  with served(take=take, token=TOKEN, local=False) as address:
    header = f"--header=Authorization: Bearer {TOKEN}"
    said = fuzz(address, tmp_path, "--max-examples=200", header)
    assert httpx.get(f"{address}/about").status_code == 401
  assert "Tested: 6" in said and "Stateful" in said
