"""What pictures say to CLIP: agreement with a text, and how LAION's readers like them."""

import functools
import importlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from d4s_jax.evaluation.metric import frames_in_chunks
from d4s_jax.formats.tensors import TensorFile
from d4s_jax.weights.encoders import CLIP, Encoder

# Pictures that a network sees at once.
CHUNK = 8
# Layers of LAION's improved predictor; between them are dropout and nothing else.
_AESTHETIC = (0, 2, 4, 6, 7)


def embed(encoder: Encoder, video: Float[np.ndarray, "f h w 3"]) -> Float[np.ndarray, "f e"]:
  """Embeddings of the frames by CLIP's or DINO's image encoder."""
  chunks = frames_in_chunks(len(video), CHUNK)
  found = [np.asarray(_see(encoder.module, encoder.params, video[rows])) for rows in chunks]
  return np.concatenate(found)[: len(video)]


@functools.partial(jax.jit, static_argnums=0)
def _see(module: Any, params: Any, images: Float[Array, "b h w 3"]) -> Float[Array, "b e"]:
  found = module.apply({"params": params}, images)
  return found[1] if isinstance(found, tuple) else found


def embed_text(clip: CLIP, text: str) -> Float[np.ndarray, "e"]:
  """The embedding of a text, of which the first 77 tokens are read.

  Raises:
    ValueError: the folder has no tokenizer, or its library is not installed.
  """
  tokens = jnp.asarray(tokenize(clip, text))[None]
  return np.asarray(_read(clip.text.module, clip.text.params, tokens))[0]


@functools.partial(jax.jit, static_argnums=0)
def _read(module: Any, params: Any, tokens: Int[Array, "b l"]) -> Float[Array, "b e"]:
  return module.apply({"params": params}, tokens)


def tokenize(clip: CLIP, text: str) -> Int[np.ndarray, "l"]:
  """Token ids, the end mark repeated up to the length of the model."""
  if clip.tokenizer is None:
    raise ValueError("the CLIP folder has no tokenizer.json")
  ids = _tokenizer(clip.tokenizer).encode(text).ids
  end = ids[-1]
  kept = [*ids[: clip.length - 1], end] if len(ids) > clip.length else ids
  return np.array([*kept, *[end] * (clip.length - len(kept))], np.int32)


@functools.cache
def _tokenizer(contents: bytes) -> Any:
  try:
    library = importlib.import_module("tokenizers")
  except ImportError as error:
    raise ValueError(
      "CLIP-Score needs the package tokenizers: pip install -e '.[evaluation]'"
    ) from error
  try:
    tokenizer = library.Tokenizer.from_buffer(contents)
  except Exception as error:
    raise ValueError(f"tokenizer.json can't be read ({error})") from error
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer


def clip_score(clip: CLIP, video: Float[np.ndarray, "f h w 3"], text: str) -> float:
  """Mean over frames of max(100 cos(image, text), 0), as in torchmetrics."""
  image, words = _unit(embed(clip.vision, video)), _unit(embed_text(clip, text))
  return float(np.mean(np.maximum(100 * image @ words, 0)))


def read_aesthetic(path: pathlib.Path) -> tuple[Float[np.ndarray, "e"], float]:
  """LAION's improved predictor as the affine map that its layers are together.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it holds other tensors.
  """
  file = TensorFile(pathlib.Path(path))
  names = {f"layers.{i}.{kind}" for i in _AESTHETIC for kind in ("weight", "bias")}
  kinds = {spec.dtype for spec in file.specs.values()}
  if set(file.specs) != names or kinds != {"F32"}:
    raise ValueError(
      f"{path} is no improved aesthetic predictor; expected float32 tensors {sorted(names)}, as"
      " sac+logos+ava1-l14-linearMSE.pth has them."
    )
  matrix, bias = np.eye(file.specs["layers.0.weight"].shape[1]), 0.0
  for i in _AESTHETIC:
    weight, shift = (
      file.read(f"layers.{i}.{kind}").view(np.float32).astype(np.float64)
      for kind in ("weight", "bias")
    )
    if weight.ndim != 2 or weight.shape[1] != matrix.shape[0] or shift.shape != weight.shape[:1]:
      raise ValueError(f"{path}: layers.{i} has shape {weight.shape}, after {matrix.shape[0]}.")
    matrix, bias = weight @ matrix, weight @ np.broadcast_to(bias, weight.shape[1]) + shift
  if matrix.shape[0] != 1:
    raise ValueError(f"{path} ends with {matrix.shape[0]} numbers; expected 1.")
  return matrix[0], float(np.asarray(bias)[0])


def aesthetic(
  clip: CLIP, head: tuple[Float[np.ndarray, "e"], float], video: Float[np.ndarray, "f h w 3"]
) -> float:
  """Mean over frames of the score of their unit embeddings, about 1 to 10.

  Raises:
    ValueError: the head belongs to another CLIP.
  """
  image = _unit(embed(clip.vision, video)).astype(np.float64)
  if image.shape[1] != len(head[0]):
    raise ValueError(
      f"the aesthetic head takes {len(head[0])} numbers and CLIP gives {image.shape[1]}; expected"
      " those of ViT-L/14"
    )
  return float(np.mean(image @ head[0] + head[1]))


def _unit(x: np.ndarray) -> np.ndarray:
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def consistency(features: Float[np.ndarray, "f e"]) -> float:
  """VBench's consistency of frames, by their features, times 100.

  1/(f-1) sum over t >= 2 of [max(0, cos(f_{t-1}, f_t)) + max(0, cos(f_1, f_t))] / 2.

  Raises:
    ValueError: there is one frame.
  """
  if len(features) < 2:
    raise ValueError(f"A video of {len(features)} frame; consistency needs at least 2.")
  unit = _unit(features.astype(np.float64))
  before = np.maximum(np.sum(unit[:-1] * unit[1:], axis=1), 0)
  first = np.maximum(unit[1:] @ unit[0], 0)
  return float(100 * np.mean((before + first) / 2))
