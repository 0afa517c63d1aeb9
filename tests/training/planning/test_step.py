"""The joint step on a mesh exchanges parameters and gradients, and nothing that grows with a clip.

An all-gather or a sum of activations, of what is drawn, or of the map that Gaussians are chosen
from, would be right and go unnoticed, and at the published sizes take gigabytes for each sample.
"""

import json
import subprocess
import sys

import pytest

from tests.support import on_devices

SCRIPT = r"""
import json, math, re
import flax.linen as nn
import jax, numpy as np
from d4s_jax.losses.lpips import load_weights
from d4s_jax.models.system import System
from d4s_jax.training import initialize, objectives, sharding, state
from d4s_jax.training.optimizer import make_optimizer
from d4s_jax.training.planning import hlo
from d4s_jax.training.planning.plan import abstract_clip
from d4s_jax.training.stages import stage
from d4s_jax.training.update import make_update
from tests.support import small_config

config = small_config()
config.clip.height = config.clip.width = 32
# As at the published sizes; the stem decodes the video.
config.model.ldrm.stem = 0
mesh = sharding.make_mesh(fsdp=4)
system, chosen = System.build(config.model.to_dict()), stage("joint")
optimizer = make_optimizer(steps=100, **config.optimizer.to_dict())
settings = objectives.Settings(**config.loss.to_dict())
with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
  like = initialize.abstract_state(system, chosen.trainable, optimizer, mesh)
  clip = abstract_clip(config, system, 7 * mesh.size, sharding.batch_sharding(mesh))
  update = make_update(config, system, chosen, settings, optimizer, like)
  lowered = update.lower(like, clip, load_weights(settings.lpips))
  text = lowered.compile().as_text()

# Parameters whole, and one layer of a stack.
shapes = [shape for x in jax.tree.leaves(system.abstract()) for shape in (x.shape, x.shape[1:])]
known = {math.prod(shape) for shape in shapes}
# So that nothing that grows with samples has the size of one: all of that is a multiple of seven.
assert not [n for n in known if n % 7 == 0]
# Gradients are summed whole, or in the parts that devices keep.
summed = known | {n / mesh.shape["fsdp"] for n in known}
program = hlo.Program(text)
others = []
for line, times, _ in program.lines():
  kind = line.operation.removesuffix("-start")
  if kind not in hlo.KINDS or hlo.axes_of(line, mesh.shape)[1] < 2:
    continue
  expected = {"all-to-all": (), "all-reduce": summed}.get(kind, known)
  for found in re.finditer(r"\w+\[([\d,]*)\]", line.type):
    if math.prod(int(n) for n in found[1].split(",") if n) not in expected:
      name = re.search(r'op_name="([^"]*)"', line.rest)
      others.append([kind, hlo.size_of(found[0]), name[1] if name else ""])
print(json.dumps({
  "kinds": sorted({(c.kind, "+".join(c.axes)) for c in program.collectives(mesh.shape)}),
  "others": others,
}))
"""


@pytest.fixture(scope="module")
def found():
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    env=on_devices(8),
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_kinds_of_exchange(found):
  kinds = {tuple(x) for x in found["kinds"]}
  # Parameters are gathered and gradients summed among those who share them; sums of gradients, and
  # of losses, go over all.
  assert {("all-gather", "fsdp"), ("all-reduce", "data"), ("all-reduce", "data+fsdp")} <= kinds
  assert not [axes for kind, axes in kinds if kind == "all-gather" and axes == "data+fsdp"]
  assert "collective-permute" not in {kind for kind, _ in kinds}


def test_only_parameters_are_gathered_and_gradients_summed(found):
  # Rows of the table of tokens lie in pieces on all devices: prompts are put together from them.
  # One vector a sample for its noise level, and norms whose channels are cut.
  allowed = ("_take", "time/", "_noise/", "norm/")
  unexpected = [x for x in found["others"] if not any(name in x[2] for name in allowed)]
  assert unexpected == []
  assert all(size <= 56 * 24 * 16 * 4 for _, size, _ in found["others"])
