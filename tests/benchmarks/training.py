r"""What the training loop costs beside its steps, and what the compilation cache saves at a start.

  python tests/benchmarks/training.py            # all
  python tests/benchmarks/training.py --what=loop
  python tests/benchmarks/training.py --what=made
  python tests/benchmarks/training.py --what=starts

loop: `python -m d4s_jax.train --config=configs/joint.py` (data, progress line, metrics, JSON
lines, TensorBoard) against the same compiled step in a bare loop on batches that are there. Both
take turns in one process, some steps each, so that a machine that becomes slower does so for both;
each block of the loop is compared with the bare blocks before and after it. Held-out scores and
checkpoints are left out: a run's own account says what they take. Clips are read from a cache, and
then ("made") made anew, which takes processor time from the steps where both have the same cores.

starts: from the command to its first finished step, without and with what an earlier start left in
the compilation cache; new runs both, with the scores of held-out clips that come first. The ratio
in processor time is steadier on a machine that does other things.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "configs")]

import joint  # noqa: E402  (configs/joint.py)

from d4s_jax.training import compilation, loop  # noqa: E402
from d4s_jax.training.log import read_metrics  # noqa: E402
from d4s_jax.training.record import Record  # noqa: E402

# Blocks that are not counted: the first steps load what is used later.
_WARM = 1
# Inputs of the loop's steps that the bare ones take again.
_KEPT = 4


@dataclasses.dataclass
class Turns:
  """The loop's steps and bare ones, in turns."""

  steps: int
  step: Any = None
  state: Any = None
  inputs: list[Any] = dataclasses.field(default_factory=list)
  loop_seconds: list[float] = dataclasses.field(default_factory=list)
  bare_seconds: list[float] = dataclasses.field(default_factory=list)
  begin: float = 0.0

  def after(self, number: int, metrics: Any) -> None:
    """Is told of every step of the loop."""
    if number % self.steps:
      return
    jax.block_until_ready(metrics)
    if self.begin:
      self.loop_seconds.append((time.perf_counter() - self.begin) / self.steps)
    self.bare_seconds.append(self.bare_block())
    self.begin = time.perf_counter()

  def bare_block(self) -> float:
    """Seconds a step."""
    begin, metrics = time.perf_counter(), None
    for index in range(self.steps):
      self.state, metrics = self.step(self.state, *self.inputs[index % len(self.inputs)])
    jax.block_until_ready(metrics)
    return (time.perf_counter() - begin) / self.steps

  def report(self, name: str) -> None:
    """Prints the ratio and what it was measured beside."""
    around = [(a + b) / 2 for a, b in zip(self.bare_seconds, self.bare_seconds[1:])][_WARM:]
    ratios = sorted(a / b for a, b in zip(self.loop_seconds[_WARM:], around))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    print(
      f"{name}: a step of the loop takes {statistics.median(ratios):.3f} times a bare one"
      f" (quartiles {low:.3f} to {high:.3f}, {len(ratios)} blocks of {self.steps} steps; bare:"
      f" {statistics.median(around):.2f} s; {_beside()})",
      flush=True,
    )


def measure(config: ConfigDict, folder: pathlib.Path, turns: Turns) -> None:
  """Runs the loop with bare blocks in between."""

  def compiled(*arguments):
    turns.step = step = given(*arguments)

    def called(now, *inputs):
      if len(turns.inputs) < _KEPT:
        turns.inputs.append(inputs)
      return step(now, *inputs)

    called.eval_shape = step.eval_shape
    return called

  def created(*arguments):
    now = create(*arguments)
    turns.state = jax.tree.map(jnp.copy, now)
    return now

  class Told(Record):
    def train(self, number, metrics, batch):
      super().train(number, metrics, batch)
      turns.after(number, metrics)

  given, create = loop.make_update, loop.initialize.create_state
  loop.make_update, loop.initialize.create_state, loop.Record = compiled, created, Told
  try:
    loop.run(config, folder)
  finally:
    loop.make_update, loop.initialize.create_state, loop.Record = given, create, Record


def overhead(steps: int, blocks: int, cache: pathlib.Path | None) -> None:
  """Prints what the loop costs."""
  with tempfile.TemporaryDirectory() as name:
    config = joint.get_config("tiny")
    config.steps = (_WARM + blocks + 1) * steps
    config.heldout.every = config.checkpoint.every = config.steps + 1
    config.data.cache = str(cache or "")
    if cache:
      # Each clip is made once, before.
      config.data.clips = 4 * config.batch_size
    turns = Turns(steps)
    measure(config, pathlib.Path(name), turns)
    turns.report("clips from a cache" if cache else "clips made beside the steps")


def first_step(folder: pathlib.Path, cache: pathlib.Path) -> tuple[float, float]:
  """Seconds, and seconds of processor time, from the command to the first finished step."""
  command = [sys.executable, "-m", "d4s_jax.train", "--config=configs/joint.py"]
  variables = {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
  begin = time.perf_counter()
  process = subprocess.Popen(
    [*command, f"--workdir={folder}"],
    cwd=ROOT,
    env=os.environ | variables,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    while not read_metrics(folder, "train"):
      if process.poll() is not None:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
      time.sleep(0.1)
    seconds = time.perf_counter() - begin
    # Fields 14 and 15, after the name in brackets: user and system time in clock ticks.
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return seconds, sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
  finally:
    process.kill()
    process.wait()


def starts() -> None:
  """Prints what the compilation cache saves."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    found = [first_step(folder / f"run{x}", folder / "cache") for x in range(3)]
    for start, (seconds, processor) in zip(("first", "second", "third"), found):
      print(
        f"{start} start: {seconds:.1f} s to the first finished step, {processor:.1f} s of processor"
        f" time ({_beside()})"
      )
    for start, later in zip(("second", "third"), found[1:]):
      wall, processor = (a / b for a, b in zip(found[0], later))
      print(f"{start} start: {wall:.1f} times as fast, {processor:.1f} by processor time")


def _beside() -> str:
  return (
    f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--what", choices=("loop", "made", "starts", "all"), default="all")
  parser.add_argument("--steps", type=int, default=10, help="in a block")
  parser.add_argument("--blocks", type=int, default=10)
  options = parser.parse_args()
  if options.what in ("loop", "all"):
    with tempfile.TemporaryDirectory() as cache:
      overhead(options.steps, options.blocks, pathlib.Path(cache))
  if options.what in ("made", "all"):
    overhead(options.steps, options.blocks, None)
  if options.what in ("starts", "all"):
    starts()


if __name__ == "__main__":
  if note := compilation.cache():
    print(note)
  main()
