"""Tests of the backend `cuda` run its kernels on the CPU, compiled with an emulator."""

import pytest


@pytest.fixture(autouse=True)
def _emulated_cuda(request):
  parameters = getattr(request.node, "callspec", None)
  if parameters and parameters.params.get("backend") == "cuda":
    from tests.render.cuda import emulator

    emulator.load()
