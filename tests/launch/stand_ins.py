"""Stand-ins for the commands that launch scripts call: they record their words and do as told."""

import ast
import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
# Seconds after which a script hangs, on a machine that may be busy; the longest takes one.
PATIENCE = 600
# What a careless script would split, expand, or lose.
HOSTILE = (
  "--config.a=two  words",
  '--config.b=it\'s "so"',
  "--config.c=$HOME `id` $(id) $$ * \\ & ;#",
)
TRAINING = ("--config=configs/joint.py:tiny", "--workdir=runs/a b", *HOSTILE)

# A command: `words` are its own, `before` are the lines of calls before, `place` is a folder. What
# is imported here costs more than all the rest of a test.
_HEAD = """#!{python} -IS
import os, sys
place, name, words = {place!r}, {name!r}, sys.argv[1:]
with open(place + "/calls") as file:
  before = file.readlines()
with open(place + "/calls", "a") as file:
  file.write(repr([name, *words]) + chr(10))
"""


class StandIns:
  """Commands in a folder that comes first on the PATH of the scripts."""

  def __init__(self, place: pathlib.Path):
    self.place = place
    (place / "bin").mkdir()
    (place / "calls").touch()
    for name in ("sleep", "python", "srun", "sbatch", "scontrol", "gcloud", "kubectl", "docker"):
      self.add(name)

  def add(self, name: str, body: str = "") -> None:
    """A command, or another one in its place; the body is Python."""
    path = self.place / "bin" / name
    path.write_text(_HEAD.format(python=sys.executable, place=str(self.place), name=name) + body)
    path.chmod(0o755)

  def environment(self) -> dict[str, str]:
    """With these commands before all others."""
    return os.environ | {"PATH": f"{self.place / 'bin'}:{os.environ['PATH']}"}

  def start(self, script: str, *words: str, **environment: str) -> "subprocess.Popen[str]":
    """A launch script that runs."""
    return subprocess.Popen(
      [str(LAUNCH / script), *words],
      cwd=self.place,
      env=self.environment() | environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, script: str, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A launch script, to its end."""
    process = self.start(script, *words, **environment)
    out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(script, process.returncode, out, err)

  def bash(self, text: str) -> None:
    """Lines of a shell."""
    subprocess.run(["bash", "-c", text], env=self.environment(), check=True, capture_output=True)

  def calls(self, name: str = "") -> list[list[str]]:
    """The words of every call, of one command or with the names of all."""
    calls = [ast.literal_eval(line) for line in (self.place / "calls").read_text().splitlines()]
    return [call[1:] for call in calls if call[0] == name] if name else calls

  def wait_for(self, name: str, count: int = 1) -> None:
    """Returns once a command was called so often."""
    until = time.monotonic() + PATIENCE
    while len(self.calls(name)) < count:
      assert time.monotonic() < until, f"{name} was never called"
      time.sleep(0.01)

  def stop(self, process: "subprocess.Popen[str]", number: int = signal.SIGTERM) -> tuple[int, str]:
    """Sends a signal; the status and what was said."""
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE)
    return process.returncode, said


# A trainer: ends with each of the statuses in turn, the last one for ever; at 's' it saves first.
# The other way that python is called asks for the newest checkpoint.
def trainer(*ends: int | str) -> str:
  return f"""
saved = place + "/saved"
if words[0] == "-c":
  print(open(saved).read() if os.path.exists(saved) else "")
  sys.exit()
ends, trained = {list(ends)!r}, sum(line.startswith("['python', '-m'") for line in before)
end = str(ends[min(trained, len(ends) - 1)])
if end.startswith("s"):
  open(saved, "w").write(str(trained))
sys.exit(int(end.lstrip("s")))
"""


# A trainer that goes on until SIGTERM or SIGINT, and then saves; a second one kills.
UNTIL_STOPPED = """
import signal, time
if words[0] == "-c":
  sys.exit()
def stop(number, frame):
  signal.signal(number, signal.SIG_DFL)
  time.sleep(0.2)
  print("saved after", signal.Signals(number).name, flush=True)
  os._exit(75)
for number in (signal.SIGTERM, signal.SIGINT):
  signal.signal(number, stop)
open(place + "/ready", "w").close()
time.sleep(60)
"""


def one_line(done: "subprocess.CompletedProcess[str]") -> str:
  """The line of a refusal, which is all that was said."""
  assert done.returncode == 1 and done.stdout == "", done
  lines = done.stderr.splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
  return lines[0]
