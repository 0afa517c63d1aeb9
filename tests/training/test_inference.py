"""Settings of sampling: a checkpoint's own, and those asked for."""

import pytest

from d4s_jax.training.inference import sampling

OWN = {"steps": 8, "guidance": "cosine", "scale": 3.0, "solver": "ddim", "reuse": [3, 5]}


@pytest.mark.parametrize(
  "asked, changed",
  [
    ({"steps": None, "reuse": None}, {}),
    ({"scale": 2.0}, {"scale": 2.0}),
    ({"reuse": ["2", "4"], "steps": 10}, {"reuse": [2, 4], "steps": 10}),
    ({"reuse": []}, {"reuse": []}),
    # What is no number is for the pipeline to refuse, which knows what is expected.
    ({"reuse": ["x", "-1"]}, {"reuse": ["x", "-1"]}),
  ],
)
def test_what_is_asked_for_replaces_the_checkpoints_own(asked, changed):
  settings, note = sampling({"sampling": OWN}, asked)
  assert settings == OWN | changed
  assert note == ""


def test_a_table_of_reuse_is_not_followed_in_runs_of_other_lengths():
  settings, note = sampling({"sampling": OWN}, {"steps": 30})
  assert settings == OWN | {"steps": 30, "reuse": ()}
  assert "[3, 5], are of runs of 8 steps; none of these 30 does" in note


def test_checkpoints_from_before_there_was_reuse_have_none():
  old = {name: x for name, x in OWN.items() if name != "reuse"}
  assert sampling({"sampling": old}, {})[0] == old | {"reuse": []}
