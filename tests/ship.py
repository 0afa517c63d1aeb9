"""Puts one trained part of a run into the package, in float16, and scores it before and after.

python tests/ship.py --run=runs/autoencoder-tiny --part=autoencoder
"""

import argparse
import pathlib

import jax
import numpy as np
from safetensors.numpy import save_file

from d4s_jax.data.source import open_source
from d4s_jax.models import shipped
from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, state, validation
from d4s_jax.training.stages import stage


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--run", type=pathlib.Path, required=True)
  parser.add_argument("--part", required=True)
  options = parser.parse_args()
  config = checkpoint.read_config(options.run)
  system = System.build(config["model"])
  params, step = checkpoint.read_model(options.run, system.abstract())
  size = {name: config["clip"][name] for name in ("frames", "height", "width")}
  chosen = stage(config["stage"])
  validate = validation.make_validation(system, chosen)
  clips = {}
  for name in config["data"]["source"].split(","):
    source = open_source(name, posed=False, split="heldout", kind=chosen.kind, views=2, **size)
    clips[name] = validation.load_clips(source, system.backbone.tokenizer, 4, 16)
    print(f"step {step}, float32, 64 held-out clips of {name}: {validate(params, clips[name])}")

  arrays = state.flatten(params[options.part])
  arrays = {name: np.asarray(x, np.float16) for name, x in arrays.items()}
  target = shipped.path(config["preset"], options.part)
  target.parent.mkdir(exist_ok=True)
  save_file(arrays, target)
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params[options.part])
  params[options.part] = shipped.load(config["preset"], options.part, like)
  for name, batches in clips.items():
    print(f"float16, {name}: {validate(params, batches)}")
  print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
  main()
