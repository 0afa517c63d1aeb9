"""What is the CPU renderer's own: threads, capacity, where it can't be had, what "auto" takes."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax import render as package
from d4s_jax.render import BACKENDS, cpu, projection, render
from d4s_jax.render.backend import BackendUnavailable
from tests.render import scenes

ROOT = pathlib.Path(__file__).parents[3]


def test_it_was_built():
  """Where this package is tested there is a compiler."""
  cpu.library.load()


def test_it_is_the_default_on_a_cpu(monkeypatch):
  called = []

  def rasterize(*arguments, **options):
    called.append(True)
    return cpu.rasterize(*arguments, **options)

  monkeypatch.setitem(BACKENDS, "cpu", rasterize)
  render(scenes.gaussians(), scenes.cameras())
  assert called


def test_without_it_tiled_serves_and_one_line_says_so(monkeypatch, capsys):
  def missing():
    raise BackendUnavailable("The CPU renderer was not built; do this.")

  monkeypatch.setitem(package._NATIVE, "cpu", ("cpu", missing))
  for _ in range(2):
    drawn = render(scenes.gaussians(), scenes.cameras())
  lines = capsys.readouterr().err.splitlines()
  assert lines == ["note: drawing with the slower tiled renderer. The CPU renderer was not built;"
                   " do this."]  # fmt: skip
  expected = render(scenes.gaussians(), scenes.cameras(), backend="tiled")
  np.testing.assert_array_equal(drawn.image, expected.image)


def test_asking_for_it_where_it_is_missing_names_the_remedy(monkeypatch):
  monkeypatch.setattr(cpu.library, "path", lambda: None)
  monkeypatch.setattr(cpu.library, "_problem", cpu.library._problem.__wrapped__)
  with pytest.raises(BackendUnavailable, match="was not built.*compiler.*pip install"):
    render(scenes.gaussians(), scenes.cameras(), backend="cpu")


def test_a_file_that_is_no_library(monkeypatch, tmp_path):
  (tmp_path / "native.so").write_text("none")
  monkeypatch.setattr(cpu.library, "path", lambda: str(tmp_path / "native.so"))
  monkeypatch.setattr(cpu.library, "_problem", cpu.library._problem.__wrapped__)
  with pytest.raises(BackendUnavailable, match="native.so can't be loaded"):
    render(scenes.gaussians(), scenes.cameras(), backend="cpu")


def reload(monkeypatch):
  monkeypatch.setattr(cpu.library, "_problem", cpu.library._problem.__wrapped__)


def test_a_library_of_other_sources_is_not_used(monkeypatch):
  monkeypatch.setattr(cpu.library, "sources_digest", lambda: "0")
  reload(monkeypatch)
  with pytest.raises(BackendUnavailable, match="other sources.*no-build-isolation"):
    cpu.library.load()


def test_a_library_for_another_jaxlib_is_not_used(monkeypatch):
  """XLA would refuse its handlers, and its whole CPU backend with them."""
  assert cpu.library.interface_version()[0] == 0
  monkeypatch.setattr(cpu.library, "interface_version", lambda: (0, 99))
  reload(monkeypatch)
  with pytest.raises(BackendUnavailable, match=r"\(0, 99\).*no-build-isolation"):
    cpu.library.load()


def test_on_another_platform_it_says_so(monkeypatch):
  monkeypatch.setattr(package.partitioning, "platform", lambda: "tpu")
  with pytest.raises(BackendUnavailable, match="can't draw on 'tpu'"):
    render(scenes.gaussians(), scenes.cameras(), backend="cpu")


def test_its_constants_are_those_of_the_projection():
  text = (pathlib.Path(cpu.__file__).parent / "csrc" / "splats.h").read_text()
  assert "kMinAlpha = 1.0f / 255.0f" in text and projection.MIN_ALPHA == 1 / 255
  assert f"kMaxAlpha = {projection.MAX_ALPHA}f" in text
  assert "kMinTransmittance = 1e-4f" in text and projection.MIN_TRANSMITTANCE == 1e-4


def test_vmap_of_a_gradient():
  scene, cameras = scenes.gaussians(coefficients=1), scenes.cameras(views=2)

  def gradient(camera):
    return jax.grad(lambda scene: jnp.sum(render(scene, camera, backend="cpu").image ** 2))(scene)

  mapped = jax.vmap(gradient)(cameras)
  for i in range(2):
    jax.tree.map(
      # XLA rounds the projection otherwise.
      lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-4, atol=1e-4 * np.abs(y).max()),
      mapped,
      gradient(cameras[i]),
    )


def test_other_numbers_than_float32_are_refused():
  with jax.enable_x64(True):
    scene, cameras = jax.tree.map(
      lambda x: jnp.asarray(x, jnp.float64), (scenes.gaussians(), scenes.cameras())
    )
    with pytest.raises(ValueError, match="float32, not float64"):
      render(scene, cameras, backend="cpu")


@pytest.mark.parametrize("capacity", [1, 7, 40])
def test_what_finds_no_room_is_dropped_from_behind_and_counted(capacity):
  """With room for all but some intersections, the picture is that of the nearer Gaussians."""
  scene, cameras = scenes.gaussians(coefficients=1), scenes.cameras(views=1)
  draw = functools.partial(render, scene, cameras, backend="cpu")
  whole, cut = draw(), draw(capacity=capacity)
  total = int(draw(capacity=1).overflow[0]) + 1
  assert whole.overflow[0] == 0 and total > 40
  assert cut.overflow[0] == total - capacity
  assert jnp.all(cut.alpha <= whole.alpha + 1e-6)
  # Gradients don't reach what was dropped, and stay finite.
  gradient = jax.grad(lambda scene: jnp.sum(render(
    scene, cameras, backend="cpu", capacity=capacity).image))(scene)  # fmt: skip
  moved = jnp.any(gradient.means != 0, axis=-1)
  assert jnp.all(jnp.isfinite(gradient.means)) and 0 < jnp.sum(moved) <= capacity


SCRIPT = """
import jax, jax.numpy as jnp, numpy as np, sys
from d4s_jax.render import render
from tests.render import scenes
scene, cameras = scenes.gaussians(count=400), scenes.cameras(views=3, height=50, width=70)
def loss(scene):
  drawn = render(scene, cameras, backend="cpu")
  return jnp.sum(drawn.image ** 2) + jnp.sum(drawn.depth), drawn
gradient, drawn = jax.jit(jax.grad(loss, has_aux=True))(scene)
leaves = [np.asarray(x) for x in jax.tree.leaves((gradient, drawn))]
np.savez(sys.argv[1], *leaves)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_the_number_of_threads_does_not_change_a_bit(tmp_path):
  for name, cores in (("one", "{0}"), ("all", f"range({os.cpu_count()})")):
    script = f"import os; os.sched_setaffinity(0, {cores})\n" + SCRIPT
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script, str(tmp_path / name)]
    subprocess.run(command, check=True, env=environment, timeout=300)
  one, every = (np.load(tmp_path / f"{name}.npz") for name in ("one", "all"))
  # XLA's projection is elementwise; its sums over views are not cut by threads.
  for key in one:
    np.testing.assert_array_equal(one[key], every[key])
