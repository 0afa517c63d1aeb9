"""Generation on several devices: what one device makes, cut as it should be."""

import json
import subprocess
import sys

import jax
import pytest

from d4s_jax.models.system import System
from d4s_jax.pipeline.programs import programs
from tests.support import on_devices, small_cogvideox

SCRIPT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from d4s_jax.models.system import System
from d4s_jax.pipeline import Pipeline, _batched, reconstruct, shot
from d4s_jax.pipeline.drawing import draw
from d4s_jax.pipeline.programs import programs
from d4s_jax.pipeline.spread import beside, spread
from d4s_jax.training import inference
from tests.support import random_params, small_cogvideox, small_config

family, what = sys.argv[1:]
make, frames = {
  "wan": (small_config, 5),
  "cogvideox": (small_cogvideox, 5),
  # Three latents, which patches of two pad to four.
  "cogvideox-1.5": (lambda: small_cogvideox(patch=(2, 2, 2)), 9),
}[family]
config = make()
config.model.backbone.transformer.heads = 4
config.model.ldrm.heads = 4
system = System.build(config.model.to_dict())
params = random_params(system)
placed = {
  name: jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), part,
    inference._here(system, name)) for name, part in params.items()
}
image, cameras = shot.photograph(
  np.random.default_rng(0).random((40, 30, 3), dtype=np.float32),
  shot.camera_path("spiral", frames), 32, 32)
gap = lambda a, b: float(jnp.max(jnp.abs(jnp.asarray(np.asarray(a) - np.asarray(b)))))
found = {}

def flops(function, *args):
  return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]

def told(x):
  return jnp.shape(x), str(x.dtype)

if what == "sample":
  made = {}
  for name, reuse in (("full", ()), ("reuse", (1, 3))):
    one, many = (Pipeline(system, x, steps=5, reuse=reuse) for x in (params, placed))
    calls = []
    make = many._denoiser.make
    def counted(params, keep, features, latents, *rest):
      calls.append((len(latents), features is not None))
      made[len(latents)] = jax.tree.map(told, (params, latents, *rest))
      velocity, kept = make(params, keep, features, latents, *rest)
      calls[-1] += (len({str(s.index) for s in velocity.addressable_shards}),)
      return velocity, kept
    many._denoiser.make = counted
    want, got = (x.sample(image, cameras, "a cat") for x in (one, many))
    found[name] = {"gap": gap(want, got), "calls": calls}
  # What is planned is what was done.
  settings = {"steps": 5, "guidance": "cosine", "scale": 7.5}
  layouts = {name: inference._here(system, name) for name in params}
  found["planned"] = []
  for program in programs(system, layouts, (frames, 32, 32), **settings):
    with program.within():
      program.function.lower(*program.arguments)
    found["planned"].append([program.name, program.calls])
    if "pass" in program.name:
      batch = program.arguments[1].shape[0]
      assert made[batch] == jax.tree.map(told, program.arguments), (made[batch], program)
  kernel = placed["transformer"]["blocks"]["mlp_in"]["kernel"]
  found["kernel"] = [list(kernel.shape), list(kernel.addressable_shards[0].data.shape)]
else:
  one, many = (Pipeline(system, x, steps=2) for x in (params, placed))
  latents = np.random.default_rng(1).normal(size=system.backbone.latent_shape(1, 5, 32, 32))
  latents = jnp.asarray(latents[0], jnp.float32)
  found["video"] = gap(one.video(latents), many.video(latents))
  # Gaussians of equal opacity may change places.
  drawn = [
    draw(x.reconstruct(latents, cameras), cameras, np.linspace(0, 1, 5), "draw").image
    for x in (one, many)
  ]
  found["scene"] = gap(*drawn)
  decode = system.backbone.decode
  rebuild = lambda params, latents: reconstruct(system, params, latents, _batched(cameras))
  for name, function, parts in (
    ("decode", decode, ("autoencoder",)), ("reconstruct", rebuild, ("ldrm", "autoencoder"))
  ):
    alone, cut = ({part: x[part] for part in parts} for x in (params, placed))
    with beside(cut):
      share = flops(function, cut, spread(latents[None], cut, latents.shape[1:3]))
    found[name] = share / flops(function, alone, latents[None])
print(json.dumps(found))
"""


def run(*arguments, devices=4):
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, *arguments],
    env=on_devices(devices),
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
  "family",
  ["wan", *(pytest.param(x, marks=pytest.mark.slow) for x in ("cogvideox", "cogvideox-1.5"))],
)
def test_passes_of_guidance_lie_side_by_side(family):
  found = run(family, "sample")
  for name, again in (("full", ()), ("reuse", (1, 3))):
    # Sums in another order, over ten passes whose differences guidance enlarges.
    assert found[name]["gap"] < 1e-4, name
    # Guidance is over after three of five steps. Where it isn't, a batch of two lies on two halves
    # of the devices.
    calls = [(2 if i < 3 else 1, i in again) for i in range(5)]
    assert [tuple(call[:2]) for call in found[name]["calls"]] == calls
    assert all(call[2] % call[0] == 0 for call in found[name]["calls"])
  assert found["planned"] == [
    ["embed a prompt", 2],
    ["see the photograph", 1],
    ["denoise, both passes", 3],
    ["denoise, one pass", 2],
    ["reconstruct the scene", 1],
  ]
  # Two copies of the parameters, each cut in two.
  whole, part = found["kernel"]
  assert part == [*whole[:-1], whole[-1] // 2]


def test_what_is_planned_has_padding_in_front():
  """Nine frames are three latents, of which patches of two make two tokens in time."""
  system = System.build(small_cogvideox(patch=(2, 2, 2)).model.to_dict())
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  params = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), system.abstract()
  )
  found = programs(system, params, (9, 32, 32), steps=2, guidance="constant", scale=3.0)
  (one,) = (program for program in found if program.name.startswith("denoise"))
  with one.within():
    velocity = jax.eval_shape(one.function, *one.arguments)
  assert velocity.shape == (1, 4, 4, 4, 4)


@pytest.mark.parametrize("family", ["wan", pytest.param("cogvideox", marks=pytest.mark.slow)])
def test_autoencoder_and_reconstruction_are_cut_over_devices(family):
  found = run(family, "scene")
  assert found["video"] < 1e-4 and found["scene"] < 1e-3
  # A device's share of the arithmetic; a quarter, and what is done by all.
  assert found["decode"] < 0.35 and found["reconstruct"] < 0.35
