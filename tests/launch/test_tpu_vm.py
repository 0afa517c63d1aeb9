"""`launch/tpu_vm.sh`, with a stand-in for gcloud that behaves as a small cloud.

What is sent to the machines runs here, with stand-ins for sudo and docker.
"""

import os
import re
import shutil
import subprocess

import pytest

from tests.launch.stand_ins import PATIENCE, TRAINING, UNTIL_STOPPED, one_line

OPTIONS = (
  "--name=joint",
  "--zone=us-east5-a",
  "--type=v5p-128",
  "--image=us-docker.pkg.dev/p/r/d4s_jax",
)
PLACE = ["--zone=us-east5-a", "--quiet"]
# The state of the resource is in a file. `create` fails with each text of `errors` in turn, and
# leads to each state of `states`, the last one for ever. What is said to hosts is done here.
CLOUD = """
import subprocess
verb, state = words[3], place + "/state"
def turn(values, *start):
  return values[min(sum(x.startswith(repr(list(start))[:-1]) for x in before), len(values) - 1)]
def fail(text, status=1):
  print("ERROR: (gcloud.x)", text, file=sys.stderr)
  sys.exit(status)
if verb == "create":
  error = turn({errors!r}, name, *words[:4])
  if error:
    fail(error)
  open(state, "w").write(turn({states!r}, name, *words[:4]))
elif not os.path.exists(state):
  fail("NOT_FOUND: Resource 'projects/p/joint' was not found")
elif verb == "describe":
  now = open(state).read().split(",")
  print(now[0])
  open(state, "w").write(",".join(now[1:] or now))
elif verb == "delete":
  os.remove(state)
elif verb == "ssh":
  command = [word for word in words if word.startswith("--command=")][0].partition("=")[2]
  status = subprocess.run(["bash", "-c", command]).returncode
  if os.path.exists(place + "/lose"):
    os.rename(place + "/lose", state)
  sys.exit(status)
else:
  sys.exit(2)
"""
SUDO = "os.execvp(words[0], words)"
# `docker run` ends with each of these in turn; at "p" the machines have gone as well.
DOCKER = """
ends = {}
if words[0] == "run":
  end = str(ends[min(sum(line.startswith("['docker', 'run'") for line in before), len(ends) - 1)])
  if end.startswith("p"):
    open(place + "/lose", "w").write("SUSPENDING,SUSPENDED")
  sys.exit(int(end.lstrip("p")))
"""


def cloud(stand_ins, runs=(0,), errors=("",), states=("ACTIVE",)):
  stand_ins.add("gcloud", CLOUD.format(errors=list(errors), states=list(states)))
  stand_ins.add("sudo", SUDO)
  stand_ins.add("docker", DOCKER.format(list(runs)))


def verbs(stand_ins):
  """What gcloud was asked, without the questions for the state."""
  asked = [words[3] for words in stand_ins.calls("gcloud") if words[:2] == ["compute", "tpus"]]
  return [verb for verb in asked if verb != "describe"]


def runs(stand_ins):
  return [words for words in stand_ins.calls("docker") if words[0] == "run"]


def test_it_asks_waits_trains_and_gives_back(stand_ins):
  cloud(stand_ins, states=["ACCEPTED,WAITING_FOR_RESOURCES,PROVISIONING,ACTIVE"])
  done = stand_ins.run("tpu_vm.sh", *OPTIONS, "--spot", "--", *TRAINING)
  assert done.returncode == 0, done.stderr
  assert verbs(stand_ins) == ["create", "ssh", "delete"]
  [create] = [words for words in stand_ins.calls("gcloud") if "create" in words]
  assert create == [
    *("compute", "tpus", "queued-resources", "create", "joint", *PLACE),
    *("--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5", "--node-id=joint"),
    "--spot",
  ]
  [run] = runs(stand_ins)
  at = run.index("launch/local.sh")
  assert run[at - 1] == "us-docker.pkg.dev/p/r/d4s_jax"
  assert run[at + 1 :] == ["--restarts=10", "--backoff=10", "--", "--distributed", *TRAINING]
  # What is compiled outlives the container.
  assert {"--volume=d4s_jax:/cache", "--env=XDG_CACHE_HOME=/cache"} <= set(run[:at])
  # Where a lost connection left a training, it ends first.
  docker = [words[0] for words in stand_ins.calls("docker")]
  assert docker == ["stop", "rm", "run"]
  for state in ("ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"):
    assert f"joint is {state}" in done.stderr


def test_several_slices_and_a_share(stand_ins):
  cloud(stand_ins)
  options = [*OPTIONS, "--slices=2", "--nfs=10.0.0.2:/share", "--project=p"]
  assert stand_ins.run("tpu_vm.sh", *options, "--", *TRAINING).returncode == 0
  [create] = [words for words in stand_ins.calls("gcloud") if "create" in words]
  assert create[-2:] == ["--node-count=2", "--node-prefix=joint"] and "--project=p" in create
  [mount] = [word for word in runs(stand_ins)[0] if word.startswith("--mount=")]
  assert "dst=/runs," in mount
  assert mount.endswith("volume-opt=o=addr=10.0.0.2,volume-opt=device=:/share")


def test_preempted_machines_are_asked_for_again(stand_ins):
  cloud(stand_ins, runs=["p255", "p75", 0])
  done = stand_ins.run("tpu_vm.sh", *OPTIONS, "--", *TRAINING)
  assert done.returncode == 0, done.stderr
  again = ["create", "ssh", "delete"]
  assert verbs(stand_ins) == 3 * again
  assert len(runs(stand_ins)) == 3
  assert done.stderr.count("joint is SUSPENDED; it is given back, to be asked for again") == 2
  assert "restart 4 of at most 10 without progress in 80 s" in done.stderr


def test_a_lost_connection_is_not_a_lost_machine(stand_ins):
  cloud(stand_ins, runs=[255, 0])
  assert stand_ins.run("tpu_vm.sh", *OPTIONS, "--", *TRAINING).returncode == 0
  assert verbs(stand_ins) == ["create", "ssh", "ssh", "delete"]


def test_quota_and_stockouts_are_waited_for(stand_ins):
  errors = 2 * ["RESOURCE_EXHAUSTED: Quota limit has been exceeded."] + [""]
  cloud(stand_ins, errors=errors, states=["", "", "ACCEPTED,FAILED", "ACTIVE"])
  done = stand_ins.run("tpu_vm.sh", *OPTIONS, "--", *TRAINING)
  assert done.returncode == 0
  assert verbs(stand_ins) == ["create", "create", "create", "delete", "create", "ssh", "delete"]
  assert "Quota limit has been exceeded" in done.stderr and "joint is FAILED" in done.stderr


def test_it_gives_up_in_the_end(stand_ins):
  cloud(stand_ins, errors=["RESOURCE_EXHAUSTED: no more capacity"])
  done = stand_ins.run("tpu_vm.sh", *OPTIONS, "--restarts=2", "--", *TRAINING)
  assert done.returncode == 79
  assert verbs(stand_ins) == ["create", "create", "create", "delete"]
  assert "gave up after 2 restarts without progress" in done.stderr


@pytest.mark.parametrize("error", ["PERMISSION_DENIED: no", "INVALID_ARGUMENT: no such type"])
def test_what_the_cloud_refuses_is_not_asked_again(stand_ins, error):
  cloud(stand_ins, errors=[error])
  done = stand_ins.run("tpu_vm.sh", *OPTIONS, "--", *TRAINING)
  assert done.returncode == 78 and error in done.stderr
  assert verbs(stand_ins) == ["create", "delete"]


def test_what_the_training_refuses_is_not_tried_again(stand_ins):
  cloud(stand_ins, runs=[1])
  assert stand_ins.run("tpu_vm.sh", *OPTIONS, "--", *TRAINING).returncode == 78
  assert verbs(stand_ins) == ["create", "ssh", "delete"]


def test_a_container_that_gave_up_is_not_started_again_however_long_it_lasted(stand_ins):
  cloud(stand_ins, runs=[79, 0])
  # Without a wait every training is a long one.
  done = stand_ins.run("tpu_vm.sh", *OPTIONS, "--backoff=0", "--", *TRAINING)
  assert done.returncode == 79 and verbs(stand_ins) == ["create", "ssh", "delete"]


def test_one_that_gave_up_on_machines_that_have_gone_is(stand_ins):
  cloud(stand_ins, runs=["p79", 0])
  assert stand_ins.run("tpu_vm.sh", *OPTIONS, "--", *TRAINING).returncode == 0
  assert verbs(stand_ins) == 2 * ["create", "ssh", "delete"]


def test_machines_can_be_kept_and_are_found_again(stand_ins):
  cloud(stand_ins)
  (stand_ins.place / "state").write_text("ACTIVE")
  done = stand_ins.run("tpu_vm.sh", *OPTIONS, "--keep", "--", *TRAINING)
  assert done.returncode == 0 and "the machines are left" in done.stderr
  assert verbs(stand_ins) == ["ssh"]


def test_machines_that_cannot_be_given_back_are_told_of(stand_ins):
  cloud(stand_ins)
  stand_ins.add("gcloud", CLOUD.format(errors=[""], states=["ACTIVE"]).replace(
    "os.remove(state)", 'fail("UNAVAILABLE: later")'
  ))  # fmt: skip
  done = stand_ins.run("tpu_vm.sh", *OPTIONS, "--", *TRAINING)
  assert "could not be given back, and cost on" in done.stderr and "UNAVAILABLE" in done.stderr


def test_a_signal_saves_and_gives_back(stand_ins):
  cloud(stand_ins)
  (stand_ins.place / "trainer").write_text(
    "import os, sys\nplace, words = sys.argv[1], ['run']\n" + UNTIL_STOPPED
  )
  stand_ins.add("docker", """
if words[0] == "run":
  open(place + "/pid", "w").write(str(os.getpid()))
  os.execv(sys.executable, [sys.executable, place + "/trainer", place])
elif not os.path.exists(place + "/pid"):
  sys.exit(1)
elif words[0] == "stop":
  os.kill(int(open(place + "/pid").read()), 15)
""")  # fmt: skip
  process = stand_ins.start("tpu_vm.sh", *OPTIONS, "--", *TRAINING)
  while not (stand_ins.place / "ready").exists():
    assert process.poll() is None
  process.terminate()
  out, _ = process.communicate(timeout=PATIENCE)
  assert "saved after SIGTERM" in out and process.returncode == 75
  assert verbs(stand_ins) == ["create", "ssh", "ssh", "delete"]


def test_a_signal_before_there_are_machines_ends_the_wait(stand_ins):
  cloud(stand_ins, states=["WAITING_FOR_RESOURCES"])
  stand_ins.add("docker", "sys.exit(1)")
  stand_ins.add("sleep", "import time; time.sleep(60)")
  process = stand_ins.start("tpu_vm.sh", *OPTIONS, "--", *TRAINING)
  stand_ins.wait_for("sleep")
  status, _ = stand_ins.stop(process)
  assert status == 143
  assert verbs(stand_ins)[-1] == "delete" and not runs(stand_ins)


@pytest.mark.parametrize(
  "option, message",
  [
    ("--name=Joint_1", "--name=Joint_1; expected at most 40 of a-z"),
    ("--slices=two", "--slices=two; expected a whole number"),
    ("--nfs=share", "--nfs=share; expected ADDRESS:/SHARE"),
  ],
)
def test_bad_options_are_one_line(stand_ins, option, message):
  assert message in one_line(stand_ins.run("tpu_vm.sh", *OPTIONS, option, "--", *TRAINING))
  assert not stand_ins.calls()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed")
def test_gcloud_itself_knows_these_commands(stand_ins, tmp_path):
  """It gets as far as asking for an account, and ends with 2 where it can't parse its words."""
  gcloud = shutil.which("gcloud")
  assert gcloud
  cloud(stand_ins)
  assert stand_ins.run("tpu_vm.sh", *OPTIONS, "--spot", "--", *TRAINING).returncode == 0
  commands = {words[3]: words for words in stand_ins.calls("gcloud") if words[0] == "compute"}
  assert set(commands) == {"create", "describe", "ssh", "delete"}
  environment = os.environ | {"CLOUDSDK_CONFIG": str(tmp_path / "config")}
  for words in [*commands.values(), [*commands["ssh"], "--no-such-flag"]]:
    done = subprocess.run(
      [gcloud, *words, "--project=p"], env=environment, capture_output=True, text=True
    )
    expected = (2, "unrecognized") if "--no-such-flag" in words else (1, "active account")
    assert done.returncode == expected[0] and re.search(expected[1], done.stderr), done.stderr
