"""What is served of a checkpoint: its models stay in memory, compiled."""

import pathlib
import tempfile
import time
import zipfile
from typing import Any

import numpy as np

from d4s_jax.formats import images, scene
from d4s_jax.geometry import trajectories
from d4s_jax.pipeline import Pipeline, exports, orders, progress, results
from d4s_jax.serving import app
from d4s_jax.training import inference

# Of a photograph: 12 bytes each while it is decoded.
_MOST_PIXELS = 24_000_000
_SCENE = (scene.ARRAYS, scene.DESCRIPTION)
_ARCHIVE = "scene.zip"
# Points of a named path, as the page draws it.
_SHOWN = 49


def offer(trained: inference.Trained, key: str | None, **limits: Any) -> app.Offer:
  """Reads all parts of a checkpoint, makes one picture's scene, and offers to go on.

  Args:
    trained: the checkpoint.
    key: of the watermark; None for none.
    limits: fields of `Offer`.
  """
  settings, note = inference.sampling(trained.config, {})
  progress.say(note) if note else None
  pipeline = Pipeline(trained.system, dict(trained.parts), **settings)
  kind = results.kind(None, trained.reconstructs)
  about = (trained.config, trained.name, trained.digest(progress.timed), trained.fps)
  workshop = orders.Workshop(pipeline, kind, *about, key)
  clip = trained.config["clip"]
  size = clip["frames"], clip["height"], clip["width"]

  def take(
    image: pathlib.Path, trajectory: str, prompt: str, seed: int, fov: float | None
  ) -> orders.Order:
    order = orders.take(*(image, trajectory, prompt, seed, size, fov), most_pixels=_MOST_PIXELS)
    pipeline.check(prompt)
    return order

  def make(order: orders.Order, folder: pathlib.Path) -> None:
    made = folder / "made"
    workshop.make(order, made)
    if kind == "scene":
      page = exports.Export(made / app.VIEWER, watermark=key is not None)
      page.write(*scene.read_scene(made))
      with zipfile.ZipFile(made / _ARCHIVE, "w") as archive:
        for name in _SCENE:
          archive.write(made / name, f"scene/{name}")
    for path in list(made.iterdir()):
      path.rename(folder / path.name)
    made.rmdir()

  _warm(take, make, size)
  return app.Offer(
    take=take,
    make=make,
    about={
      **{"model": trained.name, "makes": kind, "frames": size[0], "height": size[1]},
      **{"width": size[2], "steps": settings["steps"], "most_pixels": _MOST_PIXELS},
    },
    trajectories={
      name: trajectories.trajectory(name, _SHOWN)[:, :3, 3].tolist()
      for name in trajectories.TRAJECTORIES
    },
    **limits,
  )


def _warm(take: Any, make: Any, size: tuple[int, int, int]) -> None:
  """Makes a scene of a grey picture: everything is compiled before the first person comes."""
  start = time.perf_counter()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    (folder / "result").mkdir()
    images.write_image(folder / "grey.png", np.full((*size[1:], 3), 0.5, np.float32))
    make(take(folder / "grey.png", "spiral", "", 0, None), folder / "result")
  progress.say(f"Warm after {time.perf_counter() - start:.1f} s.")
