"""Embeddings of prompts on disk, so that a frozen text encoder reads each prompt only once.

FOLDER/KEY.safetensors holds one prompt; KEY is the SHA-256 of its tokens and of all that makes
embeddings of them, the weights of the encoder and its settings. So runs may share a folder, also at
the same time, and what another encoder made is never found. In a file:

  embeddings   rows up to the end of the prompt, in the type that the encoder computes in
  sha256       of their bytes

Of several processes each reads and writes the prompts of its own samples, in one folder or in one
on each host. The encoder lies on the devices of all of them: they embed together what any of them
lacks.

The encoder stays in the state of the run, and so in its checkpoints; it is only not computed.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from d4s_jax.formats import atomic, tensors
from d4s_jax.models.backbone import Backbone, Embedded, Text
from d4s_jax.models.tokenizer import PAD
from d4s_jax.training import processes, sharding, state
from d4s_jax.types import Clip

# Changes when embeddings do for another reason than weights and settings.
_VERSION = 1
_ENCODER = "text_encoder/"
_TYPES = {"float32": "F32", "bfloat16": "BF16"}
# Prompts between two words on how many were embedded.
_OFTEN = 100


def check(folder: str, trainable: Mapping[str, Any]) -> None:
  """Refuses a cache that a run can't use.

  Args:
    folder: of the cache; "" for none.
    trainable: what the run trains, by path.

  Raises:
    ValueError: the encoder is trained.
    OSError: the folder can't be written to.
  """
  if not folder:
    return
  if any(path.startswith(_ENCODER) for path in trainable):
    raise ValueError(
      f"text_cache is {folder!r}, but this run trains the text encoder, whose embeddings then"
      ' change; give --config.text_cache="", or patterns in --config.trainable that leave it out.'
    )
  atomic.check_place(pathlib.Path(folder) / "entry")


def make(
  folder: str, backbone: Backbone, frozen: state.Flat, say: Callable[[str], None]
) -> Callable[[Clip, state.Flat], Clip]:
  """A function that replaces the tokens of a batch by embeddings; without a folder, by nothing.

  It takes the frozen parameters of the moment: a step gives away those before it.

  Args:
    folder: of the cache; "" for none.
    backbone: the video model.
    frozen: parameters by path, with those of the text encoder.
    say: is told what is embedded.
  """
  return TextCache(pathlib.Path(folder), backbone, frozen, say) if folder else _as_tokens


def _as_tokens(clip: Clip, frozen: state.Flat) -> Clip:
  del frozen
  return clip


class TextCache:
  """Embeddings by tokens, from disk where they are there, else from the encoder to disk."""

  def __init__(
    self,
    folder: pathlib.Path,
    backbone: Backbone,
    frozen: state.Flat,
    say: Callable[[str], None],
  ):
    """Embeds the empty prompt; see `make`."""
    self._folder, self._backbone, self._say = folder, backbone, say
    self._encode = jax.jit(backbone.encode_text, out_shardings=sharding.whole())
    self._identity = _identity(backbone, _of_encoder(frozen))
    self._lacking = processes.Exchange("text cache")
    self._made = 0
    empty = backbone.tokenizer("")[None]
    encoder = state.unflatten(_of_encoder(frozen))
    spec = jax.eval_shape(backbone.encode_text, encoder, empty).embeddings
    self._width, self._dtype = spec.shape[-1], spec.dtype
    (self._empty,) = self._texts(empty, frozen)

  def __call__(self, clip: Clip, frozen: state.Flat) -> Clip:
    """The batch with embeddings, for each sample also of the empty prompt.

    All processes call it together, each with its own samples.

    Raises:
      ValueError: an entry is damaged.
    """
    texts = self._texts(clip.text, frozen)
    empties = [self._empty] * len(texts)
    stacked = (jax.tree.map(lambda *x: np.stack(x), *rows) for rows in (texts, empties))
    return dataclasses.replace(clip, text=Embedded(*stacked))

  def _texts(self, prompts: Int[np.ndarray, "b l"], frozen: state.Flat) -> list[Text]:
    """Prompts without a batch axis, in NumPy."""
    lacking = {self._path(tokens): tokens.tolist() for tokens in prompts}
    lacking = {path: tokens for path, tokens in lacking.items() if not path.exists()}
    told = self._lacking(json.dumps(list(lacking.values())) if lacking else "")
    # In the same order everywhere: they are embedded by all processes at once.
    wanted = [np.array(tokens, np.int32) for words in told for tokens in json.loads(words)]
    unique = list({tokens.tobytes(): tokens for tokens in wanted}.values())
    for tokens, embeddings in zip(unique, self._embed(unique, frozen)):
      if (path := self._path(tokens)) in lacking:
        _write(path, embeddings[: self._rows(tokens)])
    return [self._text(tokens) for tokens in prompts]

  def _path(self, tokens: Int[np.ndarray, "l"]) -> pathlib.Path:
    key = hashlib.sha256(self._identity + np.asarray(tokens, "<i4").tobytes()).hexdigest()
    return self._folder / f"{key}.safetensors"

  def _rows(self, tokens: Int[np.ndarray, "l"]) -> int:
    """Embeddings of a prompt that are not zero."""
    return len(tokens) if self._backbone.reads_padding else int(np.count_nonzero(tokens != PAD))

  def _text(self, tokens: Int[np.ndarray, "l"]) -> Text:
    """One prompt from disk."""
    length, rows = len(tokens), self._rows(tokens)
    embeddings: Any = np.zeros((length, self._width), self._dtype)
    embeddings[:rows] = _read(self._path(tokens), (rows, self._width), self._dtype)
    mask: Any = np.arange(length) < rows
    return Text(embeddings, mask)

  def _embed(
    self, prompts: list[Int[np.ndarray, "l"]], frozen: state.Flat
  ) -> Iterator[Float[np.ndarray, "l d"]]:
    # One for each device: a batch is cut over all of them.
    size, encoder = jax.device_count(), state.unflatten(_of_encoder(frozen))
    for start in range(0, len(prompts), size):
      if not self._made:
        self._say(
          f"text cache {self._folder}: compiling the text encoder for prompts not in it yet"
        )
      batch = prompts[start : start + size]
      filled = np.stack([*batch, *batch[:1] * (size - len(batch))])
      embeddings = np.asarray(self._encode(encoder, filled).embeddings)
      before, self._made = self._made, self._made + len(batch)
      if self._made // _OFTEN > before // _OFTEN:
        self._say(f"text cache {self._folder}: {self._made} prompts embedded")
      yield from embeddings[: len(batch)]


def _of_encoder(frozen: state.Flat) -> state.Flat:
  return {path: x for path, x in frozen.items() if path.startswith(_ENCODER)}


def _identity(backbone: Backbone, params: state.Flat) -> bytes:
  """A hash of all that embeddings depend on beside the tokens."""
  encoder = backbone.text_encoder
  names = [x.name for x in dataclasses.fields(encoder) if x.name not in ("parent", "name", "remat")]
  settings = {name: str(getattr(encoder, name)) for name in names}
  settings |= {"reads_padding": str(backbone.reads_padding), "version": str(_VERSION)}
  sums = jax.device_get(jax.jit(_checksums, out_shardings=sharding.whole())(params))
  weights = {path: [str(x.dtype), x.shape, int(sums[path])] for path, x in params.items()}
  return hashlib.sha256(json.dumps([settings, weights], sort_keys=True).encode()).digest()


def _checksums(params: state.Flat) -> dict[str, Array]:
  """A 32-bit number for the bits of each array: the same however it is cut over devices.

  Arithmetic modulo 2^32 does not depend on its order. It is no defence against somebody who wants
  two encoders to look the same; whoever can write the cache doesn't need to.
  """

  def checksum(x: Array) -> Array:
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
      place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    # Two rounds of multiplying and folding, so that neither order nor small changes cancel.
    mixed = (bits ^ (place * jnp.uint32(0x9E3779B9))) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)

  return {path: checksum(x) for path, x in params.items()}


def _write(path: pathlib.Path, embeddings: Float[np.ndarray, "n d"]) -> None:
  bits = np.ascontiguousarray(embeddings).view(f"u{embeddings.dtype.itemsize}")
  pieces = {"embeddings": bits, "sha256": _hash(bits)}
  specs = {
    "embeddings": tensors.Spec(_TYPES[embeddings.dtype.name], embeddings.shape),
    "sha256": tensors.Spec("U8", pieces["sha256"].shape),
  }
  with atomic.replacing(path) as temporary:
    tensors.write(temporary, specs, lambda name: [pieces[name]], {})


def _read(path: pathlib.Path, shape: tuple[int, int], dtype: Any) -> Float[np.ndarray, "n d"]:
  """What `_write` wrote; raises ValueError if anything about it is wrong."""
  try:
    file = tensors.TensorFile(path)
    wanted = {
      "embeddings": tensors.Spec(_TYPES[dtype.name], shape),
      "sha256": tensors.Spec("U8", (hashlib.sha256().digest_size,)),
    }
    if file.specs != wanted:
      raise ValueError(f"expected embeddings of shape {shape} in {dtype.name}")
    bits = file.read("embeddings")
    if not np.array_equal(file.read("sha256"), _hash(bits)):
      raise ValueError("its hash is another")
  except ValueError as error:
    raise ValueError(
      f"The text cache's entry {path} is damaged ({error}); remove this file, and its prompt is"
      " embedded anew."
    ) from error
  return bits.view(dtype)


def _hash(bits: np.ndarray) -> np.ndarray:
  return np.frombuffer(hashlib.sha256(bits.data).digest(), np.uint8)
