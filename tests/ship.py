"""Puts trained parts of a run into the package, in float16, and scores them before and after.

python tests/ship.py --run=runs/autoencoder-tiny --parts=autoencoder
python tests/ship.py --run=runs/joint-tiny --parts=transformer,text_encoder,ldrm
"""

import argparse
import pathlib

import jax
import numpy as np
from safetensors.numpy import save_file

from d4s_jax.data.source import open_source
from d4s_jax.models import shipped
from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, run_folder, state, validation
from d4s_jax.training.stages import stage


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--run", type=pathlib.Path, required=True)
  parser.add_argument("--parts", required=True, help="separated by commas")
  options = parser.parse_args()
  config = run_folder.read_config(options.run)
  system = System.build(config["model"])
  params, step = checkpoint.read_model(options.run, system.abstract())
  size = {name: config["clip"][name] for name in ("frames", "height", "width")}
  chosen = stage(config["stage"])
  posed = chosen.objectives != ("autoencoding",)
  validate = validation.make_validation(system, chosen)
  clips = {}
  for name in config["data"]["source"].split(","):
    source = open_source(name, posed=posed, split="heldout", kind=chosen.kind, views=4, **size)
    clips[name] = list(validation.HeldOut(source, system.backbone.tokenizer, 4, 16))
    print(f"step {step}, float32, 64 held-out clips of {name}: {validate(params, clips[name])}")

  for part in options.parts.split(","):
    arrays = state.flatten(params[part])
    arrays = {name: np.asarray(x, np.float16) for name, x in arrays.items()}
    target = shipped.path(config["preset"], part)
    target.parent.mkdir(exist_ok=True)
    save_file(arrays, target)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params[part])
    params[part] = shipped.load(config["preset"], part, like)
  for name, batches in clips.items():
    print(f"float16, {name}: {validate(params, batches)}")


if __name__ == "__main__":
  main()
