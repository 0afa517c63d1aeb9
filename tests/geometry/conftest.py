"""Arrays in both namespaces, so that every formula is tested in NumPy and in JAX."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest

# No deadline: the first call of a JAX function compiles.
hypothesis.settings.register_profile("geometry", deadline=None, max_examples=60)
hypothesis.settings.load_profile("geometry")


@pytest.fixture(params=[np, jnp], ids=["numpy", "jax"])
def xp(request):
  return request.param
