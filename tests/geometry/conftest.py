"""Arrays in both namespaces, so that every formula is tested in NumPy and in JAX."""

import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(params=[np, jnp], ids=["numpy", "jax"])
def xp(request):
  return request.param
