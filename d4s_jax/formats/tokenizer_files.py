"""The files of a published T5 or umT5 tokenizer: read within bounds, written as they are.

Nothing in them is executed. Of `tokenizer.json` only a Unigram model with the normalisers and the
splitting of T5 is taken: other patterns could take forever on a prompt.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from d4s_jax.formats import atomic, checked

# Either is enough; the first is preferred, as in transformers.
JSON, SENTENCEPIECE = "tokenizer.json", "spiece.model"
# Only transformers reads these; they travel along.
_OTHERS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

_LARGEST = 64 * 2**20
_MOST_PIECES = 2**20
_LONGEST_PIECE = 1000
_NORMALIZERS = {"Sequence", "Precompiled", "Strip", "Replace"}
_SPLITS = {"Sequence", "WhitespaceSplit", "Metaspace"}
# What replaces runs of spaces, and steps in a row.
_LONGEST_REPLACEMENT, _MOST_STEPS = 4, 8
_SPACES = {"Regex": " {2,}"}


def read(folder: pathlib.Path) -> dict[str, bytes]:
  """Contents of the files of a tokenizer, by name.

  Args:
    folder: of a published tokenizer, such as tokenizer/ of a pipeline.

  Raises:
    FileNotFoundError: there is no such folder, or no tokenizer in it.
    ValueError: a file is too large, leads elsewhere, or is no tokenizer of T5.
  """
  present = [x for x in (JSON, SENTENCEPIECE, *_OTHERS) if (folder / x).exists()]
  if not {JSON, SENTENCEPIECE} & set(present):
    raise FileNotFoundError(
      f"No tokenizer in {folder}; expected the folder of a published one, with {JSON} or"
      f" {SENTENCEPIECE}, such as tokenizer/ of a converted pipeline."
    )
  files = {
    name: checked.read_bytes(checked.within(folder, name), _LARGEST, "tokenizer")
    for name in present
  }
  if JSON in files:
    _check_json(files[JSON], str(folder / JSON))
  return files


def write(folder: pathlib.Path, files: Mapping[str, bytes]) -> None:
  """Makes the files of a tokenizer in a folder these, each whole or not at all; others stay."""
  for name, contents in files.items():
    path = folder / name
    if not path.is_file() or path.read_bytes() != contents:
      with atomic.replacing(path) as temporary:
        temporary.write_bytes(contents)
  for name in {JSON, SENTENCEPIECE, *_OTHERS} - files.keys():
    (folder / name).unlink(missing_ok=True)


def _check_json(contents: bytes, where: str) -> None:
  value = checked.parse(contents, where)
  model = value.get("model") if isinstance(value, dict) else None
  if not isinstance(model, dict) or model.get("type") != "Unigram":
    raise ValueError(f"{where}: expected a tokenizer of T5, whose model is of type Unigram.")
  for piece in checked.items(model.get("vocab"), f"{where}: vocab", _MOST_PIECES):
    if not isinstance(piece, list) or len(piece) != 2:
      raise ValueError(f"{where}: vocab has {piece!r:.80}; expected pairs of a piece and a number.")
    checked.text(piece[0], f"{where}: vocab", _LONGEST_PIECE)
    checked.number(piece[1], f"{where}: vocab")
  _check_kinds(value.get("normalizer"), f"{where}: normalizer", _NORMALIZERS)
  _check_kinds(value.get("pre_tokenizer"), f"{where}: pre_tokenizer", _SPLITS)


def _check_kinds(value: Any, where: str, kinds: set[str]) -> None:
  """Refuses a step of the tokenizer that T5 hasn't, at any depth."""
  if value is None:
    return
  kind = value.get("type") if isinstance(value, dict) else None
  if not isinstance(kind, str) or kind not in kinds:
    raise ValueError(f"{where} is {kind!r:.60}; expected one of {', '.join(sorted(kinds))}.")
  pattern = value.get("pattern")
  if isinstance(pattern, dict) and "Regex" in pattern and pattern != _SPACES:
    raise ValueError(f"{where}: the pattern {pattern!r:.80}; expected none but {_SPACES}.")
  if len(str(value.get("content", ""))) > _LONGEST_REPLACEMENT:
    raise ValueError(f"{where}: content {value['content']!r:.60}; expected a character.")
  for name in ("normalizers", "pretokenizers"):
    steps = value.get(name) or []
    if not isinstance(steps, list) or len(steps) > _MOST_STEPS:
      raise ValueError(f"{where}: {name} is no list of at most {_MOST_STEPS} steps.")
    for step in steps:
      _check_kinds(step, where, kinds)
