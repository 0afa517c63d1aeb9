import functools
import json
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.layers.transformer import REMAT, Transformer, TransformerBlock
from tests.support import on_devices


@jax.jit
def _forward(params, x):
  return Transformer(depth=3, heads=4).apply({"params": params}, x)


@jax.jit
def _block(params, x):
  return TransformerBlock(heads=4).apply({"params": params}, x)


@pytest.fixture(scope="module")
def trained():
  key = jax.random.key(0)
  x = jax.random.normal(key, (2, 6, 24))
  variables = jax.jit(Transformer(depth=3, heads=4).init)(key, x)
  return x, variables, nn.unbox(variables)["params"]


def test_scan_equals_a_loop_over_blocks(trained):
  x, _, params = trained
  y, hidden = _forward(params, x)
  for i in range(3):
    block = jax.tree.map(lambda p, i=i: p[i], params["blocks"])
    x, _ = _block(block, x)
    # 1e-5: float32 sums in another order.
    np.testing.assert_allclose(hidden[i], x, atol=1e-5)
  np.testing.assert_allclose(jnp.mean(y**2, -1), 1.0, atol=1e-3)


def test_remat_changes_neither_values_nor_gradients(trained):
  x, _, params = trained

  @functools.partial(jax.jit, static_argnums=1)
  def gradient(params, remat):
    def loss(params):
      y, _ = Transformer(depth=3, heads=4, remat=remat).apply({"params": params}, x)
      return jnp.sum(y**3), y

    return jax.grad(loss, has_aux=True)(params)

  want = jax.tree.leaves(gradient(params, "all"))
  for remat in sorted(REMAT):
    for a, b in zip(jax.tree.leaves(gradient(params, remat)), want, strict=True):
      # 1e-4: sums over all tokens, in another order.
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  with pytest.raises(ValueError, match="remat is 'some'; expected one of"):
    gradient(params, "some")


ON_A_MESH = """
import json, sys
import flax.linen as nn
import jax, jax.numpy as jnp
from d4s_jax.layers.transformer import Transformer
from d4s_jax.training import sharding

x = jax.random.normal(jax.random.key(0), (4, 8, 32))

def gradient(params, x, remat):
  def loss(params):
    y, _ = Transformer(depth=3, heads=4, remat=remat).apply({"params": params}, x)
    return jnp.sum(jnp.sin(y))
  return jax.grad(loss)(params)

boxed = jax.jit(Transformer(depth=3, heads=4).init)(jax.random.key(0), x)["params"]
params, mesh, found = nn.unbox(boxed), sharding.make_mesh(fsdp=2, tensor=2), {}
with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
  layout = sharding.parameter_shardings(mesh, boxed)
  placed = jax.device_put((params, x), (layout, sharding.batch_sharding(mesh)))
  for remat in ("products", "offload"):
    traced = jax.jit(gradient, static_argnums=2).trace(*placed, remat)
    found[remat] = [float(jnp.sum(jnp.abs(g))) for g in jax.tree.leaves(
      traced.lower().compile()(*placed))]
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    found[remat].append([text.count(x) for x in ("pinned_host", "annotate_device_placement")])
print(json.dumps(found))
"""


def test_on_a_mesh_the_host_keeps_what_it_is_asked_to():
  """Four devices of a CPU compute it, whose memory is the host's; lowered for TPUs it travels."""
  done = subprocess.run(
    [sys.executable, "-c", ON_A_MESH],
    env=on_devices(4),
    **{"capture_output": True, "text": True, "check": False},
  )
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout)
  (*plain, here), (*kept, there) = found["products"], found["offload"]
  np.testing.assert_allclose(kept, plain, rtol=1e-4)
  # Results of three products of a block, there and back.
  assert here == [0, 0] and there == [3, 6]


def test_parameters_know_their_axes_and_blocks_start_different(trained):
  _, variables, params = trained
  specs = nn.get_partition_spec(variables)["params"]["blocks"]
  assert tuple(specs["mlp_in"]["kernel"]) == ("layers", "embed", "mlp")
  kernel = params["blocks"]["mlp_in"]["kernel"]
  assert kernel.shape == (3, 24, 96)
  assert not np.allclose(kernel[0], kernel[1])


def test_tokens_are_a_set(trained):
  x, _, params = trained
  y, _ = _forward(params, x)
  z, _ = _forward(params, x[:, ::-1])
  np.testing.assert_allclose(y[:, ::-1], z, atol=1e-5)


def test_bad_head_count_is_refused(key):
  with pytest.raises(ValueError, match="5 heads don't divide a width of 24"):
    Transformer(depth=1, heads=5).init(key, jnp.zeros((1, 2, 24)))
