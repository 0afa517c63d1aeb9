"""Logical axes: a name that is none is an error, wherever it is said."""

import flax.linen as nn
import jax.numpy as jnp
import pytest

from d4s_jax.layers import partitioning
from d4s_jax.training.sharding import MESH_AXES, RULES, make_mesh


def test_a_mistyped_axis_is_an_error():
  x, init = jnp.zeros((2, 3)), nn.initializers.zeros
  wrong = r"Unknown logical axes \['hedas'\]; expected names from"
  with pytest.raises(ValueError, match=wrong):
    partitioning.constrain(x, "batch", "hedas")
  with pytest.raises(ValueError, match=wrong):
    partitioning.partitioned(init, None, "hedas")
  with pytest.raises(ValueError, match=wrong), partitioning.laid_out(make_mesh(), hedas="data"):
    pass


def test_an_axis_named_twice_is_an_error():
  with pytest.raises(ValueError, match="name one axis twice; leave all but one of them None"):
    partitioning.constrain(jnp.zeros((2, 3)), "embed", "embed")
  with pytest.raises(ValueError, match="name one axis twice"):
    partitioning.partitioned(nn.initializers.zeros, "heads", None, "heads")


def test_the_rules_know_every_axis_and_no_other():
  assert [axis for axis, _ in RULES] == list(dict(RULES)) and set(dict(RULES)) == {
    *partitioning.AXES
  }
  taken = {axis for _, axes in RULES for axis in ([axes] if isinstance(axes, str) else axes or ())}
  assert taken == set(MESH_AXES)
