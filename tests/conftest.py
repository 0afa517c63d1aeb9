"""One CPU device, strict rank promotion, shapes checked as annotated, a fresh key for each test."""

import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What tests compile runs once or twice: XLA takes a quarter of its time without these passes, and
# what they start inherits it. `XLA_FLAGS= python -m pytest` compiles as users do.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
  " --xla_cpu_parallel_codegen_split_count=1",
)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

import tests.typechecker  # noqa: E402, F401

jax.config.update("jax_numpy_rank_promotion", "raise")
# `generate`, run within a test, would keep what it compiles in the user's home.
jax.config.update("jax_enable_compilation_cache", False)

# No deadline: the first call of a JAX function compiles.
hypothesis.settings.register_profile("tests", deadline=None, max_examples=60)
hypothesis.settings.load_profile("tests")

# Shapes and types are checked at every call into these packages. Not into `render`: JAX fills its
# pytrees with placeholders.
_CHECKED = (
  "curation",
  "data.datasets",
  "diffusion",
  "formats",
  "geometry",
  "layers",
  "losses",
  "models",
  "serving",
  "viewer",
  "watermark",
)
jaxtyping.install_import_hook([f"d4s_jax.{name}" for name in _CHECKED], "tests.typechecker.checked")


def pytest_collection_finish():
  # What is imported stays: collections needn't look at it.
  gc.collect()
  gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def compiled_programs():
  """Those of a file are of no use to the next ones, and make all collections of rubbish slower."""
  yield
  jax.clear_caches()


@pytest.fixture
def key():
  return jax.random.key(0)
