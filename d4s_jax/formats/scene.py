"""A scene on disk: a folder of `scene.safetensors` (the arrays) and `scene.json` (the rest)."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from d4s_jax.formats import atomic, checked
from d4s_jax.formats import cameras as camera_files
from d4s_jax.geometry import EitherArray, harmonics
from d4s_jax.types import Cameras, DynamicGaussians

VERSION = 1
ARRAYS = "scene.safetensors"
DESCRIPTION = "scene.json"

_PROVENANCE = ("package_version", "seed", "checkpoint", "config_hash")
# Scenes of older versions lack them.
_LATER = ("checkpoint_hash", "date")

# What belongs to a scene and goes when another takes its place; other files in the folder stay.
_OWN = (ARRAYS, DESCRIPTION, "video.mp4", "depth.mp4", "preview.png")

_MAX_JSON = 32 * 2**20
_MAX_TEXT = 20_000

# Shape of each array; the letters must agree among them.
_SHAPES = {
  "means": ("n", 3),
  "quaternions": ("n", 4),
  "raw_scales": ("n", 3),
  "footprints": ("n",),
  "opacities": ("n",),
  "harmonics": ("n", "k", 3),
  "times": ("t",),
  "deformation": ("t", "n", 10),
}
ARRAY_NAMES = tuple(_SHAPES)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SceneMetadata:
  """What a scene is and where it comes from.

  Attributes:
    cameras: the cameras [f] the scene was made for; the first is the world origin.
    times: the clip time of each camera, in [0, 1].
    prompt: the text it was made from.
    package_version: of the d4s_jax that made it.
    scale: metres per unit of the scene's lengths; 1 as far as the model knows.
    seed: of the sampler; None if nothing was sampled.
    checkpoint: name of the weights.
    config_hash: of the configuration the weights were trained with.
    checkpoint_hash: of the files that hold the weights, SHA-256.
    date: when it was made, UTC, as 2026-01-31T12:00:00+00:00.
  """

  cameras: Cameras
  times: Float[EitherArray, "f"]
  prompt: str
  package_version: str
  scale: float = 1.0
  seed: int | None = None
  checkpoint: str | None = None
  config_hash: str | None = None
  checkpoint_hash: str | None = None
  date: str | None = None


def check_output(folder: str | os.PathLike) -> None:
  """Refuses a place that `write_scene` would refuse; call it before the long work.

  Raises:
    FileExistsError: it is a file, or a folder with contents that are no scene.
    NotADirectoryError: it lies below a file.
  """
  folder = pathlib.Path(folder)
  atomic.check_place(folder)
  if folder.is_dir():
    fine = (folder / DESCRIPTION).is_file() or not any(folder.iterdir())
  else:
    fine = not folder.exists()
  if not fine:
    raise FileExistsError(
      f"{folder} exists and is not a scene; expected a new name, an empty folder or a scene to "
      "replace."
    )


def check_export(folder: str | os.PathLike, output: str | os.PathLike) -> None:
  """Raises ValueError if a file that is to be written is one that the scene itself needs."""
  folder, output = pathlib.Path(folder), pathlib.Path(output)
  inside = output.name in (ARRAYS, DESCRIPTION) and output.resolve().parent == folder.resolve()
  if inside or output.resolve() == folder.resolve() and folder.is_file():
    raise ValueError(f"{output} is part of the scene; expected another place to write to.")


def write_scene(
  folder: str | os.PathLike, dynamic: DynamicGaussians, metadata: SceneMetadata
) -> None:
  """Writes a scene folder, whole or not at all; see `replacing`."""
  with replacing(folder, dynamic, metadata):
    pass


@contextlib.contextmanager
def replacing(
  folder: str | os.PathLike, dynamic: DynamicGaussians, metadata: SceneMetadata
) -> Iterator[pathlib.Path]:
  """Yields a folder that holds the scene and takes the place of `folder` when the block succeeds.

  The block adds what belongs beside the scene: video, depth, preview. The folder lies beside its
  place and is then renamed. A scene that was there is replaced with its video and preview, foreign
  files in the folder are kept, and any failure leaves the old scene.

  Raises:
    FileExistsError: the place holds something that is not a scene.
    ValueError: the scene is batched, misshapen or not finite, or a metadata field is out of range.
  """
  folder = pathlib.Path(folder).resolve()
  check_output(folder)
  arrays = {name: np.asarray(getattr(dynamic, name), np.float32) for name in _SHAPES}
  _check_shapes({name: array.shape for name, array in arrays.items()}, str(folder))
  _check_values(arrays, str(folder))
  description = encode_metadata(metadata)
  _decode(description, DESCRIPTION)
  folder.parent.mkdir(parents=True, exist_ok=True)
  staged = atomic.sibling(folder)
  try:
    staged.mkdir()
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # Not `save_file`: its errors are no OSError, and only the owner could read the file.
    (staged / ARRAYS).write_bytes(save(contiguous))
    (staged / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")
    yield staged
    for entry in staged.iterdir():
      atomic.flush(entry)
    _exchange(staged, folder)
  finally:
    shutil.rmtree(staged, ignore_errors=True)


def read_scene(place: str | os.PathLike) -> tuple[DynamicGaussians, SceneMetadata]:
  """Reads a scene folder, or the one file that `scene_file.write` makes; the arrays are JAX's.

  Raises:
    FileNotFoundError: there is no scene.
    ValueError: it is damaged, hostile, or from a newer version; for the arrays, everything that is
      missing or misshapen is listed at once.
  """
  place = pathlib.Path(place)
  if place.suffix == pathlib.Path(ARRAYS).suffix and place.is_file():
    path, where, contents = place, place.name, _description(place)
  else:
    path, where = place / ARRAYS, DESCRIPTION
    contents = checked.read_bytes(place / DESCRIPTION, _MAX_JSON, "scene")
  metadata = _decode(checked.parse(contents, where), where)
  arrays = _read_arrays(path)
  _check_values(arrays, path.name)
  return DynamicGaussians(**{name: jnp.asarray(array) for name, array in arrays.items()}), metadata


def _exchange(staged: pathlib.Path, folder: pathlib.Path) -> None:
  """Renames `staged` to `folder`; an old scene there steps aside first, and back on failure."""
  if not folder.exists():
    staged.rename(folder)
    return
  old = atomic.sibling(folder)
  folder.rename(old)
  try:
    staged.rename(folder)
  except BaseException:
    old.rename(folder)
    raise
  for entry in old.iterdir():
    if entry.name not in _OWN:
      entry.rename(folder / entry.name)
  shutil.rmtree(old)


def _description(path: pathlib.Path) -> bytes:
  """The scene.json in the metadata of a file."""
  with _opened(path) as file:
    found = (file.metadata() or {}).get("scene")
  if found is None:
    raise ValueError(
      f"{path} says nothing of its scene; expected the folder that generate wrote, or what export"
      " made of it."
    )
  if len(found) > _MAX_JSON:
    raise ValueError(
      f"{path} describes its scene in {len(found)} characters; expected at most {_MAX_JSON}."
    )
  return found.encode()


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
  """A safetensors file, with what is wrong with it as a ValueError."""
  try:
    # The library bounds the header and every offset in it against the size of the file.
    with safe_open(path, framework="numpy") as file:
      yield file
  except SafetensorError as error:
    raise ValueError(
      f"{path} is truncated or no safetensors file ({error}); restore it from a copy, or make the "
      "scene anew."
    ) from error


def _read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Loads the arrays after the header has shown that all of them are there and fit together."""
  if not path.is_file():
    raise FileNotFoundError(f"No {ARRAYS} in {path.parent}; the scene is incomplete, make it anew.")
  with _opened(path) as file:
    slices = {name: file.get_slice(name) for name in file.keys()}
    kinds = {name: part.get_dtype() for name, part in slices.items()}
    wrong = [f"{name} has type {kind}, not F32" for name, kind in kinds.items() if kind != "F32"]
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    _check_shapes(shapes, str(path), wrong)
    return {name: file.get_tensor(name) for name in _SHAPES}


def _check_shapes(shapes: dict[str, tuple[int, ...]], where: str, wrong: list[str] | None = None):
  """Lists every missing, unknown and misshapen array."""
  problems = [f"{name} is missing" for name in _SHAPES if name not in shapes]
  problems += [f"{name!r:.60} is unknown" for name in shapes if name not in _SHAPES]
  problems += wrong or []
  sizes: dict[str | int, int] = {}
  for name, expected in _SHAPES.items():
    shape = shapes.get(name)
    if shape is None:
      continue
    fits = len(shape) == len(expected) and all(
      size == (letter if isinstance(letter, int) else sizes.setdefault(letter, size))
      for size, letter in zip(shape, expected)
    )
    if not fits:
      wanted = ", ".join(f"{x}={sizes[x]}" if x in sizes else str(x) for x in expected)
      problems.append(f"{name} has shape {list(shape)}, not [{wanted}]")
  if not problems and sizes["k"] not in harmonics.DEGREES:
    problems.append(f"harmonics has {sizes['k']} coefficients, not {list(harmonics.DEGREES)}")
  if not problems and 0 in (sizes["n"], sizes["t"]):
    problems.append("the scene has no Gaussians or no times")
  if problems:
    raise ValueError(f"{where}: {'; '.join(problems[:20])}.")


def _check_values(arrays: dict[str, np.ndarray], where: str) -> None:
  problems = [
    f"{name} holds NaN or infinite values"
    for name, array in arrays.items()
    if not np.isfinite(array).all()
  ]
  if not problems:
    opacities, times = arrays["opacities"], arrays["times"]
    if opacities.min() < 0 or opacities.max() > 1:
      problems.append("opacities are outside [0, 1]")
    if arrays["footprints"].min() < 0:
      problems.append("footprints are negative")
    if (np.diff(times) <= 0).any() or times[0] < 0 or times[-1] > 1:
      problems.append("times do not rise within [0, 1]")
  if problems:
    raise ValueError(f"{where}: {'; '.join(problems)}.")


def encode_metadata(metadata: SceneMetadata) -> dict[str, Any]:
  """The contents of scene.json."""
  return {
    "version": VERSION,
    "prompt": metadata.prompt,
    "scale": float(metadata.scale),
    "trajectory": camera_files.encode(metadata.cameras, metadata.times),
    "provenance": {name: getattr(metadata, name) for name in _PROVENANCE + _LATER},
  }


def _decode(value: Any, where: str) -> SceneMetadata:
  if isinstance(value, dict) and "version" in value:
    # First, since a newer version may have any other fields.
    camera_files.check_version(value["version"], VERSION, where)
  top = checked.fields(value, where, ("version", "prompt", "scale", "trajectory", "provenance"))
  frames = camera_files.decode(top["trajectory"], f"{where}: trajectory")
  if frames.times is None or frames.intrinsics is None:
    raise ValueError(f"{where}: trajectory without time or intrinsics; expected both per frame.")
  lenses = frames.intrinsics / np.array([[frames.width], [frames.height], [1.0]])
  camera_files.check_proportion(frames.world_from_camera, lenses, f"{where}: trajectory")
  if frames.times.min() < 0 or frames.times.max() > 1:
    raise ValueError(f"{where}: trajectory with times outside [0, 1]; time runs so over the clip.")
  origin = checked.fields(top["provenance"], f"{where}: provenance", _PROVENANCE, _LATER)

  def text_or_none(name: str) -> str | None:
    value = origin.get(name)
    return None if value is None else checked.text(value, f"{where}: {name}", _MAX_TEXT)

  seed = origin["seed"]
  return SceneMetadata(
    cameras=Cameras(
      world_from_camera=jnp.asarray(frames.world_from_camera, jnp.float32),
      intrinsics=jnp.asarray(frames.intrinsics, jnp.float32),
      height=frames.height,
      width=frames.width,
    ),
    times=jnp.asarray(frames.times, jnp.float32),
    prompt=checked.text(top["prompt"], f"{where}: prompt", _MAX_TEXT),
    scale=checked.number(top["scale"], f"{where}: scale", 1e-9, 1e9),
    package_version=checked.text(origin["package_version"], f"{where}: package_version", 100),
    seed=None if seed is None else checked.integer(seed, f"{where}: seed", 0, 2**63 - 1),
    checkpoint=text_or_none("checkpoint"),
    config_hash=text_or_none("config_hash"),
    checkpoint_hash=text_or_none("checkpoint_hash"),
    date=text_or_none("date"),
  )
