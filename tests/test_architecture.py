"""Imports point strictly down the tiers, and nothing imports torch at run time."""

import ast
import pathlib
import sys

import pytest

import d4s_jax

PACKAGE = pathlib.Path(d4s_jax.__file__).parent
TIERS = [
  "types errors packaged",
  "geometry layers diffusion config",
  "models render losses formats watermark",
  "data captioning",
  "training pipeline weights curation",
  "evaluation serving viewer",
  "train generate render_scene export view cameras convert plan evaluate curate serve"
  " __main__ benchmark refine",
]
TIER = {name: tier for tier, names in enumerate(TIERS) for name in names.split()}
# Written beside exported weights, for people without JAX; nothing of ours imports it.
EXPORTED = PACKAGE / "weights" / "diff4splat.py"
FILES = sorted(
  path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE
)


def imported(path: pathlib.Path) -> set[str]:
  """Dotted names of all modules that a file imports, wherever in the file."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path} uses a relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def layer(path: pathlib.Path) -> str:
  """The package or module of a file; what `python -m d4s_jax.PACKAGE` runs is a command."""
  if path.stem == "__main__":
    return path.stem
  return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
  own = layer(path)
  ours = {name.split(".")[1] for name in imported(path) if name.startswith("d4s_jax.")}
  for name in ours - {own, "__version__"}:
    assert TIER[name] < TIER[own], f"{own} may not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_torch_at_run_time(path):
  roots = {name.split(".")[0] for name in imported(path)}
  if path == EXPORTED:
    assert roots - set(sys.stdlib_module_names) == {"torch"}
    return
  assert "d4s_jax.weights.diff4splat" not in imported(path)
  assert not roots & {"torch", "diffusers", "transformers", "gsplat", "lpips", "tensorflow"}


@pytest.mark.parametrize(
  "path",
  sorted([*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__main__.py")]),
  ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_commands_stay_small(path):
  if TIER.get(path.stem) == len(TIERS) - 1:
    assert len(path.read_text().splitlines()) <= 80
