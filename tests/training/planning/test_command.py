"""`python -m d4s_jax.plan`: what it plans, prints and refuses. Compiling is for other tests."""

import dataclasses

import pytest

from d4s_jax.config import base
from d4s_jax.pipeline import programs
from d4s_jax.training.planning import chips, plan, sampling, search
from tests.support import run_command
from tests.training.planning.test_plan import PLAN

CONFIG = "--config=configs/joint.py:tiny"


@pytest.fixture(autouse=True)
def asked(monkeypatch):
  """What was to be compiled; nothing is, and JAX stays as it was."""
  asked = []

  def plan_training(config, topology, samples):
    asked.append((config, topology, samples))
    return dataclasses.replace(PLAN, samples=samples or config.batch_size)

  monkeypatch.setattr(chips, "without_accelerator", lambda: asked.append("without"))
  monkeypatch.setattr(plan, "plan_training", plan_training)
  return asked


def test_one_plan_is_of_the_configuration_and_for_its_whole_schedule(asked, capsys):
  run_command("plan", CONFIG, "--topology=v5p:2x2x2", "--config.mesh.fsdp=4", "--samples=16")
  first, (config, topology, samples) = asked
  assert first == "without" and (topology, samples, config.mesh.fsdp) == ("v5p:2x2x2", 16, 4)
  # Of the chip, not of this machine.
  assert config.model.dtype == "bfloat16"
  said = capsys.readouterr().out
  assert "64 devices (data 4, fsdp 16), 16 samples a step" in said and "MFU bound 50%" in said
  assert f"{config.steps * config.batch_size:,} samples take" in said


def test_a_search_describes_what_it_found(asked, monkeypatch, capsys):
  found = base("tiny")
  found.mesh.fsdp = 8
  monkeypatch.setattr(search, "best", lambda config, topology: (found, 2))
  run_command("plan", CONFIG, "--topology=v5p:2x2x2", "--search")
  assert asked[1:] == [(found, "v5p:2x2x2", 2)]
  assert "2 samples a step" in capsys.readouterr().out


def test_sampling_is_planned_with_the_settings_of_the_configuration(asked, monkeypatch, capsys):
  got = {}

  def parts(system, params, size, **chosen):
    got.update(chosen, size=size, of=(system, params))
    return ["parts"]

  monkeypatch.setattr(sampling, "open_models", lambda config, topology: (topology, "params"))
  monkeypatch.setattr(programs, "programs", parts)
  monkeypatch.setattr(sampling, "plan_programs", lambda topology, parts: [(parts[0], 3, PLAN)])
  words = ("--mode=generate", "--config.sampling.steps=7", "--config.clip.height=64")
  run_command("plan", CONFIG, "--topology=v5p:1x1x1", *words)
  assert got["of"] == ("v5p:1x1x1", "params") and got["steps"] == 7 and got["size"][1] == 64
  assert set(got) == {"of", "size", "steps", "guidance", "scale", "reuse"}
  assert asked == ["without"] and "parts" in capsys.readouterr().out


@pytest.mark.parametrize(
  "words, why",
  [
    (("--mode=generate", "--search"), "--mode=generate plans one scene; leave --search"),
    (("--mode=generate", "--samples=1"), "--mode=generate plans one scene; leave --search"),
    (("--search", "--samples=2"), "--search tries numbers of samples itself; leave --samples out"),
    (("--search", "--topology=v9:2x2"), "--topology=v9:2x2; expected CHIP:SHAPE with a chip of"),
  ],
)
def test_what_contradicts_itself_is_refused_in_a_line(words, why, asked, capsys):
  with pytest.raises(SystemExit) as ended:
    run_command("plan", CONFIG, "--topology=v5p:2x2x2", *words)
  said = capsys.readouterr()
  assert ended.value.code == 1 and asked == ["without"] and said.out == ""
  (line,) = said.err.strip().splitlines()
  assert line.startswith(f"error: {why}")
