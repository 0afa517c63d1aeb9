"""A batch that lies on eight devices is drawn where it lies: nothing is gathered."""

import json
import subprocess
import sys

from tests.render.cuda import emulator
from tests.support import on_devices

SCRIPT = """
import json, re
import flax.linen as nn
import jax, jax.numpy as jnp
from d4s_jax.render import render
from d4s_jax.training import sharding
from tests.render import scenes
from tests.render.cuda import emulator

emulator.load()
batch = 8
many = [scenes.gaussians(40, coefficients=1, seed=i) for i in range(batch)]
scene = jax.tree.map(lambda *x: jnp.stack(x)[:, None], *many)
cameras = jax.tree.map(lambda x: jnp.stack([x] * batch), scenes.cameras(2))

def step(scene, cameras):
  def loss(scene):
    drawn = render(scene, cameras, backend="cuda")
    # One number for each clip, so that the loss itself needs no sum over devices.
    return jnp.sum(drawn.image**2 + drawn.alpha[..., None], axis=(1, 2, 3, 4)), drawn.overflow
  value, transposed, overflow = jax.vjp(loss, scene, has_aux=True)
  return value, overflow, transposed(jnp.ones_like(value))[0]

expected = jax.jit(step)(scene, cameras)
mesh = sharding.make_mesh()
with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
  placed = jax.device_put((scene, cameras), sharding.batch_sharding(mesh))
  jax.clear_caches()
  compiled = jax.jit(step).lower(*placed).compile()
  found = compiled(*placed)
gaps = [float(jnp.max(jnp.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, (expected, found)))]
text = compiled.as_text()
kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
print(json.dumps({
  # A sum over mesh axes of one device exchanges nothing.
  "collectives": [line for line in text.splitlines()
                  if re.search(rf" ({kinds})(-start)?\\(", line)
                  and not re.search(r"replica_groups=\\{(\\{\\d+\\},?)+\\}", line)],
  "calls": [line for line in text.splitlines() if "d4s_jax_gsplat_rasterize_forward" in line],
  "devices": len(found[0].sharding.device_set),
  "gap": max(gaps), "largest": max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(expected)),
}))
"""


def test_eight_devices_draw_their_own_clips():
  # Here, so that the other process finds the library, or that this one skips.
  emulator.load()
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    env=on_devices(8),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["collectives"] == []
  # Each device calls gsplat for its own clip: two views.
  assert found["calls"] and all("f32[2,21,29,4]" in call for call in found["calls"])
  assert found["devices"] == 8
  assert found["gap"] <= 1e-5 * found["largest"]
