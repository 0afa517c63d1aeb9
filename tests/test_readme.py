"""What the documents say can be done: every command parses, every file they link to is there."""

import argparse
import importlib
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from absl import flags

from tests.support import isolated_flags

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = sorted(
  path for path in ROOT.rglob("*.md") if not {"runs", ".venv"} & set(path.relative_to(ROOT).parts)
)
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def commands(text: str) -> list[list[str]]:
  """The words of every `python -m d4s_jax.NAME ...` and `python tests/...` of a text."""
  joined = text.replace("\\\n", " ")
  lines = re.findall(r"python (?:-m d4s_jax\.|tests/)[^`\n&]+", joined)
  return [shlex.split(line, comments=True) for line in lines]


def parse(module: str, arguments: list[str], monkeypatch):
  """Raises unless a command takes these arguments."""
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(sys, "argv", [module, *arguments])  # where config overrides are looked for
  module += ".__main__" if (ROOT / module.replace(".", "/")).is_dir() else ""
  with isolated_flags(module):
    source = importlib.import_module(module).__file__
    assert source
    # How many words it takes beside options, as it tells `errors.run`.
    (taken,) = re.findall(r"errors\.run\(main(?:, words=(\d))?\)", pathlib.Path(source).read_text())
    words = flags.FLAGS(sys.argv)[1:]
    assert len(words) <= int(taken or 0), f"{module} takes no words {words}"


class Parsed(Exception):
  """A script's own parser took its arguments."""


def parse_script(path: str, arguments: list[str], monkeypatch):
  """Raises unless a script, where it parses options by argparse, takes these."""
  if not arguments or "parse_args()" not in (ROOT / path).read_text():
    return
  whole = argparse.ArgumentParser.parse_args

  def stop(parser: argparse.ArgumentParser):
    whole(parser)
    raise Parsed

  monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
  monkeypatch.setattr(sys, "argv", [path, *arguments])
  with pytest.raises(Parsed):
    importlib.import_module(path.removesuffix(".py").replace("/", ".")).main()


ALL = [
  (name, words) for name, path in zip(NAMES, DOCUMENTS) for words in commands(path.read_text())
]


def test_the_documents_have_commands():
  assert {"README.md", "configs/README.md", "tests/README.md"} <= set(NAMES)
  assert len(ALL) > 10


@pytest.mark.parametrize(("name", "words"), ALL, ids=[" ".join(words[2:]) for _, words in ALL])
def test_command_parses(name, words, monkeypatch):
  if words[1] == "-m":
    parse(words[2], words[3:], monkeypatch)
  else:
    assert (ROOT / words[1]).is_file(), f"{name} names {words[1]}, which is not there"
    parse_script(words[1], words[2:], monkeypatch)


OVERRIDES = re.findall(r"`(--config\.[^`]+)`", (ROOT / "configs" / "README.md").read_text())


@pytest.mark.parametrize("options", [text for text in OVERRIDES if "KEY" not in text])
def test_override_parses(options, monkeypatch):
  parse("d4s_jax.train", ["--config=configs/joint.py", *shlex.split(options)], monkeypatch)


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document):
  for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
    if not target.startswith("http"):
      assert (document.parent / target).exists(), f"{document} links to {target}"


@pytest.mark.slow
def test_the_first_commands_as_written(tmp_path):
  """Install, generate, draw, export and train in a fresh environment. 20 minutes."""
  clone, environment = tmp_path / "clone", tmp_path / "venv"
  subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
  subprocess.run([sys.executable, "-m", "venv", environment], check=True)
  # What follows needs published weights.
  text, _, rest = (ROOT / "README.md").read_text().partition("## Published video models")
  assert rest
  blocks = "\n".join(re.findall(r"```\n(.*?)```", text, re.S))
  lines = [line for line in blocks.replace("\\\n", " ").splitlines() if "pytest" not in line]
  # These two serve until they are stopped; others' tests look at them.
  lines = [line for line in lines if not re.search(r"d4s_jax\.(view|serve)", line)]
  lines = [line for line in lines if line.startswith("python ")]
  assert len(lines) >= 3
  from d4s_jax.data.synthetic import SyntheticScenes
  from d4s_jax.formats.images import write_image

  write_image(clone / "photo.jpg", SyntheticScenes(height=300, width=400).read(0).source.images[0])
  # Of TUM: time, place, orientation.
  places = (f"{i} {i / 10} 0 0 0 0 0 1" for i in range(9))
  (clone / "path.txt").write_text("\n".join(places) + "\n")
  for line in lines:
    script = f'PATH="{environment}/bin:$PATH"; cd "{clone}" && {line}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
  assert (clone / "scenes" / "cat" / "preview.png").stat().st_size > 10_000
