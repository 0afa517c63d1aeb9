"""What is compiled is kept, in a folder that others can't write to."""

import jax
import pytest

from d4s_jax.training import compilation

LEAST = "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture
def config(monkeypatch, tmp_path):
  names = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size", LEAST)
  before = {name: getattr(jax.config, name) for name in names}
  for name in ("jax_compilation_cache_dir", LEAST):
    monkeypatch.delenv(name.upper(), raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_programs_are_kept_for_their_owner_alone(config, tmp_path):
  assert compilation.cache() == ""
  folder = tmp_path / "home" / "d4s_jax"
  assert jax.config.jax_compilation_cache_dir == str(folder)
  assert folder.stat().st_mode & 0o777 == 0o700
  # What makes the first parameters takes half a second to compile.
  assert getattr(jax.config, LEAST) < 0.5


def test_without_a_folder_a_note_says_why(config, tmp_path):
  (tmp_path / "home").write_text("no folder")
  assert compilation.cache().startswith("note: what is compiled can't be kept (")


def test_jax_s_own_variable_goes_first(config, monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
  monkeypatch.setenv(LEAST.upper(), "7")
  jax.config.update(LEAST, 7)  # As JAX does when it is imported.
  assert compilation.cache() == "" and jax.config.jax_compilation_cache_dir == before
  assert getattr(jax.config, LEAST) == 7
