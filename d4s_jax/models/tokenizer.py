"""Text to token ids."""

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int

PAD, END, FIRST_BYTE = 0, 1, 3

# The published marks of padding and of the end, by number.
_MARKS = {PAD: "<pad>", END: "</s>"}
_JSON, _SENTENCEPIECE = "tokenizer.json", "spiece.model"


class MissingPackageError(ValueError):
  """A library of the extra `text` is not installed."""


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
  """UTF-8 bytes as tokens, numbered as in ByT5: 0 pads, 1 ends the text, byte b is b + 3.

  Attributes:
    max_length: number of tokens of every text, the end mark included.
  """

  max_length: int = 128

  def __post_init__(self):
    _check_length(self.max_length)

  def __call__(self, text: str) -> Int[np.ndarray, "l"]:
    """Token ids, int32; a long text is cut after the last whole character that fits."""
    kept = _encoded(text)[: self.max_length - 1]
    kept = kept.decode("utf-8", errors="ignore").encode("utf-8")
    return _padded([byte + FIRST_BYTE for byte in kept], self.max_length)

  def cuts(self, text: str) -> bool:
    """Whether a text is too long, so that its end is not read."""
    return len(_encoded(text)) > self.max_length - 1


@dataclasses.dataclass(frozen=True)
class PublishedTokenizer:
  """The tokenizer that T5 or umT5 was published with, from its own files.

  It runs in the library `tokenizers` (tokenizer.json) or `sentencepiece` (spiece.model). Marks of
  padding and of the end that are written in a text, "<pad>" and "</s>", are left out (tokenizers)
  or read as characters (sentencepiece); transformers would pad or end the text in its middle.

  Attributes:
    max_length: number of tokens of every text, the end mark included.
    files: contents of the files by name, see `formats.tokenizer_files`.
    clean: what is done to a text first.
  """

  max_length: int
  files: Mapping[str, bytes] = dataclasses.field(repr=False, hash=False)
  clean: Callable[[str], str] = str

  def __post_init__(self):
    _check_length(self.max_length)

  def __getstate__(self) -> dict[str, Any]:
    # The loaded libraries stay behind: a data worker loads its own.
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

  def __call__(self, text: str) -> Int[np.ndarray, "l"]:
    """Token ids, int32; a long text is cut after the last token that fits, before the end mark."""
    return _padded(self._ids(text)[: self.max_length - 1], self.max_length)

  def cuts(self, text: str) -> bool:
    """Whether a text is too long, so that its end is not read."""
    return len(self._ids(text)) > self.max_length - 1

  @property
  def vocabulary(self) -> int:
    """One more than the highest token id.

    Raises:
      ValueError: the files are no tokenizer of T5, or its library is missing.
    """
    return self._loaded[1]

  def _ids(self, text: str) -> list[int]:
    text = _encoded(self.clean(text)).decode("utf-8")
    with _explained(self._name):
      return [number for number in self._loaded[0](text) if number not in _MARKS]

  @property
  def _name(self) -> str:
    return _JSON if _JSON in self.files else _SENTENCEPIECE

  @functools.cached_property
  def _loaded(self) -> tuple[Callable[[str], list[int]], int]:
    """Text to ids, and the size of the vocabulary."""
    library, load = _LIBRARIES[self._name]
    try:
      module = importlib.import_module(library)
    except ImportError as error:
      raise MissingPackageError(
        f"A published tokenizer ({self._name}) needs the package {library}; pip install -e"
        " '.[text]' brings it."
      ) from error
    with _explained(self._name):
      encode, vocabulary, marks = load(module, self.files[self._name])
      # Some damage shows only in use.
      encode("A cat, 1 café.")
    if marks != _MARKS:
      raise ValueError(
        f"{self._name} has {marks} as marks; expected {_MARKS}, as T5 and umT5 were published."
      )
    return encode, vocabulary


Tokenizer: TypeAlias = ByteTokenizer | PublishedTokenizer


def make_tokenizer(
  max_length: int,
  files: Mapping[str, bytes],
  vocabulary: int,
  clean: Callable[[str], str] = str,
) -> Tokenizer:
  """The tokenizer of a model: the published one whose files are given, bytes if there are none.

  Args:
    max_length: number of tokens of a prompt.
    files: contents by name; may be empty.
    vocabulary: number of token ids that the text encoder knows.
    clean: what the published pipeline does to a prompt first.

  Raises:
    ValueError: the files are no tokenizer of T5 or not of this text encoder.
  """
  if not files:
    return ByteTokenizer(max_length)
  tokenizer = PublishedTokenizer(max_length, files, clean)
  if tokenizer.vocabulary > vocabulary:
    raise ValueError(
      f"The tokenizer has {tokenizer.vocabulary} tokens, the text encoder only {vocabulary};"
      " expected the tokenizer that was published with the encoder (model.backbone.tokenizer)."
    )
  return tokenizer


def _load_json(module: Any, contents: bytes) -> tuple[Callable, int, dict[int, str]]:
  tokenizer = module.Tokenizer.from_buffer(contents)
  tokenizer.no_truncation()
  tokenizer.no_padding()
  marks = {number: tokenizer.id_to_token(number) for number in _MARKS}

  def encode(text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids

  return encode, 1 + max(tokenizer.get_vocab().values()), marks


def _load_sentencepiece(module: Any, contents: bytes) -> tuple[Callable, int, dict[int, str]]:
  processor = module.SentencePieceProcessor(model_proto=contents)
  size = processor.piece_size()
  marks = {number: processor.id_to_piece(number) for number in _MARKS if number < size}
  return processor.encode, size, marks


_LIBRARIES = {
  _JSON: ("tokenizers", _load_json),
  _SENTENCEPIECE: ("sentencepiece", _load_sentencepiece),
}


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
  """Any error of a library, whose classes are many, as one of the file."""
  try:
    yield
  except BaseException as error:
    # A panic of Rust is no Exception.
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
      raise
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise ValueError(
      f"{name} can't be used as a tokenizer ({reason:.200}); restore it from its publisher."
    ) from error


def _encoded(text: str) -> bytes:
  """UTF-8; half a surrogate pair is not text and becomes "?" instead of an error."""
  return text.encode("utf-8", errors="replace")


def _padded(ids: Sequence[int], length: int) -> Int[np.ndarray, "l"]:
  """The ids with the end mark, padded."""
  tokens = np.full(length, PAD, np.int32)
  tokens[: len(ids)] = ids
  tokens[len(ids)] = END
  return tokens


def _check_length(length: int) -> None:
  if length < 1:
    raise ValueError(f"A text needs at least 1 token for its end, got {length}.")
