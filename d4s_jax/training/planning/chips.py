"""Accelerators: published peaks, and how to open one's compiler without having one."""

import dataclasses
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from d4s_jax.render.cuda import library


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator, as its maker publishes it; numbers are of what JAX counts as a device.

  Attributes:
    flops: peak of bfloat16 matrix products, per second.
    memory: bytes of high-bandwidth memory.
    bandwidth: of that memory, bytes per second.
    link: bytes per second that a device sends along one dimension of the network, both ways round
      a ring together.
    outside: bytes per second that a device sends out of its slice, or of its NVLink domain.
    price: US dollars for a chip and hour, on demand, as Google lists it in 2025, and of an H100 AWS
      (an eighth of a p5.48xlarge in us-east-1, $55.04); None where no list was found.
    devices: JAX devices a chip.
    near: devices that `link` joins; None for a whole slice.
  """

  flops: float
  memory: float
  bandwidth: float
  link: float
  outside: float
  price: float | None = None
  devices: int = 1
  near: int | None = None


CHIPS = {
  "v5e": Chip(197e12, 16 * 2**30, 819e9, 90e9, 6.25e9, 1.20),
  "v5p": Chip(459e12, 95 * 2**30, 2765e9, 200e9, 6.25e9, 4.20),
  "v6e": Chip(918e12, 32 * 2**30, 1640e9, 180e9, 12.5e9, 2.70),
  # A chip is two devices: half of a chip's numbers each.
  "tpu7x": Chip(1153e12, 96 * 2**30, 3690e9, 200e9, 12.5e9, None, devices=2),
  "h100": Chip(989e12, 80e9, 3350e9, 450e9, 50e9, 6.88, near=8),
}

# Chips that a host of TPUs has, where nothing else is said.
_HOST = 4

_H100_CAPABILITY = 90
# Text of a GPU's compiler target: its numbers are the maker's.
_H100 = """
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  memory_bandwidth: 3350000000000
  device_memory_size: 80000000000
  l2_cache_size: 52428800
  runtime_version: "13.0.0"
}
"""


def open_topology(name: str) -> tuple[Chip, list[Any]]:
  """The devices of accelerators to compile for.

  Args:
    name: CHIP:SHAPE, such as "v5p:4x4x4" or "v6e:16x16"; "2*v5p:4x4x4" for two slices; "h100:8x8"
      for 8 hosts of 8 GPUs.

  Raises:
    ValueError: the name is none, or the compiler for it is not installed.
  """
  parsed = re.fullmatch(r"(?:([1-9]\d*)\*)?(\w+):([1-9]\d*(?:x[1-9]\d*)*)", name)
  if not parsed or parsed[2] not in CHIPS:
    raise ValueError(
      f"--topology={name}; expected CHIP:SHAPE with a chip of {sorted(CHIPS)}, such as v5p:4x4x4,"
      " h100:8x8 or, for two slices, 2*v5p:4x4x4."
    )
  slices, kind, shape = int(parsed[1] or 1), parsed[2], parsed[3]
  options: dict[str, Any]
  if kind == "h100":
    sizes = shape.split("x")
    if slices > 1 or len(sizes) != 2:
      raise ValueError(f"--topology={name}; expected h100:HOSTSxGPUS, such as h100:8x8.")
    options = dict(platform="cuda", target_config=_H100, topology=f"1x{shape}")
    package = "d4s_jax[cuda]"
    # Compiling asks for the renderer's kernels, though nothing calls them.
    library.ensure(_H100_CAPABILITY)
  else:
    # Without these, two compilers on one machine lock each other out, or look for a TPU's host.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options = dict(platform="tpu", topology_name=f"{kind}:{shape}")
    options |= {"num_slices": slices} if slices > 1 else {}
    sizes = [int(size) for size in shape.split("x")]
    if math.prod(sizes) < _HOST:
      options["chips_per_host_bounds"] = [*sizes, *[1] * (3 - len(sizes))]
    package = "d4s_jax[tpu]"
  try:
    topology = topologies.get_topology_desc(**options)
  except Exception as error:
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    raise ValueError(
      f"--topology={name} can't be compiled for ({reason[:200]}). If its compiler is missing:"
      f" python -m pip install '{package}'."
    ) from error
  return CHIPS[kind], list(topology.devices)


def without_accelerator() -> None:
  """Prepares JAX for compiling alone; before anything else is asked of it.

  It doesn't look for an accelerator on this machine, and compiles with few optimisations, which
  takes a fifth of the time: in steps of which both were tried, memory differed by an eighth at most
  and exchanges not at all.
  """
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_optimization_level", "O0")
