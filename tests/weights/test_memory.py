"""A conversion takes the memory of its largest tensor, not of the model; so does that of a run."""

import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest

from d4s_jax.formats.shards import write_shards
from d4s_jax.formats.tensors import Spec
from d4s_jax.weights.components import COMPONENTS
from d4s_jax.weights.rules import pairs

ROOT = pathlib.Path(__file__).parents[2]


def write_model(folder, depth):
  """A text encoder of `depth` blocks of 12 MB in bfloat16; returns its size in bytes."""
  config = {
    "architectures": ["UMT5EncoderModel"],
    **dict(vocab_size=1000, d_model=512, d_kv=64, d_ff=3400, num_heads=8, num_layers=depth),
    "feed_forward_proj": "gated-gelu",
  }
  component = COMPONENTS["UMT5EncoderModel"]
  table = pairs(component.rules, component.shapes(config, component.fields(config)))
  specs = {pair.torch: Spec("BF16", pair.torch_shape) for pair in table}
  random = np.random.default_rng(0)
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config))
  write_shards(
    *(folder, "model", specs),
    lambda name: [random.integers(2**16, size=specs[name].shape, dtype=np.uint16)],
    *({"format": "pt"}, 10**8),
  )
  return sum(spec.nbytes for spec in specs.values())


def write_sparse(folder, config):
  """A text encoder of zeros in float32, which take no place on the disk; returns its bytes."""
  component = COMPONENTS["UMT5EncoderModel"]
  table = pairs(component.rules, component.shapes(config, component.fields(config)))
  header, end = {}, 0
  for pair in table:
    begin, end = end, end + 4 * int(np.prod(pair.torch_shape))
    header[pair.torch] = dict(dtype="F32", shape=pair.torch_shape, data_offsets=[begin, end])
  text = json.dumps(header).encode()
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config))
  with open(folder / "model.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    file.truncate(8 + len(text) + end)
  return end


# A process of its own writes the run: what it holds is not the command's.
_WRITE_RUN = """
import pathlib, sys
import jax, numpy as np
from d4s_jax.models.system import System
from tests.support import small_config, write_run

config = small_config()
config.model.backbone.transformer.update(dim=int(sys.argv[3]), depth=int(sys.argv[2]))
config.model.backbone.transformer.ffn_dim = 4 * int(sys.argv[3])
system = System.build(config.model.to_dict())
zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), system.abstract())
params = jax.tree.map(lambda x: jax.numpy.asarray(x + 0.5), zeros)
write_run(pathlib.Path(sys.argv[1]), config, params)
print(sum(x.nbytes for x in jax.tree.leaves(zeros)))
"""


def write_large_run(folder, depth, width):
  """A run whose transformer has `depth` blocks; returns the bytes of all parameters."""
  done = subprocess.run(
    [sys.executable, "-c", _WRITE_RUN, str(folder), str(depth), str(width)],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return int(done.stdout.splitlines()[-1])


def peak(source, target, format):
  """The most memory, in bytes, that the command took."""
  command = [sys.executable, "-m", "d4s_jax.convert", f"--from={source}", f"--to={target}"]
  process = subprocess.Popen(
    [*command, f"--format={format}"],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  assert process.returncode == 0
  return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize("format", ["flax", "torch"])
def test_memory_does_not_grow_with_the_model(format, tmp_path):
  peaks, sizes = [], []
  for depth in (1, 40):
    source = tmp_path / f"{depth}"
    sizes.append(write_model(source, depth))
    if format == "torch":
      peak(source, tmp_path / f"{depth}-ours", "flax")
      source = tmp_path / f"{depth}-ours"
    peaks.append(peak(source, tmp_path / f"{depth}-new", format))
  assert sizes[1] - sizes[0] > 400e6
  # Several tensors of 3.5 MB, and what the allocator does not give back at once; the whole
  # feed-forward stack, which is one tensor of ours, would be 140 MB.
  assert peaks[1] - peaks[0] < 40e6
  print(
    f"{format}: {sizes[1] / 1e6:.0f} MB in {peaks[1] / 1e6:.0f} MB, tiny: {peaks[0] / 1e6:.0f} MB"
  )


def test_memory_does_not_grow_with_a_run(tmp_path):
  peaks, sizes = [], []
  for depth in (1, 40):
    sizes.append(write_large_run(tmp_path / f"{depth}", depth, 384))
    peaks.append(peak(tmp_path / f"{depth}", tmp_path / f"{depth}-new", "torch"))
  assert sizes[1] - sizes[0] > 350e6
  # A stack of feed-forward kernels has 94 MB.
  assert peaks[1] - peaks[0] < 60e6
  print(f"{sizes[1] / 1e6:.0f} MB in {peaks[1] / 1e6:.0f} MB, small: {peaks[0] / 1e6:.0f} MB")


@pytest.mark.slow
def test_a_run_with_a_stack_as_large_as_that_of_14b_leaves_within_8_gib(tmp_path):
  # Six blocks of 5120 with 20480: as wide as Wan 14B and wider, 9.4 GB in float32, of which a
  # stack has 2.5.
  assert write_large_run(tmp_path / "run", 6, 5120) > 9e9
  most = peak(tmp_path / "run", tmp_path / "new", "torch")
  print(f"{most / 2**30:.1f} GiB")
  assert most < 3 * 2**30
  for name in ("run", "new"):
    shutil.rmtree(tmp_path / name)


@pytest.mark.slow
def test_the_largest_published_tensor_converts_within_8_gib(tmp_path):
  # The embedding of umT5-XXL, which every Wan has, as published in float32: 3.9 GiB. The largest of
  # a transformer of 14 billion parameters has 0.3 GiB.
  config = {
    "architectures": ["UMT5EncoderModel"],
    **dict(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=1),
    "feed_forward_proj": "gated-gelu",
  }
  assert write_sparse(tmp_path / "theirs", config) > 4.5 * 2**30
  for source, target, format in (("theirs", "ours", "flax"), ("ours", "back", "torch")):
    most = peak(tmp_path / source, tmp_path / target, format)
    print(f"{format}: {most / 2**30:.1f} GiB")
    assert most < 8 * 2**30
    shutil.rmtree(tmp_path / source)
  shutil.rmtree(tmp_path / "back")
