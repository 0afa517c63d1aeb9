"""Parameters and optimizer state lie along the mesh as their logical axes say."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
import jax, json, numpy as np, optax
import flax.linen as nn
from d4s_jax.training import sharding, state, objectives
from d4s_jax.training.step import make_step
from d4s_jax.training.stages import STAGES
from d4s_jax.models.system import System
from tests.support import random_params, small_config

config = small_config()
system = System.build(config.model.to_dict())
params = random_params(system)
optimizer = optax.adam(1e-3)
mesh = sharding.make_mesh(fsdp=4)
now = state.create(params, ("^ldrm/",), optimizer)
layout = sharding.state_shardings(mesh, system.boxed(), jax.eval_shape(lambda: now))
kernel = layout.trainable["ldrm/trunk/merge/kernel"].spec
moment = layout.optimizer[0].mu["ldrm/trunk/merge/kernel"].spec
cut = sum(any(s.spec) for s in layout.trainable.values())
print(json.dumps({"kernel": [str(a) for a in kernel], "moment": [str(a) for a in moment],
  "step": len(layout.step.spec), "cut": cut, "all": len(layout.trainable)}))
"""


def run(script, devices):
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "PYTHONPATH": os.getcwd(),
  }
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script)],
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_state_is_cut_along_the_fsdp_axis():
  layout = run(SCRIPT, devices=8)
  assert layout["kernel"] == layout["moment"] and "fsdp" in layout["kernel"]
  assert layout["step"] == 0
  assert layout["cut"] > layout["all"] / 3


def test_mesh_that_does_not_divide_the_devices_is_refused():
  from d4s_jax.training.sharding import make_mesh

  with pytest.raises(ValueError, match="mesh.fsdp is 3"):
    make_mesh(fsdp=3)
