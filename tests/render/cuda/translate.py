"""CUDA's launches as plain C++ calls, so that g++ compiles the sources."""

import re

# kernel<T><<<grid, block, shared, stream>>>(arguments
_LAUNCH = re.compile(r"([\w:]+(?:<[^<>;()]*>)?)\s*<<<(.*?)>>>\s*\(", re.DOTALL)


def launches(source: str) -> str:
  """`kernel<<<shape>>>(arguments)` becomes `emulator::Launch(shape, kernel, arguments)`."""
  return _LAUNCH.sub(lambda m: f"::emulator::Launch({m[2].strip()}, {m[1]}, ", source)
