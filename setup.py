"""Builds the C++ renderer where a compiler is found; everything else is in setup.cfg."""

import hashlib
import importlib.util
import pathlib
import platform
import sys

import setuptools
from setuptools.command.build_ext import build_ext

SOURCES = pathlib.Path("d4s_jax/render/cpu/csrc")
FLAGS = [
  "-std=gnu++17",
  "-O3",
  "-Wno-psabi",  # vectors wider than the processor's are passed between inlined functions only
  "-fno-math-errno",
  "-fno-trapping-math",
]


def ffi_headers() -> str:
  """The folder of XLA's FFI headers, which jaxlib carries."""
  found = importlib.util.find_spec("jaxlib")
  assert found and found.submodule_search_locations
  return str(pathlib.Path(found.submodule_search_locations[0]) / "include")


def sources_digest() -> str:
  """What d4s_jax.render.cpu.library compares the library with."""
  files = sorted(SOURCES.iterdir(), key=lambda path: path.name)
  return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


class BuildRenderer(build_ext):
  """Compiles the inner loops once for each instruction set, the rest once."""

  def build_extension(self, ext):
    """Compiles and links; without a working compiler says so and goes on."""
    variants = {"baseline": []}
    if platform.machine() in ("x86_64", "AMD64"):
      variants["x86_64_v3"] = ["-march=x86-64-v3"]
    macros = [(f"D4S_HAS_{name.upper()}", None) for name in variants]
    macros += [("D4S_SOURCES", f'"{sources_digest()}"')]
    flags = [*FLAGS, "-isystem", ffi_headers()]

    def compile(sources, folder, extra_flags=(), extra_macros=()):
      return self.compiler.compile(
        sources,
        output_dir=str(pathlib.Path(self.build_temp) / folder),
        macros=[*macros, *extra_macros],
        extra_postargs=[*flags, *extra_flags],
        depends=ext.depends,
      )

    try:
      objects = compile([s for s in ext.sources if not s.endswith("tiles.cc")], "common")
      for name, more in variants.items():
        objects += compile([str(SOURCES / "tiles.cc")], name, more, [("D4S_VARIANT", name)])
      self.compiler.link_shared_object(objects, self.get_ext_fullpath(ext.name), target_lang="c++")
    except Exception as error:
      print(
        f"note: the C++ renderer was not built ({error}); the slower one of XLA serves instead.",
        file=sys.stderr,
      )


setuptools.setup(
  ext_modules=[
    setuptools.Extension(
      "d4s_jax.render.cpu._native",
      sources=sorted(str(path) for path in SOURCES.glob("*.cc")),
      depends=sorted(str(path) for path in SOURCES.glob("*.h")),
      optional=True,
    )
  ],
  cmdclass={"build_ext": BuildRenderer},
)
