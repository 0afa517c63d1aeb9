"""A trace of some steps."""

import jax
import jax.numpy as jnp
import pytest

from d4s_jax.training.profile import Profile, parse


def steps(folder, asked, start, last, stop=None):
  step = jax.jit(lambda x: x + 1)
  x = jnp.zeros(3)
  with Profile(folder, asked, start, last) as profile:
    for number in range(start + 1, (stop or last) + 1):
      profile.begin(number)
      x = step(x)
      profile.end(number, x)


def traces(folder):
  return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def test_steps_are_traced_and_files_appear(tmp_path):
  steps(tmp_path, parse("4:5"), 2, 8)
  names = traces(tmp_path / "profile")
  assert any(name.endswith(".xplane.pb") for name in names), names
  assert any(name.endswith(".trace.json.gz") for name in names), names


def test_a_run_that_ends_before_still_leaves_its_trace(tmp_path):
  steps(tmp_path, parse("2:9"), 0, 9, stop=3)
  assert traces(tmp_path / "profile")


def test_nothing_is_traced_unless_asked(tmp_path):
  steps(tmp_path, parse(None), 0, 3)
  assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("text", ["", "3", "5:3", "0:2", "a:b", "1:2:3", "-1:2"])
def test_other_texts_are_refused(text):
  with pytest.raises(ValueError, match="--profile is .*; expected N:M"):
    parse(text)


def test_steps_after_the_end_are_refused(tmp_path):
  with pytest.raises(ValueError, match="steps 4 to 9, and this run ends at 8"):
    Profile(tmp_path, (4, 9), 3, 8)


def test_steps_that_were_made_before_are_not_traced(tmp_path, capsys):
  """The command of a run that was stopped is given again as it was."""
  steps(tmp_path, (2, 3), 2, 4)
  assert "step 2 was made before" in capsys.readouterr().err
  assert not (tmp_path / "profile").exists()
