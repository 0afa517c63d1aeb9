"""What compiled programs move, against exchanges and loops whose size is known."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from d4s_jax.training.planning.hlo import Program, size_of
from tests.support import on_devices

SCRIPT = """
import dataclasses, json
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from d4s_jax.training import sharding
from d4s_jax.training.planning.hlo import Program

mesh = sharding.make_mesh(fsdp=2, ulysses=2)
def body(x):
  x = jax.lax.all_gather(x, "fsdp", tiled=True)[:4]
  x = jax.lax.psum(x, ("data", "ulysses"))
  x = jax.lax.all_to_all(x, "ulysses", 1, 0, tiled=True)
  x = jax.lax.all_to_all(x, "ulysses", 0, 1, tiled=True)
  return jax.lax.ppermute(x, "data", [(0, 1), (1, 0)])
def loop(x):
  x, _ = jax.lax.scan(lambda x, _: (jnp.sin(body(x)), None), x, length=5)
  return x
with jax.set_mesh(mesh):
  x = jax.ShapeDtypeStruct((32, 16), jnp.float32)
  spec = P(("data", "fsdp", "ulysses"))
  f = jax.shard_map(loop, in_specs=spec, out_specs=spec, check_vma=False)
  text = jax.jit(f, in_shardings=jax.NamedSharding(mesh, spec)).lower(x).compile().as_text()
print(json.dumps([dataclasses.asdict(c) for c in Program(text).collectives(mesh.shape)]))
"""


def test_exchanges_are_counted_by_kind_and_axis():
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT], env=on_devices(8), capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr[-2000:]
  found = {(x["kind"], tuple(x["axes"])): x for x in json.loads(done.stdout.splitlines()[-1])}
  each = 4 * 16 * 4  # bytes of a device's part
  gathered = found["all-gather", ("fsdp",)]
  assert (gathered["calls"], gathered["devices"], gathered["received"]) == (5, 2, 5 * each)
  summed = found["all-reduce", ("data", "ulysses")]
  assert (summed["calls"], summed["devices"]) == (5, 4)
  assert summed["received"] == 5 * 2 * each * 3 / 4
  exchanged = found["all-to-all", ("ulysses",)]
  assert (exchanged["calls"], exchanged["received"]) == (10, 10 * each / 2)
  passed = found["collective-permute", ("data",)]
  assert (passed["calls"], passed["received"]) == (5, 5 * each)


def _compiled(function, *shapes):
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return Program(jax.jit(function).lower(*arguments).compile().as_text())


def test_memory_moved_by_a_product_and_in_a_loop():
  once = _compiled(jnp.matmul, (256, 128), (128, 64)).moved()[0]
  assert once == pytest.approx(4 * (256 * 128 + 128 * 64 + 256 * 64), rel=0.1)

  def loop(x, weights):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

  # Each layer's weights are read once, not the whole stack each time.
  looped = _compiled(loop, (256, 128), (10, 128, 128)).moved()[0]
  least = 4 * 10 * (2 * 256 * 128 + 128 * 128)
  assert least <= looped < 3 * least


# As TPUs write it: the product reads one of ten layers, the other fusion writes one row of ten.
NESTED = """
%slice.1 (p.1: bf16[10,128,64], i.1: s32[]) -> bf16[128,64] {
  %p.1 = bf16[10,128,64]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  ROOT %s.1 = bf16[1,128,64]{2,1,0} dynamic-slice(%p.1, %i.1), dynamic_slice_sizes={1,128,64}
}

%product.1 (p.2: bf16[10,128,64], i.2: s32[], x.2: bf16[32,128]) -> bf16[32,64] {
  %p.2 = bf16[10,128,64]{2,1,0} parameter(0)
  %i.2 = s32[] parameter(1)
  %x.2 = bf16[32,128]{1,0} parameter(2)
  %w.2 = bf16[128,64]{1,0} fusion(%p.2, %i.2), kind=kLoop, calls=%slice.1
  ROOT %y.2 = bf16[32,64]{1,0} convolution(%x.2, %w.2), dim_labels=bf_io->bf
}

%update.1 (p.3: bf16[10,32,64], y.3: bf16[1,32,64], i.3: s32[]) -> bf16[10,32,64] {
  %p.3 = bf16[10,32,64]{2,1,0} parameter(0)
  %y.3 = bf16[1,32,64]{2,1,0} parameter(1)
  %i.3 = s32[] parameter(2)
  ROOT %u.3 = bf16[10,32,64]{2,1,0} dynamic-update-slice(%p.3, %y.3, %i.3)
}

%keep.1 (p.4: bf16[10,32,64], y.4: bf16[1,32,64], i.4: s32[]) -> bf16[10,32,64] {
  %p.4 = bf16[10,32,64]{2,1,0} parameter(0)
  %y.4 = bf16[1,32,64]{2,1,0} parameter(1)
  %i.4 = s32[] parameter(2)
  ROOT %f.4 = bf16[10,32,64]{2,1,0} fusion(%p.4, %y.4, %i.4), kind=kLoop, calls=%update.1
}

ENTRY %main.1 (w: bf16[10,128,64], i: s32[], x: bf16[32,128], k: bf16[10,32,64]) -> bf16[10,32,64] {
  %w = bf16[10,128,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = bf16[32,128]{1,0} parameter(2)
  %k = bf16[10,32,64]{2,1,0} parameter(3)
  %y = bf16[1,32,64]{2,1,0} fusion(%w, %i, %x), kind=kOutput, calls=%product.1
  ROOT %r = bf16[10,32,64]{2,1,0} fusion(%k, %y, %i), kind=kLoop, calls=%keep.1
}
"""


def test_fusions_in_fusions_touch_slices_alone():
  product = 2 * (128 * 64 + 32 * 128 + 32 * 64) + 4
  kept = 2 * (32 * 64 + 32 * 64 + 32 * 64) + 4  # The slice that was there, the new one, written.
  assert Program(NESTED).moved() == (product + kept, 0)


ROWS = """
%some.1 (t.1: f32[1000,64], i.1: s32[8,1]) -> f32[8,64] {
  %t.1 = f32[1000,64]{1,0} parameter(0)
  %i.1 = s32[8,1]{1,0} parameter(1)
  ROOT %g.1 = f32[8,64]{1,0} gather(%t.1, %i.1), offset_dims={1}, slice_sizes={1,64}
}

ENTRY %main.1 (t: f32[1000,64], i: s32[8,1]) -> f32[8,64] {
  %t = f32[1000,64]{1,0} parameter(0)
  %i = s32[8,1]{1,0} parameter(1)
  %g = f32[8,64]{1,0} gather(%t, %i), offset_dims={1}, slice_sizes={1,64}
  ROOT %f = f32[8,64]{1,0} fusion(%t, %i), kind=kLoop, calls=%some.1
}
"""


def test_of_a_table_rows_alone_are_read():
  row = 8 * 64 * 4
  # The fusion counts its indices as well.
  assert Program(ROWS).moved() == (2 * row + 2 * row + 8 * 4, 0)


# As TPUs write a change of layout: in parts, one in each turn of a loop whose counter has no sign.
PARTS = """
%turn.1 (t.1: (u32[], f32[4096])) -> (u32[], f32[4096]) {
  %t.1 = (u32[]{:T(128)}, f32[4096]{0:T(1024)}) parameter(0)
  %n.1 = u32[]{:T(128)} get-tuple-element(%t.1), index=0
  %x.1 = f32[4096]{0:T(1024)} get-tuple-element(%t.1), index=1
  %part.1 = f32[512]{0:T(1024)} dynamic-slice(%x.1, %n.1), dynamic_slice_sizes={512}
  ROOT %r.1 = (u32[]{:T(128)}, f32[4096]{0:T(1024)}) tuple(%n.1, %x.1)
}

%more.1 (t.2: (u32[], f32[4096])) -> pred[] {
  %eight.2 = u32[] constant(8)
  %t.2 = (u32[]{:T(128)}, f32[4096]{0:T(1024)}) parameter(0)
  %n.2 = u32[]{:T(128)} get-tuple-element(%t.2), index=0
  ROOT %less.2 = pred[]{:T(512)} compare(%n.2, %eight.2), direction=LT, backend_config={"flags":[]}
}

ENTRY %main.1 (t: (u32[], f32[4096])) -> (u32[], f32[4096]) {
  %t = (u32[]{:T(128)}, f32[4096]{0:T(1024)}) parameter(0)
  ROOT %w = (u32[]{:T(128)}, f32[4096]{0:T(1024)}) while(%t), condition=%more.1, body=%turn.1
}
"""


def test_loops_over_parts_of_an_array_are_multiplied_out():
  program = Program(PARTS)
  assert program.unknown == 0
  # Each part is read and written; the comparison of counters is next to nothing.
  assert program.moved() == (pytest.approx(8 * 2 * 512 * 4, rel=0.01), 0)


def test_loops_that_depend_on_data_count_once():
  def until(x, _):
    return jax.lax.while_loop(lambda x: x[0] < 9, lambda x: 2 * jnp.sin(x), x), None

  program = _compiled(lambda x: jax.lax.scan(until, x, length=5)[0], (1000,))
  assert program.unknown == 1
  moved, turn = program.moved()
  # There are five of them; each turn reads and writes all.
  assert 5 * 2 * 4000 <= turn < moved < 4 * turn


def test_sizes_of_types():
  assert size_of("(bf16[2,3]{1,0:T(8,128)}, u8[5], f32[])") == 12 + 5 + 4
  with pytest.raises(ValueError, match="no entry"):
    Program("nothing")
