"""Files of published tokenizers come within bounds, and leave as they came."""

import json

import pytest

from d4s_jax.formats import tokenizer_files
from tests.published_tokenizers import write_umt5


@pytest.fixture
def folder(tmp_path):
  return write_umt5(tmp_path / "tokenizer")


def test_files_leave_as_they_came(folder, tmp_path):
  (folder / "stray.bin").write_bytes(b"not ours")
  files = tokenizer_files.read(folder)
  assert set(files) == {"tokenizer.json", "spiece.model", "tokenizer_config.json"}
  copy = tmp_path / "a" / "copy"
  tokenizer_files.write(copy, files)
  assert {path.name: path.read_bytes() for path in copy.iterdir()} == files
  # Those of another tokenizer take the place of all of them.
  (copy / "notes.txt").write_bytes(b"mine")
  tokenizer_files.write(copy, {"spiece.model": b"other"})
  left = {path.name: path.read_bytes() for path in copy.iterdir()}
  assert left == {"spiece.model": b"other", "notes.txt": b"mine"}


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"expected.*tokenizer.json or spiece.model"):
    tokenizer_files.read(tmp_path / "none")


def test_what_is_too_large_or_leads_elsewhere_is_refused(folder, tmp_path, monkeypatch):
  outside = tmp_path / "outside.model"
  (folder / "spiece.model").rename(outside)
  (folder / "spiece.model").symlink_to(outside)
  with pytest.raises(ValueError, match="lead elsewhere"):
    tokenizer_files.read(folder)
  (folder / "spiece.model").unlink()
  monkeypatch.setattr(tokenizer_files, "_LARGEST", 1000)
  with pytest.raises(ValueError, match="larger than 1000 bytes"):
    tokenizer_files.read(folder)


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    (("model", "type"), "BPE", "model is of type Unigram"),
    (("model", "vocab"), {}, "expected a list"),
    (("model", "vocab"), [["a"]], "pairs of a piece"),
    (("model", "vocab"), [["a" * 2000, 0]], "at most 1000 characters"),
    (("model", "vocab"), [["a", "b"]], "finite number"),
    (("normalizer",), {"type": "Sequence", "normalizers": [{"type": "BertNormalizer"}]}, "Bert"),
    (("normalizer",), {"type": "Sequence", "normalizers": 3}, "no list"),
    (("pre_tokenizer",), {"type": "Split", "pattern": {"Regex": "(a+)+$"}}, "Split"),
    (("normalizer",), {"type": "Replace", "pattern": {"Regex": "(a+)+$"}}, "expected none but"),
  ],
)
def test_what_t5_has_not_is_refused(folder, path, value, message):
  place = folder / "tokenizer.json"
  contents = json.loads(place.read_text())
  section = contents
  for name in path[:-1]:
    section = section[name]
  section[path[-1]] = value
  place.write_text(json.dumps(contents))
  with pytest.raises(ValueError, match=f"(?s)tokenizer.json.*{message}"):
    tokenizer_files.read(folder)


def test_json_that_is_not_an_object_is_refused(folder):
  (folder / "tokenizer.json").write_text("[" * 100_000)
  with pytest.raises(ValueError, match="tokenizer.json"):
    tokenizer_files.read(folder)
