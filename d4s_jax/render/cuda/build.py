"""Compiles the library of the `cuda` backend ahead of its first use, which would do so too.

Example:
  python -m d4s_jax.render.cuda.build --arch=sm_80,sm_90

It needs nvcc and gsplat, but no GPU, and takes a minute or two for each architecture.
"""

import re

from absl import flags

from d4s_jax import errors
from d4s_jax.render.cuda import compiler

_ARCH = flags.DEFINE_list(
  "arch", [], "GPUs to compile for, such as sm_80,sm_90; if empty sm_80, sm_90 and sm_100."
)


def main(argv: list[str]) -> None:
  """Compiles one library."""
  del argv
  with errors.one_line():
    numbers = []
    for name in _ARCH.value:
      if not (found := re.fullmatch(r"sm_(\d+)", name.strip())):
        raise ValueError(f"--arch={name!r}; expected names such as sm_90, with commas between.")
      numbers.append(int(found[1]))
    print(f"Library: {compiler.build(numbers)}")


if __name__ == "__main__":
  errors.run(main)
