"""Cameras, rotations, poses, rays, harmonics and deformation: formulas without state.

One formula serves NumPy and JAX: data workers stay free of devices and traced code stays traceable.
Where NumPy and JAX arrays meet in one call, the result is JAX's. Products of small matrices are
written as a multiplication and a sum, because accelerators multiply matrices in reduced precision
by default, and a pixel position does not survive eight bits of mantissa.
"""

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# NumPy in, NumPy out; JAX in, JAX out.
AnyArray = TypeVar("AnyArray", Array, np.ndarray)
# The same where the pytrees of `types` decide: their fields are typed as JAX's and hold either.
if TYPE_CHECKING:
  EitherArray: TypeAlias = Any
else:
  EitherArray = Array | np.ndarray


def namespace(*arrays: Any) -> Any:
  """`jax.numpy` if any of the arrays is JAX's, traced or not; else `numpy`."""
  return jnp if any(isinstance(array, jax.Array) for array in arrays) else np
