"""Parameters and optimizer state lie along the mesh as their logical axes say."""

import dataclasses
import json
import re
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from d4s_jax.config import base
from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, initialize, sharding
from d4s_jax.training.optimizer import make_optimizer
from d4s_jax.training.planning.chips import CHIPS
from d4s_jax.training.planning.plan import _far
from tests.support import on_devices, small_config

STEP = """
import contextlib, json, pathlib, sys
import flax.linen as nn
import jax, jax.numpy as jnp, numpy as np, optax
from d4s_jax.data.source import SOURCES
from d4s_jax.data.transforms import with_tokens
from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, initialize, objectives, sharding, state
from d4s_jax.training.stages import stage
from d4s_jax.training.step import make_step
from tests.support import random_params, small_config

config = small_config()
config.clip.height = config.clip.width = 32
system = System.build(config.model.to_dict())
params = random_params(system)
source = SOURCES["synthetic"](frames=5, height=32, width=32, views=2)
clips = [with_tokens(source.read(i), system.backbone.tokenizer) for i in range(4)]
batch = jax.tree.map(lambda *x: np.stack(x), *clips)
optimizer = optax.sgd(1e-2)
chosen = stage("joint")
objective = objectives.make_objective(
  system, chosen, objectives.Settings(**config.loss.to_dict())
)
step = make_step(objective, optimizer, seed=0, average_decay=0.9, accumulate=ACCUMULATE)
alone, expected = jax.jit(step)(state.create(params, chosen.trainable, optimizer), batch)

mesh = sharding.make_mesh(fsdp=2)
with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
  like = initialize.abstract_state(system, chosen.trainable, optimizer, mesh)
  now = state.create(params, chosen.trainable, optimizer)
  now = jax.device_put(now, sharding.of(like))
  together, metrics = jax.jit(step, out_shardings=(sharding.of(like), None))(
    now, sharding.to_device(batch, mesh, 4)
  )
gap = max(
  float(jnp.max(jnp.abs(together.trainable[name] - alone.trainable[name])))
  for name in alone.trainable
)
moved = max(
  float(jnp.max(jnp.abs(alone.trainable[name] - state.flatten(params)[name])))
  for name in alone.trainable
)
saved = checkpoint.Checkpoints(pathlib.Path(sys.argv[1]), keep=1)
saved.save(together)
saved.close()
kernel = together.average["ldrm/trunk/merge/kernel"]
np.savez(pathlib.Path(sys.argv[1]) / "kernel.npz", kernel=kernel)
print(json.dumps({
  "loss": [float(expected["loss"]), float(metrics["loss"])], "gap": gap, "moved": moved,
  "cut": sum(not x.sharding.is_fully_replicated for x in together.trainable.values()),
}))
"""

RENDER = """
import functools, json, sys
import flax.linen as nn
import jax, jax.numpy as jnp, numpy as np
from d4s_jax.render import render
from d4s_jax.training import sharding
from tests.render import scenes

render = functools.partial(render, backend=sys.argv[1])
scene = jax.tree.map(lambda x: jnp.stack([x] * 4)[:, None], scenes.gaussians())
cameras = jax.tree.map(lambda x: jnp.stack([x] * 4), scenes.cameras())
function = jax.jit(jax.value_and_grad(
  lambda scene, cameras: jnp.sum(render(scene, cameras).image ** 2), has_aux=False
))
expected = function(scene, cameras)
mesh = sharding.make_mesh()
with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
  placed = jax.device_put((scene, cameras), sharding.batch_sharding(mesh))
  draw = jax.jit(lambda scene, cameras: render(scene, cameras))
  compiled = draw.lower(*placed).compile()
  image = compiled(*placed).image
  jax.clear_caches()
  found = function(*placed)
gap = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, (expected, found))))
print(json.dumps({
  "collectives": [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute")
                  if name in compiled.as_text()],
  "cut": [str(a) for a in image.sharding.spec], "gap": gap,
  "largest": max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(expected)),
}))
"""


def run(script, devices, *arguments):
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
    env=on_devices(devices),
    capture_output=True,
    text=True,
    timeout=1800,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout.splitlines()[-1])


@dataclasses.dataclass(frozen=True)
class Tpu:
  """What JAX asks of a device to arrange it."""

  id: int
  device_kind: str
  coords: tuple[int, ...]
  slice_index: int
  platform: str = "tpu"
  core_on_chip: int = 0
  process_index: int = 0


def tpus(kind, *shape, slices=1):
  """Chips of slices of that shape."""
  places = [place[::-1] for place in np.ndindex(shape[::-1])]
  every = [(number, place) for number in range(slices) for place in places]
  return [Tpu(n, kind, place, number) for n, (number, place) in enumerate(every)]


# How `wan2.2-5b-ti2v` lies on v5p:4x4x4 with fsdp 16 and tensor 2: of all paths that a pattern
# matches, what each dimension is cut along. "-" and what is left out at the end is whole.
GOLDEN = {
  # Convolutions, narrow layers, and what is added after a cut dimension was summed.
  r"autoencoder/.*": "",
  r"ldrm/deformation/(fine|mix|out|.*_time)/.*": "",
  r"ldrm/deformation/pyramid/(level_./bias|refine_.*)": "",
  r"ldrm/gaussian/(colour/.*|map/bias)": "",
  r"ldrm/trunk/(noise_out/bias|transformer/blocks/(query|key)_norm/scale)": "",
  r"transformer/(camera/adapter/.*|head/bias|text/out/bias|time/(modulation|out)/bias)": "",
  # Inner widths and heads along tensor, the others along fsdp; layers are stacked in front.
  r"text_encoder/blocks/(query|key|value|mlp_in|mlp_gate)/kernel": "- fsdp tensor",
  r"text_encoder/blocks/(attention|mlp)_out/kernel": "- tensor fsdp",
  r"text_encoder/blocks/(attention|mlp)_norm/scale": "- fsdp",
  r"text_encoder/blocks/bias/table": "- - tensor",
  r"text_encoder/embedding": "tensor fsdp",
  r"text_encoder/norm/scale": "fsdp",
  r"transformer/blocks/(cross|self)_attention/(query|key|value)/kernel": "- fsdp tensor",
  r"transformer/blocks/(cross|self)_attention/((query|key|value)/bias|.*_norm/scale)": "- tensor",
  r"transformer/blocks/(cross|self)_attention/out/kernel": "- tensor fsdp",
  r"transformer/blocks/((cross|self)_attention/out|mlp_out|cross_norm)/(bias|scale)": "- fsdp",
  r"transformer/blocks/mlp_in/kernel": "- fsdp tensor",
  r"transformer/blocks/mlp_in/bias": "- tensor",
  r"transformer/blocks/mlp_out/kernel": "- tensor fsdp",
  r"transformer/blocks/modulation": "- - fsdp",
  r"transformer/modulation": "- fsdp",
  r"transformer/((head|text/out|time/modulation|time/out)/kernel|.*(embedding|/in)/bias)": "fsdp",
  r"transformer/(text|time)/in/kernel": "- fsdp",
  r"transformer/(camera/projection|patch_embedding)/kernel": "- - - - fsdp",
  r"ldrm/trunk/transformer/blocks/(query_key_value|mlp_in)/kernel": "- fsdp tensor",
  r"ldrm/trunk/transformer/blocks/(query_key_value|mlp_in)/bias": "- tensor",
  r"ldrm/trunk/transformer/blocks/(attention|mlp)_out/kernel": "- tensor fsdp",
  r"ldrm/trunk/transformer/blocks/(attention|mlp)_(out/bias|norm/.*)": "- fsdp",
  r"ldrm/trunk/(noise_in|position|merge)/kernel": "- fsdp",
  r"ldrm/trunk/.*_patch/kernel": "- - - - fsdp",
  r"ldrm/trunk/((.*_patch|noise_in|position|merge)/bias|noise_out/kernel)": "fsdp",
  r"ldrm/trunk/((cameras|latents)_norm|transformer/norm)/(bias|scale)": "fsdp",
  r"ldrm/deformation/pyramid/(level_[123]/kernel|norm_./.*)": "fsdp",
  r"ldrm/(deformation/pyramid/level_0|gaussian/map)/kernel": "- - - fsdp",
}


@pytest.fixture(scope="module")
def published():
  """`wan2.2-5b-ti2v`, and the mesh of GOLDEN."""
  system = System.build(base("wan2.2-5b-ti2v").model.to_dict())
  return system, sharding.make_mesh(fsdp=16, tensor=2, devices=tpus("TPU v5p", 4, 4, 4))


def _cuts(shardings):
  """What the dimensions of arrays are cut along, in the words of GOLDEN, by the last key."""
  leaves = jax.tree_util.tree_leaves_with_path(shardings)
  cuts = {path[-1].key: x.spec for path, x in leaves if hasattr(path[-1], "key")}
  return {
    name: " ".join("+".join(x) if isinstance(x, tuple) else x or "-" for x in spec).rstrip("- ")
    for name, spec in cuts.items()
  }


def _unlike_golden(cuts):
  """Paths that no pattern matches, or more than one, or that are cut otherwise; unused patterns."""
  found = {name: [x for x in GOLDEN if re.fullmatch(x, name)] for name in cuts}
  wrong = [
    (name, cuts[name], patterns)
    for name, patterns in found.items()
    if len(patterns) != 1 or GOLDEN[patterns[0]] != cuts[name]
  ]
  return wrong + sorted(GOLDEN.keys() - {x for patterns in found.values() for x in patterns})


def test_a_published_model_and_its_moments_lie_as_written_down(published):
  system, mesh = published
  optimizer = make_optimizer(steps=2000, **base("wan2.2-5b-ti2v").optimizer.to_dict())
  like = initialize.abstract_state(system, ("^transformer/", "^ldrm/"), optimizer, mesh)
  layout = sharding.of(like)
  cuts = _cuts(layout.trainable | layout.frozen)
  assert layout.step.spec == jax.P()
  assert len(cuts) > 300 and _unlike_golden(cuts) == []
  for part in (layout.optimizer, layout.average):
    moments = _cuts(part)
    assert moments and {name: cuts[name] for name in moments} == moments


@pytest.mark.parametrize("axis", ["embed", "heads", "mlp"])
def test_what_is_written_down_notices_a_rule_that_no_longer_cuts(published, axis):
  system, mesh = published
  for less in (frozenset(), {axis}):
    rules = tuple((name, None if name in less else axes) for name, axes in sharding.RULES)
    layout = sharding.parameter_shardings(mesh, system.boxed(), rules)
    assert bool(_unlike_golden(_cuts(flatten_dict(layout, sep="/")))) == bool(less)


@pytest.mark.parametrize("backend", ["cpu", "tiled"])
def test_a_sharded_batch_is_drawn_where_it_lies(backend):
  found = run(RENDER, 4, backend)
  assert found["collectives"] == []
  assert "data" in found["cut"][0]
  assert found["gap"] <= 1e-5 * found["largest"]


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_on_four_devices_is_that_of_one(tmp_path, accumulate):
  found = run(STEP.replace("ACCUMULATE", str(accumulate)), 4, tmp_path)
  assert found["loss"][1] == pytest.approx(found["loss"][0], rel=1e-5)
  # Sums over the batch in another order, through the whole model.
  assert found["gap"] < 1e-3 * found["moved"]
  assert found["cut"] > 20
  # What four devices saved, one reads.
  system = System.build(small_config().model.to_dict())
  params, step = checkpoint.read_model(tmp_path, system.abstract())
  assert step == 1
  np.testing.assert_array_equal(
    params["ldrm"]["trunk"]["merge"]["kernel"], np.load(tmp_path / "kernel.npz")["kernel"]
  )


MESHES = """
import json, sys
import flax.linen as nn
import jax, jax.numpy as jnp, numpy as np, optax
from d4s_jax.data.source import SOURCES
from d4s_jax.data.transforms import with_tokens
from d4s_jax.models.system import System
from d4s_jax.training import initialize, objectives, sharding, state
from d4s_jax.training.stages import stage
from d4s_jax.training.step import make_step
from tests.support import random_params, small_config

MESHES, STEPS = json.loads(sys.argv[1]), int(sys.argv[2])
config = small_config()
config.clip.height = config.clip.width = 32
config.model.ldrm.heads = config.model.backbone.transformer.heads = 4
system = System.build(config.model.to_dict())
params = random_params(system)
source = SOURCES["synthetic"](frames=5, height=32, width=32, views=2)
batches = [
  jax.tree.map(
    lambda *x: np.stack(x),
    *[with_tokens(source.read(i), system.backbone.tokenizer) for i in range(8 * n, 8 * n + 8)],
  )
  for n in range(STEPS)
]
# One step as large as the gradient, in which rounding of the parameters is nothing; or small ones:
# with larger ones another choice of Gaussians, after a few steps, makes another path of any two.
optimizer = optax.sgd(1.0 if STEPS == 1 else 1e-5, momentum=0.9)
chosen = stage("joint")
objective = objectives.make_objective(system, chosen, objectives.Settings(**config.loss.to_dict()))
step = make_step(objective, optimizer, seed=0, average_decay=0.9)

def train(mesh):
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
    like = initialize.abstract_state(system, chosen.trainable, optimizer, mesh)
    now = jax.device_put(state.create(params, chosen.trainable, optimizer), sharding.of(like))
    placed = [sharding.to_device(batch, mesh, 8) for batch in batches]
    update = jax.jit(step, out_shardings=(sharding.of(like), sharding.whole()))
    update = update.lower(now, placed[0]).compile()
    losses, norms = [], []
    for batch in placed:
      now, metrics = update(now, batch)
      losses.append(float(metrics["loss"]))
      norms.append(float(metrics["gradient_norm"]))
    parameters = {name: np.asarray(x) for name, x in now.trainable.items()}
    return losses, norms, parameters, update.as_text()

start = {name: np.asarray(x) for name, x in state.create(params, chosen.trainable, optimizer)
         .trainable.items()}
one = sharding.make_mesh(devices=jax.devices()[:1])
losses, norms, expected, _ = train(one)
moved = max(float(np.abs(expected[n] - start[n]).max()) for n in expected)
least = (1e-3 if STEPS == 1 else 0.1) * moved
found = []
for sizes in MESHES:
  theirs, others, parameters, text = train(sharding.make_mesh(**sizes))
  found.append({
    "loss": max(abs(a - b) / abs(b) for a, b in zip(theirs, losses)),
    "norm": max(abs(a - b) / abs(b) for a, b in zip(others, norms)),
    # Of each parameter by itself: a wrong gradient of a small one is not to hide behind others.
    "gap": max(float(np.abs(parameters[n] - expected[n]).max())
               / max(float(np.abs(expected[n] - start[n]).max()), least) for n in expected),
    "kinds": [k for k in ("all-to-all", "collective-permute") if f" {k}" in text],
  })
print(json.dumps(found))
"""


def _compare(meshes, steps):
  for found, sizes in zip(run(MESHES, 8, json.dumps(meshes), steps), meshes, strict=True):
    # Sums in another order; ten steps of a renderer's derivatives pass it on many times over.
    near = 1e-3 if steps == 1 else 1e-2
    assert found["loss"] < 0.1 * near and found["norm"] < near and found["gap"] < near, (
      sizes,
      found,
    )
    assert ("all-to-all" in found["kinds"]) or "ulysses" not in sizes
    assert ("collective-permute" in found["kinds"]) or "ring" not in sizes


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 10])
def test_steps_on_five_meshes_are_those_of_one_device(steps):
  meshes = [
    {},
    {"fsdp": 8},
    {"fsdp": 2, "tensor": 2},
    {"fsdp": 2, "ulysses": 4},
    {"ring": 2, "ulysses": 2, "tensor": 2},
  ]
  _compare(meshes, steps)


def test_a_step_on_all_axes_is_that_of_one_device():
  _compare([{"fsdp": 2, "ring": 2, "ulysses": 2}], steps=1)


def test_meshes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="mesh.fsdp 3, mesh.ring 1, .*divides the 1 devices"):
    sharding.make_mesh(fsdp=3)
  with pytest.raises(ValueError, match="mesh.tensor 0"):
    sharding.make_mesh(tensor=0)


def test_slices_are_joined_along_data_alone():
  devices = tpus("TPU v5 lite", 2, 4, 1, slices=2)
  mesh = sharding.make_mesh(fsdp=2, tensor=2, devices=devices)
  assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "ring": 1, "ulysses": 1, "tensor": 2}
  slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  # All that share samples or parameters are in one slice; data is cut over slices first.
  assert slices.reshape(4, -1).tolist() == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]
  assert {device.id for device in mesh.devices.flat} == set(range(16))
  assert _far(CHIPS["v5e"], mesh) == {"data"}
  one = sharding.make_mesh(fsdp=2, tensor=2, devices=devices[:8])
  assert _far(CHIPS["v5e"], one) == frozenset()
  with pytest.raises(ValueError, match="mesh.fsdp 16.*divides 2 slices of 8 devices"):
    sharding.make_mesh(fsdp=16, devices=devices)
