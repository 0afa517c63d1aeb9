r"""The paper's ablations in small: one short run for each row, of equal budget, and one table.

  python tests/benchmarks/ablations.py --steps=300
  python tests/benchmarks/ablations.py --rows=default,flat_pose

Every row trains the reconstruction model from nothing, on exact depth and motion and then on drawn
views (`configs/geometry.py`, `configs/dynamic.py`), with what the row says changed; "direct" draws
from the first step on, for as many steps in all. Runs lie under --workdir and are not repeated; a
run that was interrupted goes on. The table is of the same 64 held-out scenes as `heldout.py`, and
beside it stands how the paper orders the rows.
"""

import argparse
import csv
import pathlib
import subprocess
import sys

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.training import checkpoint, run_folder  # noqa: E402
from tests.benchmarks import heldout  # noqa: E402

# Overrides of both stages, and what the paper finds.
ROWS: dict[str, tuple[list[str], str]] = {
  "default": ([], ""),
  "flat_pose": (["model.encoding=flat"], "5-10% worse pose error"),
  "no_geometric_loss": (
    ["loss.weights.geometric=0", "loss.weights.depth=0"],
    "visibly worse 3D consistency",
  ),
  "no_total_variation": (["loss.smoothness=0"], "rougher surfaces"),
  "no_motion_loss": (["loss.weights.motion=0"], "worse: FVD 351 for 210"),
  "motion_loss_of_the_paper": (["loss.motion_form=paper"], "its own"),
  "direct": ([], "worse than progressive"),
  "quarter_of_the_gaussians": (["model.ldrm.gaussians=2304"], ""),
  "all_gaussians": (["model.ldrm.gaussians=9216"], "little detail more, 60% more time"),
  "no_stem": (["model.ldrm.stem=0"], "the paper has none"),
}
_SCORES = (
  "depth correlation",
  "relative depth error, scale aligned",
  "moving points: error over no motion",
)


def train(stage: str, folder: pathlib.Path, steps: int, overrides: list[str], cache: str) -> None:
  """Runs one stage, or goes on with it; nothing if it is done."""
  if (folder / "summary.json").exists():
    return
  options = [f"steps={steps}", "data.clips=16000", f"data.cache={cache}", f"heldout.every={steps}"]
  command = [sys.executable, "-m", "d4s_jax.train", f"--config=configs/{stage}.py"]
  command += [f"--workdir={folder}", *(f"--config.{x}" for x in options + overrides)]
  subprocess.run(command, check=True)


def run(name: str, options: argparse.Namespace) -> pathlib.Path:
  """Trains a row; returns its run."""
  overrides, _ = ROWS[name]
  folder = options.workdir / name
  first, second = folder / "geometry", folder / "dynamic"
  if name == "direct":
    train("dynamic", second, 2 * options.steps, overrides, options.cache)
    return second
  train("geometry", first, options.steps, overrides, options.cache)
  train("dynamic", second, options.steps, [*overrides, f"init.ldrm={first}"], options.cache)
  return second


def score(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """PSNR of all pixels and of moving solids, depth and motion, for each held-out scene."""
  _, system = run_folder.read_system(folder)
  params, _ = checkpoint.read_model(folder, system.abstract())
  tokenize = system.backbone.tokenizer
  layouts = heldout.layouts(heldout.clips("train", heldout.BATCH, tokenize, views=0))
  scores = heldout.make_scores(system, params, *layouts)
  masks, found = heldout.moving_masks(heldout.SCENES), []
  for number, clip in enumerate(heldout.clips("heldout", heldout.SCENES, tokenize)):
    rows = slice(number * heldout.BATCH, (number + 1) * heldout.BATCH)
    psnr, others = jax.device_get(scores(clip, masks[rows]))
    whole, moving = psnr["ours"]
    found.append({"PSNR": whole, "PSNR moving": moving} | {x: others[x] for x in _SCORES})
  return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--steps", type=int, default=300, help="of each of the two stages")
  parser.add_argument("--rows", default=",".join(ROWS))
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/ablations"))
  parser.add_argument("--cache", default="runs/clips", help="of clips, shared by all runs")
  options = parser.parse_args()
  table = []
  for name in options.rows.split(","):
    found = score(run(name, options))
    row = {"row": name}
    for kind, values in found.items():
      values = values[np.isfinite(values)]
      row[kind] = f"{values.mean():.3f} +- {values.std() / len(values) ** 0.5:.3f}"
    row["the paper"] = ROWS[name][1]
    table.append(row)
    print("  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
  with (options.workdir / "table.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, list(table[0]))
    writer.writeheader()
    writer.writerows(table)


if __name__ == "__main__":
  main()
