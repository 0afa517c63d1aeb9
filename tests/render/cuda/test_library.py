"""Asking for `cuda` where it can't be had: one clear error, remembered; and export for CUDA."""

import re
import shutil

import jax
import jax.numpy as jnp
import pytest

from d4s_jax.render import render
from d4s_jax.render.cuda import compiler, library, sources
from tests.render import scenes
from tests.render.cuda import emulator


@pytest.fixture
def fresh(monkeypatch):
  """As in a process that has not used the backend yet."""
  monkeypatch.setattr(library, "_registered", set())
  monkeypatch.setattr(library, "_failure", None)


@pytest.fixture
def gpu(fresh, monkeypatch):
  """A machine where JAX sees an H100."""
  monkeypatch.setattr(library, "_capability", lambda: 90)


def draw():
  return render(scenes.gaussians(4, coefficients=1), scenes.cameras(1), backend="cuda")


def test_no_gpu(fresh):
  with pytest.raises(ValueError, match=r"no NVIDIA GPU, it runs on 'cpu'.*pip install -e"):
    draw()


def test_no_compiler(gpu, monkeypatch):
  pytest.importorskip("gsplat")
  monkeypatch.setattr(shutil, "which", lambda name: None)
  with pytest.raises(library.BackendUnavailable, match=rf"nvcc was not found.*{compiler.COMMAND}"):
    draw()


def test_no_gsplat(gpu, monkeypatch):
  monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(library.BackendUnavailable, match=r"not installed. Run: pip install gsplat"):
    draw()


def test_another_gsplat(gpu, monkeypatch):
  pytest.importorskip("gsplat")
  monkeypatch.setattr(sources.importlib.metadata, "version", lambda name: "1.6.0")
  with pytest.raises(library.BackendUnavailable, match=r"1\.6\.0 .* expected 1\.5\.3"):
    draw()


def test_a_failure_is_remembered(gpu, monkeypatch):
  calls = []

  def fail(capability):
    calls.append(capability)
    raise ValueError("the compiler is out of paper")

  monkeypatch.setattr(compiler, "build_for", fail)
  for _ in range(3):
    with pytest.raises(library.BackendUnavailable, match="'cuda' can't be used: the compiler"):
      draw()
  assert calls == [90]


def test_other_backends_do_not_ask(fresh, monkeypatch):
  monkeypatch.setattr(library, "ensure", lambda: pytest.fail("asked for CUDA"))
  jax.eval_shape(render, scenes.gaussians(4, coefficients=1), scenes.cameras(1))


def test_export_for_cuda_calls_the_kernels():
  emulator.load()
  scene, cameras = scenes.gaussians(40, coefficients=4), scenes.cameras(views=2)

  def loss(scene):
    return jnp.sum(render(scene, cameras, backend="cuda").image)

  allowed = [jax.export.DisabledSafetyCheck.custom_call(name) for name in library.HANDLERS]
  exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=["cuda"], disabled_checks=allowed)
  text = exported(scene).mlir_module()
  # Each once: the backward pass uses the tile lists of the forward pass.
  assert sorted(re.findall(r"custom_call @(d4s_jax_\w+)", text)) == sorted(library.HANDLERS)
