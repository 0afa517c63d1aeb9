"""Whole runs on Ray: as a user gives the command, killed at random, with deadly files."""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
import types

import numpy as np
import psutil
import pytest

from d4s_jax.curation import pipeline
from d4s_jax.curation.guard import Guard
from d4s_jax.curation.ledger import Ledger
from d4s_jax.curation.units import Span, Unit
from d4s_jax.data.shards import MANIFEST
from d4s_jax.data.source import open_source
from tests.curation.footage import write_films
from tests.data.records import entry, plain_record

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = ["--set=shard=2", "--set=side=64", "--set=shortest=9"]


def start(source, output, *more, **environment):
  command = [sys.executable, "-m", "d4s_jax.curate", "--dataset=videos", f"--source={source}"]
  path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  return subprocess.Popen(
    [*command, f"--output={output}", *SETTINGS, *more],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env={**os.environ, "PYTHONPATH": path, **environment},
    start_new_session=True,
  )


def finish(process, status=0):
  told, _ = process.communicate(timeout=500)
  assert process.returncode == status, told
  return told


def results(output):
  return {
    path.name: path.read_bytes()
    for path in output.iterdir()
    if path.is_file() and path.name.startswith(("shard", MANIFEST))
  }


def test_a_folder_of_videos_becomes_shards_that_training_reads(tmp_path):
  """With one file that is no video; the rest goes on, and the same command again is quick."""
  write_films(tmp_path / "films", 1)
  (tmp_path / "films" / "text.mp4").write_text("no video")
  told = finish(start(tmp_path / "films", tmp_path / "out"))
  assert "2 of 2 clips of 2 scenes or files were kept, 1 quarantined" in told
  report = (tmp_path / "out" / "report.md").read_text()
  assert re.search("text.mp4 cannot be read as a video.*Fetch the file again", report)
  assert (tmp_path / "out" / "histograms.png").is_file()
  assert (tmp_path / "out" / "samples.png").is_file()
  assert not list((tmp_path / "out" / "attempts").iterdir())
  size = {"frames": 9, "height": 32, "width": 32}
  clips = open_source(f"shards:{tmp_path}/out", posed=False, length=9, views=2, **size)
  assert clips.read(0).source.images.shape == (9, 32, 32, 3)
  before = results(tmp_path / "out")
  assert "2 of 2 clips" in finish(start(tmp_path / "films", tmp_path / "out"))
  assert results(tmp_path / "out") == before


class _Killed(Exception):
  pass


class _Fake:
  """What the engine's workers would do, without them; it dies after some decisions."""

  def __init__(self, left=10**6):
    self._left = left

  def split(self, units, update):
    del update
    for unit in units:
      spans = [Span(unit, i, i + 8) for i in range(int(unit.name.rpartition("/")[2]) % 4)]
      told = {"unit": unit.name, "spans": spans}
      yield {**told, "problems": [], "failed": "", "again": False}

  def assess(self, spans):
    for span in spans:
      if not self._left:
        raise _Killed
      self._left -= 1
      told = {"clip": span.name, "unit": span.unit.name, "kept": False, "reason": "flow 0"}
      if span.first != 1:
        record = plain_record(f"{span.unit.name}{span.first}")
        told = {"clip": span.name, "unit": span.unit.name, "kept": True, "hashes": []}
        told["record"] = dict(entry(record, "", 0).__dict__)
      yield {"told": told, "record": span.name.encode()}


def test_a_kill_in_any_wave_changes_nothing(tmp_path, monkeypatch):
  """Units are far more than a wave; killed after each number of decisions, and once more."""
  monkeypatch.setattr(pipeline, "_WAVE", 3)
  units = [Unit("videos", "/films", f"{number}") for number in range(11)]

  def bar(*_):
    return contextlib.nullcontext(types.SimpleNamespace(update=lambda count: None))

  def decide(folder, left):
    pipeline._decide(_Fake(left), units, Ledger(folder, {"shard": 2}), bar)

  decide(tmp_path / "whole", 10**6)
  expected = results(tmp_path / "whole")
  assert len(expected) > 5
  for left in range(14):
    folder = tmp_path / f"killed{left}"
    for count in (left, 3):
      with contextlib.suppress(_Killed):
        decide(folder, count)
    decide(folder, 10**6)
    assert results(folder) == expected, left
  assert all(Ledger(tmp_path / "whole", {"shard": 2}).done(unit.name) for unit in units)


def test_an_error_of_our_own_keeps_its_message_and_remedy():
  """The engine's wrapping is taken off, and no more: not what our error came from."""
  try:
    raise ValueError("film.mp4 is damaged; fetch it again") from OSError(5, "I/O error")
  except ValueError as error:
    own = error

  class Wrapping(Exception):
    cause = own

  outer = Wrapping("RayTaskError")
  outer.__cause__ = KeyError("engine")
  engine = types.SimpleNamespace(cluster_resources=dict)

  def start(thing, number):
    raise outer

  flow = pipeline._Flow.__new__(pipeline._Flow)
  flow._engine = engine
  with pytest.raises(ValueError, match="fetch it again") as raised:
    list(flow._ordered([1], start, 1, lambda: None))
  assert raised.value is own


def test_the_search_for_shots_is_shown_while_it_lasts(tmp_path):
  """By hundredths of each file, which workers note; nothing is left of it afterwards."""
  guard, shown = Guard(tmp_path, 60), []
  units = [Unit("videos", "/films", name) for name in "abc"]

  class Engine:
    """Its files are a third further at each look, and done after three."""

    looks = 0

    def cluster_resources(self):
      return {"CPU": 1}

    def wait(self, results, **_):
      self.looks += 1
      for unit in units if self.looks <= 3 else ():
        guard.meter(unit.name).tell(self.looks / 3)
      return ([], results) if self.looks < 3 else (results, [])

    def get(self, results):
      return results

  guard.meter("videos/c").tell(0.9)  # of an earlier run, killed
  flow = pipeline._Flow.__new__(pipeline._Flow)
  flow._engine, flow._guard, flow._common = Engine(), guard, ()
  flow._split = types.SimpleNamespace(remote=lambda unit: {"unit": unit.name})
  assert [row["unit"][-1] for row in flow.split(units, shown.append)] == ["a", "b", "c"]
  assert np.cumsum(shown).tolist() == [99, 198, 300, 300, 300]
  assert not list(tmp_path.iterdir())


def _workers(driver):
  """Processes of this run that work on clips, and nobody else's: a node dies with its agents."""
  try:
    family = psutil.Process(driver.pid).children(recursive=True)
    return [one for one in family if "ray::" in _line(one) and "agent" not in _line(one).lower()]
  except psutil.Error:
    return []


def _line(process):
  try:
    return " ".join(process.cmdline())
  except psutil.Error:
    return ""


def _kill_all(driver):
  """Driver and whatever it started, as when a machine goes down."""
  try:
    family = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
  except psutil.Error:
    return
  for one in family:
    try:
      one.kill()
    except psutil.Error:
      pass
  driver.wait()
  driver.stdout.close()


@pytest.mark.slow
def test_random_kills_of_workers_and_drivers_change_nothing(tmp_path):
  """Workers are killed every second, the driver three times: shards and manifest are the same."""
  write_films(tmp_path / "films", 6, 3)
  finish(start(tmp_path / "films", tmp_path / "whole"))
  expected = results(tmp_path / "whole")
  # Two shots that look alike may be one clip; most are not.
  assert len(expected) > 7
  rng = random.Random(0)
  killed = 0
  for attempt in range(4):
    run = start(tmp_path / "films", tmp_path / "killed")
    end = time.time() + (rng.uniform(15, 40) if attempt < 3 else 200)
    while run.poll() is None and time.time() < end:
      time.sleep(rng.uniform(0.5, 1.5))
      workers = _workers(run)
      if workers and killed < 12:
        try:
          rng.choice(workers).send_signal(signal.SIGKILL)
          killed += 1
        except psutil.Error:
          pass
    if attempt < 3:
      _kill_all(run)
    else:
      finish(run)
  assert killed > 2
  names = [json.loads(x).get("clip") for x in (tmp_path / "killed" / MANIFEST).open()]
  assert len([x for x in names if x]) == len({x for x in names if x}) > 12
  assert results(tmp_path / "killed") == expected


@pytest.mark.slow
def test_a_clip_that_kills_its_reader_is_quarantined(tmp_path):
  """A captioner stands for a decoder with a bug: it ends the process on one of the clips."""
  write_films(tmp_path / "films", 2, 1)
  poison = tmp_path / "sitecustomize.py"
  poison.write_text(
    "import os, sys\n"
    "from d4s_jax.formats.footage import Footage\n"
    "whole = Footage.read\n"
    "def read(self, number):\n"
    "  if 'film 1' in str(self.path): os.kill(os.getpid(), 9)\n"
    "  return whole(self, number)\n"
    "Footage.read = read\n"
  )
  path = os.pathsep.join([str(tmp_path), str(ROOT)])
  told = finish(start(tmp_path / "films", tmp_path / "out", PYTHONPATH=path))
  assert "1 of 2 clips of 2 scenes or files were kept, 1 quarantined" in told
  assert "its worker crashes, repeatedly" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_a_plug_in_that_kills_its_process_loses_one_clip(tmp_path):
  """On one of the clips, whatever else is asked with it."""
  write_films(tmp_path / "films", 3, 1)
  (tmp_path / "deadly.py").write_text(
    "import os\n"
    "def captioner():\n"
    "  def ask(clips):\n"
    "    if any('film 1' in clip.unit for clip in clips): os.kill(os.getpid(), 9)\n"
    "    return ['a cat'] * len(clips)\n"
    "  return ask\n"
  )
  path = os.pathsep.join([str(tmp_path), str(ROOT)])
  plugin = "--plugin=captions=deadly:captioner"
  told = finish(start(tmp_path / "films", tmp_path / "out", plugin, PYTHONPATH=path))
  assert "2 of 3 clips of 3 scenes or files were kept, 1 quarantined" in told
  assert "process crashes on it, or doesn't end" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_a_clip_that_hangs_is_quarantined(tmp_path):
  """On the first attempt already; the rest goes on."""
  write_films(tmp_path / "films", 2, 1)
  (tmp_path / "sitecustomize.py").write_text(
    "import time\n"
    "from d4s_jax.formats.footage import Footage\n"
    "whole = Footage.read\n"
    "def read(self, number):\n"
    "  if 'film 1' in str(self.path): time.sleep(10000)\n"
    "  return whole(self, number)\n"
    "Footage.read = read\n"
  )
  path = os.pathsep.join([str(tmp_path), str(ROOT)])
  arguments = ("--set=patience=20",)
  told = finish(start(tmp_path / "films", tmp_path / "out", *arguments, PYTHONPATH=path))
  assert "1 of 2 clips of 2 scenes or files were kept, 1 quarantined" in told
  assert "it does not end within 20 s" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_a_cluster_of_two_nodes_does_the_same(tmp_path, monkeypatch):
  """Both nodes work, each with a core of its own; results are those of this machine alone."""
  cluster_utils = pytest.importorskip("ray.cluster_utils")
  write_films(tmp_path / "films", 4, 2)
  finish(start(tmp_path / "films", tmp_path / "alone"))
  (tmp_path / "nodes").mkdir()
  (tmp_path / "sitecustomize.py").write_text(
    "import pathlib\n"
    "from d4s_jax.formats.footage import Footage\n"
    "whole = Footage.read\n"
    "def read(self, number):\n"
    "  import ray\n"
    "  node = ray.get_runtime_context().get_node_id()\n"
    f"  pathlib.Path({str(tmp_path / 'nodes')!r}, node).touch()\n"
    "  return whole(self, number)\n"
    "Footage.read = read\n"
  )
  # Of the nodes, whose workers have it from them.
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
  monkeypatch.setenv("RAY_worker_niceness", "0")
  node = {"num_cpus": 1, "object_store_memory": 200 << 20}
  cluster = cluster_utils.Cluster(
    initialize_head=True, head_node_args={**node, "include_dashboard": False}
  )
  try:
    cluster.add_node(**node)
    finish(start(tmp_path / "films", tmp_path / "out", RAY_ADDRESS=cluster.address))
  finally:
    cluster.shutdown()
  assert len(list((tmp_path / "nodes").iterdir())) == 2
  assert results(tmp_path / "out") == results(tmp_path / "alone")
