"""`python -m d4s_jax.train` as users run it: it learns, resumes bit for bit, and stops cleanly.

A run is a separate process, so that a kill is a real one. The configuration is the tiny preset
shrunk by tests.support until compiling is all that takes time.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from d4s_jax import errors
from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, run_folder
from d4s_jax.training.log import read_metrics
from tests.support import small_config

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
from tests.support import small_config

def get_config(steps="12"):
  config = small_config()
  config.stage = "joint"
  config.trainable = ("^transformer/", "^text_encoder/", "^ldrm/")
  # LPIPS needs 31 pixels.
  config.clip.height = config.clip.width = 32
  config.steps = int(steps)
  config.optimizer.warmup = 2
  config.heldout.batches, config.heldout.every = 1, 6
  config.checkpoint.every = 3
  return config
"""


# Less to trace, where it doesn't matter what is learned.
DIFFUSION = "--config.stage=diffusion", "--config.trainable=('^transformer/','^text_encoder/')"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  folder = tmp_path_factory.mktemp("train")
  (folder / "config.py").write_text(CONFIG)
  return folder


def command(place, workdir, *options, steps=12):
  return [
    *(sys.executable, "-m", "d4s_jax.train"),
    f"--config={place / 'config.py'}:{steps}",
    f"--workdir={place / workdir}",
    *options,
  ]


def environment(place):
  # The compilation cache makes every process after the first start quickly.
  return {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    "JAX_COMPILATION_CACHE_DIR": str(place / "cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
  }


def train(place, workdir, *options, steps=12, **variables):
  return subprocess.run(
    command(place, workdir, *options, steps=steps),
    env=environment(place) | variables,
    capture_output=True,
    text=True,
    timeout=900,
  )


def start(place, workdir, *options):
  return subprocess.Popen(
    command(place, workdir, *options),
    env=environment(place),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def wait_for_step(process, workdir, step):
  """Waits until the metrics of a step are on disk."""
  until = time.monotonic() + 600
  while time.monotonic() < until and process.poll() is None:
    rows = read_metrics(workdir, "train")
    if rows and rows[-1]["step"] >= step:
      return
    time.sleep(0.02)
  raise AssertionError(f"step {step} never came: {process.communicate()[0][-2000:]}")


def parameters(workdir):
  system = System.build(run_folder.read_config(workdir)["model"])
  return checkpoint.read_model(workdir, system.abstract())


@pytest.fixture(scope="module")
def whole(place):
  """A run that nothing interrupts."""
  done = train(place, "whole")
  assert done.returncode == 0, done.stderr[-3000:]
  return place / "whole", done


@pytest.fixture(scope="module")
def short(place):
  """The same of the diffusion stage."""
  done = train(place, "short", *DIFFUSION)
  assert done.returncode == 0, done.stderr[-3000:]
  return place / "short"


def test_run_leaves_everything_it_promises(whole):
  folder, done = whole
  assert [row["step"] for row in read_metrics(folder, "train")] == list(range(1, 13))
  assert [row["step"] for row in read_metrics(folder, "heldout")] == [0, 6, 12]
  for name in ("config.json", "curves.png", "summary.json", "samples.png", "samples/heldout_0.mp4"):
    assert (folder / name).stat().st_size > 500, name
  assert list((folder / "tensorboard").iterdir())
  assert parameters(folder)[1] == 12
  for term in ("flow_matching", "photometric", "perceptual", "geometric", "motion", "psnr"):
    assert term in done.stdout
  assert "12/12" in done.stderr  # the progress line
  # Where time went: accounts up to each checkpoint, a line, and the sums of all of them.
  assert [row["step"] for row in read_metrics(folder, "watch")] == [0, 3, 6, 9, 12, 12]
  (line,) = re.findall(r"time: \d+ s in 1 start\(s\), [\d.]+% of it in steps.*", done.stdout)
  summary = json.loads((folder / "summary.json").read_text())
  assert summary["counts"]["corrupt_clips"] == 0
  watch = summary["watch"]
  assert watch["host_gib"] > 0.2 and watch["lost"] == 0 and watch["starts"] == 1
  assert all(watch[part] > 0 for part in ("steps", "heldout", "checkpoint", "logging", "start"))
  assert f"{watch['goodput']:.1%} of it" in line and 0 < watch["goodput"] < 1
  norms = {name for name in read_metrics(folder, "train")[0] if name.startswith("gradient_norm/")}
  assert {f"gradient_norm/{x}" for x in ("text_encoder", "transformer", "ldrm/trunk")} <= norms


def test_training_changes_what_it_should(whole):
  folder, _ = whole
  system = System.build(run_folder.read_config(folder)["model"])
  before = jax.jit(system.init)(jax.random.key(0, impl="unsafe_rbg"))
  after, _ = parameters(folder)
  for part in ("transformer", "text_encoder", "ldrm"):
    pairs = zip(jax.tree.leaves(before[part]), jax.tree.leaves(after[part]))
    assert not all(np.array_equal(x, y) for x, y in pairs), part
  rows = read_metrics(folder, "train")
  assert rows[-1]["photometric"] < rows[0]["photometric"]


@pytest.mark.parametrize(
  "kill_after", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 7))]
)
def test_killed_run_resumes_bit_for_bit(place, whole, kill_after):
  folder = place / f"killed_{kill_after}"
  process = start(place, folder.name)
  # Step 3 is being saved in the background about when its metrics appear.
  wait_for_step(process, folder, kill_after)
  process.kill()
  process.wait()
  done = train(place, folder.name)
  assert done.returncode == 0, done.stderr[-3000:]
  expected, actual = parameters(whole[0])[0], parameters(folder)[0]
  jax.tree.map(np.testing.assert_array_equal, actual, expected)
  assert read_metrics(folder, "train") == read_metrics(whole[0], "train")
  assert read_metrics(folder, "heldout") == read_metrics(whole[0], "heldout")
  watch = json.loads((folder / "summary.json").read_text())["watch"]
  assert watch["starts"] == 2 and watch["lost"] > 0


def test_sigterm_saves_and_exits_cleanly(place, short):
  folder = place / "stopped"
  process = start(place, folder.name, *DIFFUSION)
  wait_for_step(process, folder, 1)
  process.send_signal(signal.SIGTERM)
  output = process.communicate(timeout=300)[0]
  assert process.returncode == errors.STOPPED, output[-2000:]
  assert "the same command goes on from there" in output
  reached = parameters(folder)[1]
  assert 1 <= reached < 12
  assert read_metrics(folder, "train")[-1]["step"] == reached


def test_finished_run_is_not_trained_again(place, short):
  before = [read_metrics(short, log) for log in ("train", "heldout")]
  done = train(place, "short", *DIFFUSION)
  assert done.returncode == 0, done.stderr[-3000:]
  assert [read_metrics(short, log) for log in ("train", "heldout")] == before


def expect_error(done, *parts):
  assert done.returncode != 0
  lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
  for part in parts:
    assert part in lines[0]


def test_bad_input_is_one_clear_line(place, whole):
  expect_error(train(place, "bad", "--config.clip.frames=8"), "frames 8", "5", "9")
  assert not (place / "bad").exists()
  expect_error(train(place, "whole", "--config.seed=1"), "seed: saved 0, now 1", "--workdir")
  expect_error(train(place, "bad", "--stepz=3"), "stepz")


@pytest.mark.slow
def test_more_bad_input_is_one_clear_line(place, whole):
  expect_error(train(place, "bad", "--config.optimizer.peek=1"), "key 'peek'", "peak")
  expect_error(train(place, "bad", "--config.model.ldrm.heads=3"), "3 heads don't divide")
  assert not (place / "bad").exists()
  expect_error(train(place, "whole", "--config.steps=3"), "steps is 3", "at step 12 already")
  expect_error(train(place, "bad", "--config.init.ldrm=shiped"), 'init.ldrm is "shiped"')
  expect_error(train(place, "bad", steps="many"), "'many'")


def test_damaged_checkpoint_is_set_aside_and_the_one_before_serves(place, short):
  import shutil

  folder = place / "damaged"
  shutil.copytree(short, folder)
  newest = folder / "checkpoints" / "12" / "model"
  victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  victim.write_bytes(victim.read_bytes()[:100])
  done = train(place, "damaged", *DIFFUSION)
  assert done.returncode == 0, done.stderr[-3000:]
  assert "WARNING: step 12 is not used" in done.stdout and "resumed at step 9" in done.stdout
  assert "Traceback" not in done.stderr, done.stderr[-3000:]
  jax.tree.map(np.testing.assert_array_equal, parameters(folder)[0], parameters(short)[0])
  assert len(list(folder.glob("damaged/12-*/model"))) == 1


def test_diverging_run_names_the_cause_and_the_last_good_checkpoint(place, whole):
  options = ("--config.optimizer.peak=1e30", "--config.optimizer.clip=1e30")
  done = train(place, "diverged", *options, "--config.checkpoint.every=1")
  expect_error(done, "is not finite: the loss term flow_matching", "The update was not applied")
  expect_error(done, "The batch is.")
  # The rate is 0 at the first update and beyond all bounds at the second.
  good = int(re.search(r"checkpoint (\d+) is good", done.stderr)[1])
  assert good >= 1 and parameters(place / "diverged")[1] == good


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX limits")
def test_full_disk_keeps_the_last_checkpoint(place, short):
  """A limit on file sizes stands for a full disk: every larger write fails with an OS error."""
  import shutil

  folder = place / "full"
  shutil.copytree(short, folder)
  script = (
    "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536));"
    "sys.argv = sys.argv[1:]; runpy.run_module('d4s_jax.train', run_name='__main__')"
  )
  arguments = command(place, "full", "--config.steps=20", *DIFFUSION)[2:]
  done = subprocess.run(
    [sys.executable, "-c", script, *arguments],
    env=environment(place) | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
    capture_output=True,
    text=True,
    timeout=900,
  )
  expect_error(done, "can't be written", "File too large", "12 is good", "Make room")
  assert parameters(folder)[1] == 12


def test_no_step_makes_a_number_that_is_not_finite_and_some_are_traced(place, whole):
  """JAX looks at all that a program returns; the same run is profiled."""
  done = train(place, "checked", "--profile=2:3", JAX_DEBUG_NANS="1")
  assert done.returncode == 0, done.stderr[-3000:]
  (trace,) = (place / "checked" / "profile").rglob("*.xplane.pb")
  assert trace.stat().st_size > 10_000
  expect_error(train(place, "checked", "--profile=2:13"), "this run ends at 12")


# From the moment at which a batch is asked for until its step is recorded, nothing may travel
# between host and devices but by device_put, make_array and device_get. On CPUs JAX's own guard
# sees only what goes to the device, so what comes back is caught where Python asks for it.
GUARDED = """
import atexit, contextlib, threading
import jax
from d4s_jax import train
from d4s_jax.data.loader import Loader
from d4s_jax.training.record import Record

steps, guard, explicit, training = 0, contextlib.ExitStack(), True, False
ask, keep, get, enter = Loader.__next__, Record.train, jax.device_get, Record.__enter__
kind = type(jax.numpy.zeros(()))

def entered(record):
  global training
  training = True
  return enter(record)

def asked(loader):
  # Held-out clips, which are read in order, are no part of a step.
  if not training or loader.data["seed"] is None:
    return ask(loader)
  guard.enter_context(jax.transfer_guard("disallow"))
  guard.enter_context(fetching(False))
  return ask(loader)

def kept(*arguments):
  global steps
  steps += 1
  keep(*arguments)
  ADDED
  guard.close()

@contextlib.contextmanager
def fetching(allowed):
  global explicit
  before, explicit = explicit, allowed
  yield
  explicit = before

def fetched(tree):
  with fetching(True):
    return get(tree)

def checked(name):
  method = getattr(kind, name)
  def check(*arguments, **options):
    # Checkpoints are fetched by threads of their own.
    if not explicit and threading.current_thread() is threading.main_thread():
      raise RuntimeError(f"{name} in a step: a transfer to the host that nobody asked for")
    return method(*arguments, **options)
  setattr(kind, name, check)

jax.device_get, Loader.__next__, Record.train, Record.__enter__ = fetched, asked, kept, entered
for name in ("__array__", "__float__", "__int__", "__bool__", "__index__", "item", "tolist"):
  checked(name)
# absl ends the process.
atexit.register(lambda: print("guarded steps:", steps))
train.flags.mark_flag_as_required("config")
train.errors.run(train.main)
"""


@pytest.mark.parametrize(
  ("added", "caught"),
  [
    ("", ""),
    # What the guard is to catch, at the first step.
    ("jax.numpy.sin(2.0)", "Disallowed host-to-device transfer"),
    ('float(arguments[2]["loss"])', "a transfer to the host that nobody asked for"),
  ],
)
def test_the_loop_moves_nothing_between_host_and_device_by_accident(place, whole, added, caught):
  script = GUARDED.replace("ADDED", added)
  name = f"guarded_{len(added)}"
  done = subprocess.run(
    [sys.executable, "-c", script, *command(place, name, *(DIFFUSION if caught else ()))[3:]],
    env=environment(place),
    capture_output=True,
    text=True,
    timeout=900,
  )
  if caught:
    assert done.returncode != 0 and caught in done.stderr, done.stderr[-3000:]
  else:
    assert done.returncode == 0 and "guarded steps: 12" in done.stdout, done.stderr[-3000:]


def test_config_of_these_tests_is_small():
  assert small_config().model.ldrm.depth == 2
