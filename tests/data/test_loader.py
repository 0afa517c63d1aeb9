"""The loader: order, shards, exact resumption, clean ends."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from d4s_jax.data.loader import make_loader
from d4s_jax.types import Cameras, Clip, Tracks, Views

ROOT = pathlib.Path(__file__).parents[2]


class Numbers:
  """Clips that hold nothing but their number, in the caption."""

  def __init__(self, count):
    self.count = count

  def __len__(self):
    return self.count

  def read(self, index):
    views = Views(
      images=np.full((1, 1, 1, 3), index, np.float32),
      depth=np.ones((1, 1, 1), np.float32),
      cameras=Cameras(
        world_from_camera=np.eye(4, dtype=np.float32)[None],
        intrinsics=np.eye(3, dtype=np.float32)[None],
        height=1,
        width=1,
      ),
      times=np.zeros(1, np.float32),
    )
    tracks = Tracks(
      points=np.zeros((0, 1, 3), np.float32),
      visible=np.zeros((0, 1), bool),
      valid=np.zeros((0, 1), bool),
    )
    return Clip(
      source=views,
      target=views,
      tracks=tracks,
      instances=np.zeros((1, 1, 1), np.int32),
      dynamic=np.asarray(True),
      scale=np.float32(1),
      text=f"clip {index}",
    )


def tokenize(text):
  return np.array([int(text.split()[1]), len(text)], np.int32)


def numbers(batch):
  return batch.text[:, 0].tolist()


def loader(count=10, **options):
  return make_loader(Numbers(count), tokenize, **{"batch_size": 2, "seed": 5, **options})


def take(steps, **options):
  with loader(**options) as batches:
    return [numbers(next(batches)) for _ in range(steps)]


def test_batches_are_clips_of_stacked_numpy_arrays():
  with loader() as batches:
    batch = next(batches)
  assert isinstance(batch, Clip)
  assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(batch))
  assert batch.source.images.shape == (2, 1, 1, 1, 3)
  assert batch.text.shape == (2, 2) and batch.text.dtype == np.int32
  np.testing.assert_array_equal(batch.source.images[:, 0, 0, 0, 0], batch.text[:, 0])


def test_batches_of_one_clip_come_in_the_same_order():
  ones = [number for batch in take(24, batch_size=1) for number in batch]
  twos = [number for batch in take(12, batch_size=2) for number in batch]
  assert ones == twos


def test_epochs_cover_every_clip_in_a_new_order():
  drawn = np.concatenate(take(15))
  epochs = drawn.reshape(3, 10)
  assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
  assert not np.array_equal(epochs[0], epochs[1])
  assert not np.array_equal(epochs[0], np.arange(10))
  assert take(15) == drawn.reshape(15, 2).tolist()
  assert take(15, seed=6) != drawn.reshape(15, 2).tolist()


def test_evaluation_reads_each_clip_once_in_order():
  with loader(5, seed=None) as batches:
    assert [numbers(batch) for batch in batches] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("step", range(8))
def test_resumes_at_the_exact_batch(step):
  expected = take(8)
  with loader() as batches:
    for _ in range(step):
      next(batches)
    state = json.loads(json.dumps(batches.get_state()))
  with loader() as batches:
    next(batches)
    batches.set_state(state)
    assert batches.get_state() == state
    assert [numbers(next(batches)) for _ in range(8 - step)] == expected[step:]
  assert take(8 - step, start=step) == expected[step:]


@pytest.mark.parametrize("count", [10, 12])
def test_processes_read_rows_of_the_same_batches(count):
  whole = take(10, count=count, batch_size=6)
  parts = [range(0, 3), [3, 5], [4]]
  for rows in parts:
    read = take(10, count=count, batch_size=6, rows=rows)
    assert read == [[batch[row] for row in rows] for batch in whole]
  with loader(count, batch_size=6, rows=[3, 5]) as batches:
    batches.set_state(loader(count, batch_size=6, start=4).get_state())
    assert numbers(next(batches)) == [whole[4][3], whole[4][5]]


def test_a_state_of_another_order_is_refused():
  state = loader().get_state()
  for other in ({"seed": 6}, {"count": 11}, {"batch_size": 3}):
    with pytest.raises(ValueError, match="Resume with the same data settings"):
      loader(**other).set_state(state)


def test_odd_options_are_refused():
  with pytest.raises(ValueError, match="no clips"):
    loader(0)
  with pytest.raises(ValueError, match="batch_size=0"):
    loader(batch_size=0)
  for rows in ([], [1, 2], [1, 0], [-1, 0]):
    with pytest.raises(ValueError, match=r"expected some of 0 to 1, in order"):
      loader(rows=rows)


def test_an_error_in_a_source_reaches_the_reader():
  def broken(text):
    raise RuntimeError(f"cannot tokenize {text!r}")

  with make_loader(Numbers(4), broken, batch_size=2, seed=0) as batches:
    with pytest.raises(RuntimeError, match="cannot tokenize 'clip"):
      next(batches)


WITH_WORKER = """
import json
from test_loader import loader, numbers
if __name__ == "__main__":
  with loader(workers=1) as batches:
    first = [next(batches) for _ in range(3)]
    state = batches.get_state()
  with loader(workers=1) as batches:
    batches.set_state(state)
    rest = [next(batches) for _ in range(2)]
  print(json.dumps([[numbers(batch) for batch in first + rest], type(rest[0].text).__name__]))
"""


def test_a_worker_process_gives_the_same_batches_and_ends_cleanly(tmp_path):
  script = tmp_path / "with_worker.py"
  script.write_text(WITH_WORKER)
  run = subprocess.run(
    [sys.executable, "-W", "default::UserWarning", str(script)],
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'data'}"},
    timeout=120,
  )
  assert run.returncode == 0, run.stderr
  assert json.loads(run.stdout.splitlines()[-1]) == [take(5), "ndarray"]
  assert "leaked" not in run.stderr and "Exception ignored" not in run.stderr, run.stderr
