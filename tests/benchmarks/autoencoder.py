"""The published autoencoders: memory of 49 frames of 480 x 720 pixels, and times beside diffusers.

python tests/benchmarks/autoencoder.py
python tests/benchmarks/autoencoder.py --profile
python tests/benchmarks/autoencoder.py --memory

Times are of the full widths at a small size, float32, on two threads of a CPU, with the same random
weights; a ratio below 1 is in our favour. diffusers computes chunk by chunk, as published. Memory
is what XLA plans for its CPU backend, arguments (weights among them) and results included; nothing
of that size is run. Accelerators plan less: only on a CPU are the frames that a convolution sees
laid side by side, and bfloat16 widened for it. --profile prints where our time goes.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax import config  # noqa: E402
from d4s_jax.models.cogvideox.autoencoder import CogVideoXAutoencoder  # noqa: E402
from d4s_jax.models.wan.autoencoder import WanAutoencoder  # noqa: E402
from d4s_jax.weights import wan  # noqa: E402
from tests.benchmarks.profiling import profile  # noqa: E402
from tests.models import cogvideox_oracle  # noqa: E402
from tests.support import from_torch  # noqa: E402

_COGVIDEOX = config.PRESETS["cogvideox-5b"]["backbone"]["autoencoder"]
MODELS = {
  "Wan 2.1": WanAutoencoder(**config.PRESETS["wan1.3b"]["backbone"]["autoencoder"]),
  "Wan 2.2": WanAutoencoder(**config._WAN22_AUTOENCODER),
  "CogVideoX": CogVideoXAutoencoder(**_COGVIDEOX),
}
_METHODS = "encode", "decode"
_FRAMES, _HEIGHT, _WIDTH = 49, 480, 720
_SMALL = 9, 64, 96
_ROUNDS = 3


def _apply(module, method, variables, x):
  out = module.apply(variables, x, method=method)
  return out[0] if method == "encode" else out


def _shape(module, method, frames, height, width):
  """Shape of what goes in."""
  if method == "encode":
    return (1, frames, height, width, 3)
  time, rows, columns = module.strides
  return (1, 1 + (frames - 1) // time, height // rows, width // columns, module.z_dim)


def _typed(dtype, x):
  return jax.ShapeDtypeStruct(x.shape, dtype)


def memory() -> None:
  """Prints GiB of each model, direction and type, whole and in chunks."""
  print(f"GiB, {_FRAMES} x {_HEIGHT} x {_WIDTH}: whole, in chunks")
  for name, module in MODELS.items():
    for dtype in (jnp.float32, jnp.bfloat16):
      inputs = jnp.zeros((1, 5, *module.strides[1:], 3))
      variables = jax.eval_shape(module.init, jax.random.key(0), inputs)
      variables = jax.tree.map(functools.partial(_typed, dtype), variables)
      for method in _METHODS:
        x = jax.ShapeDtypeStruct(_shape(module, method, _FRAMES, _HEIGHT, _WIDTH), jnp.float32)
        found = []
        for chunk in (0, module.chunk):
          changed = module.clone(chunk=chunk, dtype=dtype)
          function = jax.jit(functools.partial(_apply, changed, method))
          plan = function.lower(variables, x).compile().memory_analysis()
          parts = plan.temp_size_in_bytes, plan.argument_size_in_bytes, plan.output_size_in_bytes
          found.append(sum(parts) / 2**30)
        whole, chunks = found
        print(
          f"{name:10} {jnp.dtype(dtype).name:9} {method}: {whole:7.2f} {chunks:6.2f}", flush=True
        )


def _torch_model(name: str):
  """A published model with random weights, and our parameters with the same."""
  torch.manual_seed(0)
  module = MODELS[name]
  if name == "CogVideoX":
    model = cogvideox_oracle.torch_autoencoder(_COGVIDEOX)
    values = {key: x.numpy() for key, x in model.state_dict().items()}
    return model, {"params": cogvideox_oracle.autoencoder_parameters(values, _COGVIDEOX)}
  model = diffusers.AutoencoderKLWan.from_config(wan.autoencoder_config(module, {})).eval()
  inputs = jnp.zeros((1, 5, *module.strides[1:], 3))
  shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)
  values = {key: x.numpy() for key, x in model.state_dict().items()}
  return model, {"params": from_torch(wan.AUTOENCODER, shapes, values)}


def _seconds(function) -> float:
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def _small(module, method):
  shape = _shape(module, method, *_SMALL)
  return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def times() -> None:
  """Prints seconds of diffusers and of ours, and their ratio."""
  torch.set_num_threads(2)
  print(f"{_SMALL[0]} x {_SMALL[1]} x {_SMALL[2]}, median of {_ROUNDS} in turn, float32")
  for name, module in MODELS.items():
    model, variables = _torch_model(name)
    variables = jax.tree.map(jnp.asarray, variables)
    for method in _METHODS:
      x = _small(module, method)
      theirs = torch.from_numpy(np.moveaxis(x, -1, 1).copy())

      candidates = {
        "diffusers": functools.partial(torch.inference_mode()(getattr(model, method)), theirs)
      }
      for kind, chunk in (("whole", 0), ("chunks", module.chunk)):
        run = jax.jit(functools.partial(_apply, module.clone(chunk=chunk), method))
        candidates[kind] = functools.partial(
          lambda run, *args: run(*args).block_until_ready(), run, variables, jnp.asarray(x)
        )
      for function in candidates.values():
        function()
      seconds: dict[str, list[float]] = {kind: [] for kind in candidates}
      for _ in range(_ROUNDS):
        for kind, function in candidates.items():
          seconds[kind].append(_seconds(function))
      base = statistics.median(seconds["diffusers"])
      ours = ", ".join(
        f"{kind} {statistics.median(seconds[kind]):.2f} s (ratio"
        f" {statistics.median(seconds[kind]) / base:.2f})"
        for kind in ("whole", "chunks")
      )
      print(f"{name:10} {method}: diffusers {base:.2f} s; {ours}", flush=True)


def profiles() -> None:
  """Prints where the time of ours goes, whole and in chunks."""
  for name, module in MODELS.items():
    _, variables = _torch_model(name)
    variables = jax.tree.map(jnp.asarray, variables)
    for method in _METHODS:
      for kind, chunk in (("whole", 0), ("chunks", module.chunk)):
        print(f"{name} {method}, {kind}", flush=True)
        function = jax.jit(functools.partial(_apply, module.clone(chunk=chunk), method))
        profile(function, variables, jnp.asarray(_small(module, method)))


def main() -> None:
  """Prints the table asked for."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  kind = parser.add_mutually_exclusive_group()
  kind.add_argument("--memory", action="store_const", const=memory, dest="measure")
  kind.add_argument("--profile", action="store_const", const=profiles, dest="measure")
  (parser.parse_args().measure or times)()


if __name__ == "__main__":
  main()
