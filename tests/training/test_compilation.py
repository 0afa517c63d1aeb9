"""What is compiled is kept, in a folder that others can't write to."""

import jax
import pytest

from d4s_jax.training import compilation


@pytest.fixture
def config(monkeypatch, tmp_path):
  names = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")
  before = {name: getattr(jax.config, name) for name in names}
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_programs_are_kept_for_their_owner_alone(config, tmp_path):
  assert compilation.cache() == ""
  folder = tmp_path / "home" / "d4s_jax"
  assert jax.config.jax_compilation_cache_dir == str(folder)
  assert folder.stat().st_mode & 0o777 == 0o700


def test_without_a_folder_a_note_says_why(config, tmp_path):
  (tmp_path / "home").write_text("no folder")
  assert compilation.cache().startswith("note: what is compiled can't be kept (")


def test_jax_s_own_variable_goes_first(config, monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
  assert compilation.cache() == "" and jax.config.jax_compilation_cache_dir == before
