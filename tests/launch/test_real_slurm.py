"""`launch/slurm.sh` on a real Slurm: one node, this machine, which trains with two processes.

On Debian: apt-get install slurmctld slurmd slurm-client munge
"""

import os
import pathlib
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest

from d4s_jax.training import checkpoint
from d4s_jax.training.log import read_metrics
from tests.launch.stand_ins import ROOT

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
MISSING = [name for name in NEEDED if not shutil.which(name)]
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(bool(MISSING), reason=f"Slurm is not installed ({', '.join(MISSING)})"),
]
STEPS = 100
# Seconds to wait for anything, on a machine that may be busy.
LONG = 3600
# Jobs of `high` take the node from those of `low`, which have time to save.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
KillWait=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=300
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF
"""
TRAINING = f"""
from tests.support import small_config

def get_config():
  config = small_config()
  config.stage, config.steps, config.batch_size = "diffusion", {STEPS}, 4
  config.checkpoint.every, config.optimizer.warmup = 10, 1
  config.heldout.every, config.heldout.batches = {STEPS}, 1
  return config
"""


class Slurm:
  """A cluster whose daemons are children of this process, and its commands."""

  def __init__(self, place: pathlib.Path):
    self.place = place
    (place / "state").mkdir()
    (place / "config.py").write_text(TRAINING)
    (place / "key").write_bytes(os.urandom(1024))
    (place / "key").chmod(0o600)
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
      each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
      each.close()
    host, user = socket.gethostname().partition(".")[0], pwd.getpwuid(os.geteuid()).pw_name
    text = CONFIG.format(host=host, ports=ports, user=user, place=place)
    (place / "slurm.conf").write_text(text)
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    self.environment = os.environ | {
      "PATH": path,
      "PYTHONPATH": str(ROOT),
      "SLURM_CONF": str(place / "slurm.conf"),
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(place / "cache"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    munge = [f"--{name}-file={place}/{name}" for name in ("key", "pid", "log", "seed")]
    self._daemons = []
    self._start("munged", "--foreground", "--force", f"--socket={place}/munge.socket", *munge)
    self._start("slurmctld", "-D", "-c")
    self._start("slurmd", "-D", "-N", host)
    self.until(lambda: "idle" in self("sinfo", "--noheader", check=False))

  def _start(self, *words: str) -> None:
    log = (self.place / f"{words[0]}.out").open("w")
    self._daemons.append(
      subprocess.Popen(words, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
    )

  def __call__(self, *words: str, check: bool = True) -> str:
    done = subprocess.run(
      words, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=60
    )
    assert not check or done.returncode == 0, done
    return done.stdout

  def submit(self, name: str) -> str:
    """A training of two processes; the job's number."""
    options = [f"--job-name={name}", "--ntasks=2", f"--output={self.place / name}.out"]
    training = [f"--config={self.place / 'config.py'}", f"--workdir={self.place / name}"]
    return self("sbatch", "--parsable", *options, "launch/slurm.sh", "--", *training).strip()

  def state(self, job: str) -> str:
    found = re.search(r"JobState=(\w+)", self("scontrol", "show", "job", job))
    assert found
    return found[1]

  def begin(self, job: str) -> None:
    """What was requeued starts now, not in two minutes."""
    self.until(lambda: self.state(job) == "PENDING")
    self("scontrol", "update", f"JobId={job}", "StartTime=now")

  def said(self, name: str) -> str:
    path = self.place / f"{name}.out"
    # Two processes write their bars into it, in parts.
    return path.read_text(errors="replace") if path.exists() else ""

  def until(self, holds) -> None:
    end = time.monotonic() + LONG
    while not holds():
      assert time.monotonic() < end, "\n".join(self.said(x.stem) for x in self.place.glob("*.out"))
      time.sleep(0.3)

  def until_step(self, name: str, step: int) -> None:
    folder = self.place / name / "checkpoints"
    self.until(lambda: any(x.name.isdigit() and int(x.name) >= step for x in folder.glob("*")))

  def close(self) -> None:
    self("scancel", "--signal=KILL", "--full", "--user", str(os.geteuid()), check=False)
    self("scancel", "--user", str(os.geteuid()), check=False)
    for daemon in reversed(self._daemons):
      daemon.terminate()
      daemon.wait(timeout=60)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
  cluster = Slurm(tmp_path_factory.mktemp("slurm"))
  yield cluster
  cluster.close()


def test_a_requeued_job_goes_on_from_what_it_saved_to_the_end(slurm):
  job = slurm.submit("requeued")
  slurm.until_step("requeued", 10)
  slurm("scontrol", "requeue", job)
  slurm.begin(job)
  slurm.until(lambda: slurm.state(job) == "COMPLETED")
  said = slurm.said("requeued")
  [saved] = re.findall(r"0: Stopped by a signal at step (\d+)", said)
  assert 10 <= int(saved) < STEPS
  assert f"resumed at step {saved}" in said
  assert checkpoint.latest_step(slurm.place / "requeued") == STEPS
  rows = read_metrics(slurm.place / "requeued", "train")
  assert [row["step"] for row in rows] == list(range(1, STEPS + 1))


def test_a_preempted_job_goes_back_into_the_queue_and_a_cancelled_one_does_not(slurm):
  job = slurm.submit("preempted")
  slurm.until_step("preempted", 10)
  urgent = slurm("sbatch", "--parsable", "--partition=high", "--ntasks=2", "--output=/dev/null",
                 "--wrap=sleep 1").strip()  # fmt: skip
  slurm.begin(job)
  slurm.until(lambda: slurm.state(urgent) == "COMPLETED")
  [saved] = re.findall(r"0: Stopped by a signal at step (\d+)", slurm.said("preempted"))
  slurm.until(lambda: f"resumed at step {saved}" in slurm.said("preempted"))
  slurm.until_step("preempted", int(saved) + 10)
  slurm("scancel", job)
  slurm.until(lambda: slurm.state(job) == "CANCELLED")
  slurm.until(lambda: job not in slurm("squeue", "--noheader"))
  assert slurm.said("preempted").count("0: Stopped by a signal at step") == 2
