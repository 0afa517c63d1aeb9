"""Breaks small training runs in every way it knows and prints what each fault cost.

  python tests/benchmarks/faults.py --kills=100

A run trains the shrunk configuration of the tests. It is killed, stopped, starved or damaged at
random moments, and started again by the same call until it is done. Its parameters are then
compared with those of a run that nothing disturbed. Every fault is a real one: processes are killed
with SIGKILL, files are cut or changed on disk, writes fail.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
os.environ["JAX_PLATFORMS"] = "cpu"
# A run is started hundreds of times: it must compile once, and computes next to nothing.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="faults-cache-"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import numpy as np  # noqa: E402

from d4s_jax import errors  # noqa: E402
from d4s_jax.models.system import System  # noqa: E402
from d4s_jax.training import checkpoint, loop, processes, run_folder, state  # noqa: E402
from d4s_jax.training.log import read_metrics  # noqa: E402
from tests.data.records import plain_record, write_folder  # noqa: E402
from tests.support import small_config  # noqa: E402

_STEPS, _EVERY = 40, 4
_PATIENCE = 1800


@dataclasses.dataclass
class Row:
  """What came of one kind of fault.

  Attributes:
    name: the fault.
    count: how often it was caused.
    lost: the most steps that a restart had to make again.
    forgotten: the most of those that had been saved whole; should be 0.
    runs: runs that were compared when they were done.
    same: how many of them equal the undisturbed one, bit for bit.
    notes: what else a reader should know.
  """

  name: str
  count: int = 0
  lost: int = 0
  forgotten: int = 0
  runs: int = 0
  same: int = 0
  notes: str = ""

  def restarted(self, said: str, reached: int, whole: int) -> None:
    """Counts what a life had to make again, if by what it said it came as far as its first step.

    Args:
      said: by it.
      reached: the last step of the lives before.
      whole: the newest checkpoint when it began.
    """
    if found := re.search(r"resumed at step (\d+)|new run", said):
      self.lost = max(self.lost, reached - int(found[1] or 0))
      self.forgotten = max(self.forgotten, whole - int(found[1] or 0))


class Life:
  """One process that trains in `folder` until it is done, ends or is killed."""

  def __init__(self, folder: pathlib.Path, index: int = 0, prepare: Any = None, **changes: Any):
    """Starts it, by a fork of this process, which has imported everything and computed nothing.

    Args:
      folder: of the run.
      index: a number for the file of what it says.
      prepare: is called in the new process first.
      **changes: of the configuration, dots as double underscores.
    """
    self.folder, self.said = folder, folder.parent / f"{folder.name}.{index}.out"
    sys.stdout.flush()
    self.pid = os.fork()
    if self.pid == 0:
      self._train(prepare, changes)

  def _train(self, prepare: Any, changes: dict[str, Any]) -> None:
    code = 1
    try:
      out = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
      os.dup2(out, 1)
      os.dup2(out, 2)
      signal.signal(signal.SIGTERM, signal.default_int_handler)
      # What a finished run draws for people takes as long as its steps.
      loop.write_report = lambda *arguments: None
      config = _config(self.folder.parent / "clips")
      config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
      with errors.one_line(), processes.telling():
        if prepare:
          prepare()
        loop.run(config, self.folder)
      code = 0
    except SystemExit as error:
      code = error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
      code = 130
    except BaseException:
      traceback.print_exc()
    finally:
      sys.stdout.flush()
      os._exit(code)

  def ended(self) -> int | None:
    """The exit status (negative: of the signal), or None while it runs."""
    if self.pid:
      done, status = os.waitpid(self.pid, os.WNOHANG)
      if not done:
        return None
      self.pid, self._status = 0, os.waitstatus_to_exitcode(status)
    return self._status

  def wait(self, until: Callable[[], bool] = lambda: False) -> int | None:
    """Returns when `until` holds or it ended; what `ended` gives then."""
    begin = time.monotonic()
    while self.ended() is None and not until():
      if time.monotonic() - begin > _PATIENCE:
        self.kill()
        raise AssertionError(f"Nothing for {_PATIENCE} s: {self.said.read_text()[-2000:]}")
      time.sleep(0.02)
    return self.ended()

  def wait_for_steps(self, count: int) -> None:
    """Returns when it made so many, or ended."""
    begin = self.reached()
    self.wait(lambda: self.reached() >= begin + count)

  def kill(self) -> None:
    """SIGKILL."""
    if self.ended() is None:
      os.kill(self.pid, signal.SIGKILL)
      self.wait()

  def reached(self) -> int:
    """The last step whose metrics are on disk."""
    rows = read_metrics(self.folder, "train")
    return int(rows[-1]["step"]) if rows else 0


def _config(clips: pathlib.Path):
  config = small_config()
  config.stage, config.steps, config.batch_size = "diffusion", _STEPS, 2
  config.optimizer.warmup, config.heldout.batches, config.heldout.every = 1, 1, 10 * _STEPS
  config.checkpoint.every = _EVERY
  config.data.cache, config.data.clips = str(clips), 500
  return config


class Storm:
  """Runs in a folder, broken one after another and compared with one that was not."""

  def __init__(self, place: pathlib.Path, seed: int):
    self._place, self._random, self._runs = place, random.Random(seed), 0
    calm = Life(place / "calm")
    assert calm.wait() == 0, calm.said.read_text()[-3000:]
    self._expected = _parameters(place / "calm")

  def run(self, row: Row, faults: int, cause: Callable[[Life], str], **options: Any) -> Row:
    """Breaks runs until there were so many faults, and lets each of them end.

    Args:
      row: is filled in.
      faults: how many to cause.
      cause: breaks a life that was started; returns what it did, "" for nothing.
      **options: of `Life`.
    """
    while row.count < faults:
      self._runs += 1
      folder = self._place / f"run_{self._runs}"
      reached = 0
      while True:
        whole = max([0, *checkpoint.whole_steps(folder)])
        life = Life(folder, **options)
        if row.count < faults and cause(life):
          row.count += 1
        status = life.wait()
        said = life.said.read_text()
        row.restarted(said, reached, whole)
        if status not in (0, 1, 130, -signal.SIGKILL):
          raise AssertionError(f"exit status {status}: {said[-3000:]}")
        if status == 1 and said.count("error: ") != 1 or "Traceback" in said:
          raise AssertionError(f"not one clear line: {said[-3000:]}")
        reached = life.reached()
        if checkpoint.whole_steps(folder)[-1:] == [_STEPS]:
          break
      self.compare(row, folder)
      shutil.rmtree(folder)
    return row

  def compare(self, row: Row, folder: pathlib.Path) -> None:
    """Compares the parameters of a run that is done, and its metrics, with the undisturbed ones."""
    found = _parameters(folder)
    same = all(np.array_equal(found[path], x) for path, x in self._expected.items())
    rows = [read_metrics(x, "train") for x in (folder, self._place / "calm")]
    row.runs += 1
    row.same += same and rows[0] == rows[1]

  # Faults. Each waits for its moment in a life that was just started.

  def kill_any_time(self, life: Life) -> str:
    """Kills while it starts or restores, or during steps, saving or reading of data."""
    kind = self._random.choice(["start", "steps", "saving", "data"])
    if kind == "start":
      late = time.monotonic() + self._random.uniform(0, 12)
      life.wait(lambda: time.monotonic() > late)
    else:
      getattr(self, f"_during_{kind}")(life)
    if life.ended() is not None:
      return ""
    life.kill()
    return kind

  def _during_steps(self, life: Life) -> None:
    life.wait_for_steps(self._random.randrange(1, 15))
    time.sleep(self._random.uniform(0, 0.2))

  def _during_saving(self, life: Life) -> None:
    for _ in range(self._random.randrange(1, 3)):
      life.wait(lambda: not list(life.folder.glob("checkpoints/*tmp*")))
      life.wait(lambda: bool(list(life.folder.glob("checkpoints/*tmp*"))))
    time.sleep(self._random.uniform(0, 0.1))

  def _during_data(self, life: Life) -> None:
    """While a clip is drawn or written to the cache: the folder is emptied for that."""
    clips = life.folder.parent / "clips"
    shutil.rmtree(clips, ignore_errors=True)
    count = self._random.randrange(1, 20)
    life.wait(lambda: len(list(clips.glob("*/*.npz"))) >= count or bool(life.ended()))

  def stop(self, life: Life) -> str:
    """One to five SIGTERMs, up to a third of a second apart."""
    self._during_steps(life)
    for _ in range(self._random.randrange(1, 6)):
      if life.ended() is None:
        os.kill(life.pid, signal.SIGTERM)
      time.sleep(self._random.uniform(0, 0.3))
    return "stop"

  def fill_disk(self, life: Life) -> str:
    """From some moment on no file may grow beyond a size drawn at random."""
    self._during_steps(life)
    if life.ended() is not None:
      return ""
    size = self._random.randrange(1 << 10, 1 << 18)
    resource.prlimit(life.pid, resource.RLIMIT_FSIZE, (size, size))
    life.wait()
    return "full"

  def damage_checkpoint(self, life: Life) -> str:
    """Kills it after some steps, and cuts, changes or removes a file of its newest checkpoint."""
    life.wait(lambda: len(checkpoint.whole_steps(life.folder)) >= 2)
    self._during_steps(life)
    life.kill()
    newest = life.folder / "checkpoints" / str(checkpoint.whole_steps(life.folder)[-1])
    victim = self._random.choice(sorted(x for x in newest.rglob("*") if x.is_file()))
    contents = bytearray(victim.read_bytes())
    how = self._random.choice(["cut", "bit", "gone"])
    if how == "gone":
      victim.unlink()
    elif how == "cut":
      victim.write_bytes(contents[: self._random.randrange(len(contents) or 1)])
    elif contents:
      contents[self._random.randrange(len(contents))] ^= 1 << self._random.randrange(8)
      victim.write_bytes(contents)
    return how

  def damage_clips(self, life: Life) -> str:
    """Kills it after some steps, and cuts a tenth of the drawn clips that were kept."""
    self._during_steps(life)
    life.kill()
    files = sorted((life.folder.parent / "clips").glob("*/*.npz"))
    for victim in self._random.sample(files, max(1, len(files) // 10)):
      os.truncate(victim, self._random.randrange(victim.stat().st_size))
    return "cut"


def _parameters(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Those of the newest checkpoint, read in a process of its own: forks must find JAX unused."""
  script = (
    "import sys, pathlib, numpy; from tests.benchmarks import faults;"
    "numpy.savez(sys.argv[2], **faults.read_parameters(pathlib.Path(sys.argv[1])))"
  )
  file = folder.parent / f"{folder.name}.npz"
  root = pathlib.Path(__file__).parents[2]
  environment = os.environ | {"PYTHONPATH": str(root)}
  subprocess.run([sys.executable, "-c", script, folder, file], env=environment, check=True)
  with np.load(file) as stored:
    return dict(stored)


def read_parameters(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All parameters of the newest checkpoint of a run, by path, which must be its last."""
  system = System.build(run_folder.read_config(folder)["model"])
  params, step = checkpoint.read_model(folder, system.abstract())
  assert step == _STEPS, step
  return {path: np.asarray(x) for path, x in state.flatten(params).items()}


def _unreadable_records(place: pathlib.Path, kills: int, seed: int) -> Row:
  """Runs on a shard with damaged records, one left alone and one killed again and again."""
  row, random_ = Row("records of a shard changed"), random.Random(seed)
  folder = place / "shards"
  write_folder(folder, [plain_record(f"a/{x}", 5) for x in range(40)], 40, heldout=("a/0", "a/1"))
  (shard,) = folder.glob("*.array_record")
  contents = bytearray(shard.read_bytes())
  damaged = random_.sample(range(2, 40), 4)
  for number in damaged:
    contents[contents.index(f'"a/{number}"'.encode())] ^= 1
  shard.write_bytes(contents)
  options = {"data__source": f"shards:{folder}", "data__corrupt": 0.5}
  calm = Life(place / "shards-calm", **options)
  assert calm.wait() == 0, calm.said.read_text()[-3000:]
  reached = 0
  while True:
    whole = max([0, *checkpoint.whole_steps(place / "shards-killed")])
    life = Life(place / "shards-killed", **options)
    if row.count < kills:
      life.wait_for_steps(random_.randrange(1, 15))
      row.count += life.ended() is None
      life.kill()
    status = life.wait()
    row.restarted(life.said.read_text(), reached, whole)
    if status == 0:
      break
    reached = life.reached()
    assert life.ended() == -signal.SIGKILL, life.said.read_text()[-3000:]
  said = calm.said.read_text()
  found = re.search(r"(\d+) clips could not be read", said)
  assert found, said[-3000:]
  ends = [_parameters(x.folder) for x in (calm, life)]
  rows = [read_metrics(x.folder, "train") for x in (calm, life)]
  row.runs = 1
  row.same = int(
    all(np.array_equal(x, ends[1][path]) for path, x in ends[0].items()) and rows[0] == rows[1]
  )
  row.notes = f"{len(damaged)} of 38, and kills; others took their place {found[1]} times"
  return row


def _slow_host(place: pathlib.Path, seconds: float) -> Row:
  """Two processes, of which one is late with every step; against the same two without."""
  row = Row("a slow host", notes=f"one of 2 processes {seconds} s late with each of 10 steps")
  folders = [place / "pair", place / "slow"]
  for folder in folders:
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    late = seconds if folder.name == "slow" else 0

    def prepare(index: int, address: str = address, late: float = late) -> None:
      names = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
      os.environ.update(zip(names, (address, "2", str(index))))
      processes.join()
      if index and late:
        to_device = loop.sharding.to_device

        def delayed(*arguments: Any) -> Any:
          time.sleep(late)
          return to_device(*arguments)

        loop.sharding.to_device = delayed

    lives = [
      Life(folder, index, lambda index=index: prepare(index), steps=10) for index in range(2)
    ]
    for life in lives:
      assert life.wait() == 0, life.said.read_text()[-3000:]
  row.count = row.runs = 1
  rows = [read_metrics(folder, "train") for folder in folders]
  row.same = int(len(rows[0]) == 10 and rows[0] == rows[1])
  return row


def table(rows: list[Row]) -> str:
  """The rows as a table in Markdown."""
  lines = [
    "| fault | times | steps lost at most | of these saved | runs, bit-identical | |",
    "|---|---|---|---|---|---|",
  ]
  for row in rows:
    lines.append(
      f"| {row.name} | {row.count} | {row.lost} | {row.forgotten} | {row.runs}, {row.same} |"
      f" {row.notes} |"
    )
  return "\n".join(lines)


def storm(place: pathlib.Path, kills: int, others: int, seed: int) -> list[Row]:
  """Causes all kinds of faults in `place`, an empty folder.

  Args:
    place: takes the runs.
    kills: SIGKILLs at random moments.
    others: faults of each other kind.
    seed: of the moments.
  """
  rows = []
  weather = Storm(place, seed)
  for row, count, cause in (
    (Row("kill -9", notes="starting, restoring, in steps, saving, data"), kills, "kill_any_time"),
    (Row("SIGTERM, 1 to 5"), others, "stop"),
    (Row("disk full", notes="RLIMIT_FSIZE"), others, "fill_disk"),
    (Row("checkpoint cut, changed or gone"), others, "damage_checkpoint"),
    (Row("a tenth of the cached clips cut", notes="drawn anew"), others, "damage_clips"),
  ):
    begin = time.monotonic()
    if count:
      rows.append(weather.run(row, count, getattr(weather, cause)))
      print(f"{row} in {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
  if others:
    rows += [_unreadable_records(place, others, seed), _slow_host(place, 0.5)]
  return rows


def main() -> None:
  """Parses options and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=100)
  parser.add_argument("--others", type=int, default=5, help="faults of each other kind")
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  with contextlib.ExitStack() as stack:
    place = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    print(table(storm(place, options.kills, options.others, options.seed)))


if __name__ == "__main__":
  main()
