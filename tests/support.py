"""What tests of several packages share: a configuration that compiles in seconds."""

import contextlib
import dataclasses
import importlib
import math
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags
from ml_collections import ConfigDict

from d4s_jax.config import base
from d4s_jax.formats.tensors import Spec
from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, run_folder, state
from d4s_jax.weights.rules import Rule, pairs

ROOT = pathlib.Path(__file__).parents[1]


def on_devices(count: int) -> dict[str, str]:
  """The environment of a process for which this machine has `count` devices."""
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
  return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


# Layers are so few and narrow that compiling, not computing, takes the time.
_SMALL = {
  "clip": {"frames": 5, "height": 16, "width": 16, "targets": 2},
  "model": {
    "backbone": {
      # The strides of the published ones, 4x8x8.
      "autoencoder": {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": (1, 2, 4),
        "temporal_downsample": (True, True),
      },
      "text_encoder": {"dim": 16, "depth": 1, "heads": 2, "head_dim": 8, "ffn_dim": 16},
      "transformer": {"dim": 32, "ffn_dim": 32, "heads": 2, "depth": 2},
      "text_length": 24,
    },
    "ldrm": {
      "gaussians": 128,
      "width": 32,
      "depth": 2,
      "heads": 2,
      "motion_channels": 8,
      "patch": 1,
    },
  },
  "sampling": {"steps": 3},
  "batch_size": 2,
  # What is shipped is of another size.
  "init": {"autoencoder": ""},
}


def small_config() -> ConfigDict:
  """The tiny preset, shrunk: 5 frames of 16 x 16 pixels, 128 Gaussians, two narrow blocks."""
  config = base("tiny")
  with config.ignore_type():
    config.update(ConfigDict(_SMALL))
  return config


def small_cogvideox(inverted: bool = False, **transformer: Any) -> ConfigDict:
  """`small_config` with a CogVideoX of two narrow blocks instead, whose fields are overridden."""
  config = small_config()
  config.model.backbone = dict(
    family="cogvideox",
    text_length=24,
    schedule=dict(snr_shift=1.0),
    autoencoder=dict(
      **dict(widths=(4, 4, 6, 6), z_dim=4, num_res_blocks=1, groups=2, scale=0.7),
      inverted=inverted,
    ),
    text_encoder=dict(config.model.backbone.text_encoder) | {"per_layer_bias": False},
    transformer=dict(heads=2, head_dim=16, depth=2, time_dim=24) | transformer,
  )
  return config


def random_params(system: System, seed: int = 0) -> Any:
  """Random parameters in which nothing is exactly zero, so that every input has an effect.

  They are drawn in NumPy: compiling the models' own initialisation takes longer than most tests.
  """
  random = np.random.default_rng(seed)

  def draw(path, leaf):
    fan_in = max(1, math.prod(leaf.shape[-4:-1] if leaf.ndim > 3 else leaf.shape[-2:-1]))
    center = 1.0 if path[-1].key == "scale" else 0.0
    noise = random.normal(0, fan_in**-0.5 if leaf.ndim > 1 else 0.1, leaf.shape)
    return jnp.asarray(center + noise, leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, system.abstract())


def from_torch(
  rules: Sequence[Rule], shapes: Any, values: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Our parameters, nested, from the named arrays of a PyTorch model: weights or their gradients.

  Args:
    rules: the table of the model.
    shapes: our parameters or their abstract shapes, nested, as `init` or `eval_shape` gives them.
    values: by name; each of them is used.
  """
  flat: Any = state.flatten(nn.unbox(shapes)["params"])
  table = pairs(rules, {path: x.shape for path, x in flat.items()})
  assert {pair.torch for pair in table} == set(values)
  rows: dict[str, list[np.ndarray]] = {}
  for pair in table:
    assert values[pair.torch].shape == pair.torch_shape
    rows.setdefault(pair.flax, []).append(pair.to_flax(values[pair.torch]))
  stacked = {pair.flax for pair in table if pair.row is not None}
  return state.unflatten({x: np.stack(y) if x in stacked else y[0] for x, y in rows.items()})


class Held:
  """Parameters in memory as what `weights.run.export` reads."""

  def __init__(self, params: Any):
    self._arrays = {path: np.asarray(x) for path, x in state.flatten(params).items()}
    self.specs = {path: Spec("F32", x.shape) for path, x in self._arrays.items()}

  def read(self, name: str, row: int | None = None) -> np.ndarray:
    """One of them, or one row of it."""
    return self._arrays[name] if row is None else self._arrays[name][row]


def lora_config() -> ConfigDict:
  """The small configuration of a run of four steps that trains adapters of rank 2 and cameras."""
  config = small_config()
  config.stage, config.steps = "diffusion", 4
  config.model.lora.rank, config.model.lora.scale = 2, 0.5
  config.frozen_dtype = "bfloat16"
  config.optimizer.warmup, config.checkpoint.every = 1, 2
  config.heldout.batches, config.heldout.every = 1, 4
  return config


def write_run(folder: pathlib.Path, config: ConfigDict, params: Any, step: int = 7) -> None:
  """Leaves in `folder` what a training run leaves: its configuration and one checkpoint."""
  run_folder.write_config(folder, config.to_dict(), {})
  now = state.create(params, ("^ldrm/",), optax.sgd(1.0))
  del params  # Large ones fill memory twice.
  now = dataclasses.replace(now, step=now.step + step)
  saved = checkpoint.Checkpoints(folder, keep=1)
  saved.save(now)
  saved.wait()
  saved.close()


@contextlib.contextmanager
def isolated_flags(module: str) -> Iterator[None]:
  """The flags that importing `module` defines are gone, and unparsed, afterwards."""
  known = set(flags.FLAGS)
  try:
    yield
  finally:
    for flag in set(flags.FLAGS) - known:
      delattr(flags.FLAGS, flag)
    flags.FLAGS.unparse_flags()
    sys.modules.pop(module, None)


def run_command(name: str, *arguments: str) -> None:
  """Runs `python -m d4s_jax.NAME` in this process.

  Raises:
    SystemExit: the command reported bad input.
  """
  module = f"d4s_jax.{name}"
  # Flags of a configuration are looked for in sys.argv.
  argv = [module, *arguments]
  with isolated_flags(module), pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "argv", argv)
    command = importlib.import_module(module)
    command.main(flags.FLAGS(argv))


@contextlib.contextmanager
def serving(name: str, *arguments: str) -> Iterator[str]:
  """Where `python -m d4s_jax.NAME` serves, as a user starts it; Ctrl-C is to end it in silence."""
  command = [sys.executable, "-m", f"d4s_jax.{name}", *arguments, "--port=0"]
  own = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
  # What a shell starts in the background ignores Ctrl-C, and so does what that starts.
  ours = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    process = subprocess.Popen(
      command,
      **{"cwd": ROOT, "env": os.environ | own, "text": True},
      **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
    )
  finally:
    signal.signal(signal.SIGINT, ours)
  with process:
    try:
      assert process.stdout is not None and process.stderr is not None
      said = (re.match(r"Open (http://127\.0\.0\.1:\d+)/ in", line) for line in process.stdout)
      address = next(filter(None, said), None)
      assert address, process.stderr.read()
      yield address[1]
      process.send_signal(signal.SIGINT)
      _, late = process.communicate(timeout=30)
      assert process.returncode == 0 and "Traceback" not in late, late
    finally:
      process.kill()


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
  """No file may grow beyond `size` bytes; writing fails as it does on a full disk.

  Only around the call under test: pytest's own report is a file too.
  """
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)
