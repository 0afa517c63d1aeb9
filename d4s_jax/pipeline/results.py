"""What generation leaves on disk: a scene with its pictures, or a plain video."""

import datetime
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import d4s_jax
from d4s_jax.formats import atomic, parts, scene
from d4s_jax.formats.scene import SceneMetadata
from d4s_jax.pipeline import Pipeline, marking, preview
from d4s_jax.types import Cameras

RESULTS = ("scene", "video")
_DESCRIPTION = "video.json"


def kind(asked: str | None, reconstructs: bool) -> str:
  """What to make: what was asked for, or all that the checkpoint can.

  Args:
    asked: one of RESULTS, or None.
    reconstructs: whether the checkpoint makes scenes.

  Raises:
    ValueError: a scene is asked of a video model.
  """
  if asked == "scene" and not reconstructs:
    raise ValueError(
      "This checkpoint holds a video model alone, whose LDRM was not trained; expected"
      " --result=video, or a run of the joint stage."
    )
  return asked or ("scene" if reconstructs else "video")


def check_output(folder: pathlib.Path, kind: str) -> None:
  """Raises OSError for a place where the result can't be; call it before the long work."""
  if kind == "scene":
    scene.check_output(folder)
  else:
    atomic.check_new_folder(folder)


def metadata(
  config: Mapping[str, Any],
  name: str,
  digest: str,
  cameras: Cameras,
  times: Float[np.ndarray, "f"],
  prompt: str,
  seed: int,
) -> SceneMetadata:
  """Says what was made, and from what.

  Args:
    config: the checkpoint's, with the `sampling` that was used.
    name: of the checkpoint.
    digest: SHA-256 of the checkpoint's files.
    cameras: the path [f].
    times: clip time of each camera.
    prompt: the text.
    seed: of the noise.
  """
  return SceneMetadata(
    cameras=cameras,
    times=jnp.asarray(times),
    prompt=prompt,
    package_version=d4s_jax.__version__,
    seed=seed,
    checkpoint=name,
    config_hash=hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
    checkpoint_hash=digest,
    date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
  )


def _write_scene(
  folder: pathlib.Path,
  pipeline: Pipeline,
  latents: Float[Array, "f a b c"],
  photo: Float[np.ndarray, "h w 3"],
  metadata: SceneMetadata,
  fps: float,
  key: str | None,
) -> None:
  dynamic = marking.scene(pipeline.reconstruct(latents, metadata.cameras), key)
  with scene.replacing(folder, dynamic, metadata) as staged:
    preview.write_views(staged, photo, dynamic, metadata, fps, key)
  _tell("Scene", folder)


def _write_video(
  folder: pathlib.Path,
  pipeline: Pipeline,
  latents: Float[Array, "f a b c"],
  photo: Float[np.ndarray, "h w 3"],
  metadata: SceneMetadata,
  fps: float,
  key: str | None,
) -> None:
  video = pipeline.video(latents)
  with atomic.new_folder(folder) as staged:
    preview.write_clip(staged, photo, video, metadata, fps, key)
    description = scene.encode_metadata(metadata) | {"sampling": pipeline.sampling}
    parts.write_json(staged / _DESCRIPTION, description)
  _tell("Video", folder)


# (folder, pipeline, latents, photograph, metadata, frames a second, watermark's key) -> None
WRITE: dict[str, Callable[..., None]] = {"scene": _write_scene, "video": _write_video}


def _tell(what: str, folder: pathlib.Path) -> None:
  print(f"{what}: {folder}   Look at: {folder / 'preview.png'}, {folder / 'video.mp4'}")
