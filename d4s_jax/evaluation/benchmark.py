"""Sets of scenes to score: the paper's design from photographs, and held-out embedded scenes.

The paper's is 32 captioned scenes x 5 paths = 160 samples. Its photographs are not public; any
folder of photographs with a NAME.txt beside each makes a set of that design. What is there already
is not made again.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from d4s_jax.data.source import open_source
from d4s_jax.evaluation import starts
from d4s_jax.evaluation.cost import Costs
from d4s_jax.evaluation.samples import SOURCE
from d4s_jax.formats import images, scene
from d4s_jax.formats.scene import SceneMetadata
from d4s_jax.pipeline import Pipeline, progress, results, shot
from d4s_jax.training import fitting, inference
from d4s_jax.types import Cameras

PATHS = ("spiral", "forward", "backward", "up", "down")
# Of embedded scenes, see `embedded`.
KINDS = ("generated", "reconstructed", "two_stage")
# Steps of the optimisation of the two-stage baseline.
_STEPS = 500
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp")
_MOST_CAPTION = 10_000
# Metres to what is seen, round which the two-stage baseline's random points lie.
_DEPTH = 3.0


@dataclasses.dataclass
class Maker:
  """Makes scenes with one checkpoint and leaves each with what it cost.

  Attributes:
    trained: the checkpoint.
    seed: of the noise.
    sampling: settings other than the checkpoint's.
  """

  trained: inference.Trained
  seed: int = 0
  sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if not self.trained.reconstructs:
      raise ValueError(
        f"{self.trained.name} makes videos, no scenes; expected a run of the joint stage."
      )
    self.params = dict(self.trained.parts)
    settings, _ = inference.sampling(self.trained.config, self.sampling)
    self.pipeline = Pipeline(self.trained.system, self.params, **settings)
    self.frames, self.height, self.width = (
      self.trained.config["clip"][name] for name in ("frames", "height", "width")
    )
    backbone = self.trained.system.backbone
    self._encode = jax.jit(backbone.encode)
    self._decode = jax.jit(backbone.decode)
    self._digest = self.trained.digest(progress.timed)
    self._warm: set[str] = set()

  def generate(self, folder: pathlib.Path, image, cameras: Cameras, times, text: str) -> None:
    """A scene from a picture, a path and a caption."""

    def sample():
      return self.pipeline.sample(image, cameras, text, self.seed)

    self._make(folder, "video model", sample, cameras, times, text)

  def reconstruct(self, folder: pathlib.Path, video, cameras: Cameras, times, text: str) -> None:
    """A scene from a true video, through the autoencoder."""
    parts = {"autoencoder": self.params["autoencoder"]}

    def latents():
      return self._encode(parts, video[None])[0]

    self._make(folder, "encoder", latents, cameras, times, text)

  def two_stage(self, folder: pathlib.Path, video, cameras: Cameras, times, text: str) -> None:
    """As many Gaussians as the model's, from random points, fitted to the decoded video."""
    metadata = self._metadata(cameras, times, text, f"two stages, {_STEPS} steps")
    if _is_there(folder, metadata):
      return
    parts = {"autoencoder": self.params["autoencoder"]}
    costs = Costs()
    with costs.stage("encoder"):
      decoded = np.clip(self._decode(parts, self._encode(parts, video[None]))[0], 0, 1)
    views = fitting.video_views(decoded, metadata)
    count = self.trained.config["model"]["ldrm"]["gaussians"]
    start = starts.of_random(views, count, _DEPTH, self.seed)
    with costs.stage("optimisation"):
      fitted = fitting.fit(start, views, _STEPS, self.seed)
    with scene.replacing(folder, fitted, metadata) as staged:
      costs.write(staged)

  def _metadata(self, cameras: Cameras, times, text: str, name: str) -> SceneMetadata:
    config = self.trained.config | {"sampling": self.pipeline.sampling}
    told = (cameras, np.asarray(times), text, self.seed)
    return results.metadata(config, name, self._digest, *told)

  def _make(
    self, folder: pathlib.Path, first: str, latents: Callable, cameras: Cameras, times, text: str
  ) -> None:
    metadata = self._metadata(cameras, times, text, self.trained.name)
    if _is_there(folder, metadata):
      return
    if first not in self._warm:
      # Compiles, which is not what a scene costs.
      self.pipeline.reconstruct(latents(), cameras)
      self._warm.add(first)
    costs = Costs()
    with costs.stage(first):
      found = jax.block_until_ready(latents())
    with costs.stage("reconstruction"):
      dynamic = self.pipeline.reconstruct(found, cameras)
    with scene.replacing(folder, dynamic, metadata) as staged:
      costs.write(staged)


def _is_there(folder: pathlib.Path, wanted: SceneMetadata) -> bool:
  """Whether a scene was made before; raises ValueError if it was made of something else."""
  if not (folder / scene.DESCRIPTION).is_file():
    return False
  _, found = scene.read_scene(folder)
  names = ("prompt", "seed", "checkpoint", "config_hash", "checkpoint_hash")
  for name in names:
    old, new = getattr(found, name), getattr(wanted, name)
    if old != new:
      raise ValueError(
        f"{folder} is of {name} {old!r:.80}, not {new!r:.80}; give another folder, or remove it."
      )
  return True


def photographs(folder: pathlib.Path) -> dict[str, tuple[pathlib.Path, str]]:
  """The photographs of a folder and their captions, by name.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: there are none, or some have no caption.
  """
  if not folder.is_dir():
    raise FileNotFoundError(f"No folder {folder}; expected photographs with captions.")
  found = {x.stem: x for x in sorted(folder.iterdir()) if x.suffix.lower() in _SUFFIXES}
  if not found:
    raise ValueError(f"{folder} has no photographs ({', '.join(_SUFFIXES)}).")
  without = [name for name, path in found.items() if not path.with_suffix(".txt").is_file()]
  if without:
    raise ValueError(
      f"{len(without)} of {len(found)} photographs have no caption ({', '.join(without[:5])});"
      " expected NAME.txt beside each."
    )
  captions = {name: path.with_suffix(".txt").read_text("utf-8") for name, path in found.items()}
  long = [name for name, text in captions.items() if not 0 < len(text.strip()) <= _MOST_CAPTION]
  if long:
    raise ValueError(f"Captions of {long[:5]} are empty or longer than {_MOST_CAPTION} characters.")
  return {name: (path, captions[name].strip()) for name, path in found.items()}


def of_photographs(folder: pathlib.Path, output: pathlib.Path, maker: Maker) -> int:
  """The paper's design: every photograph along its five paths, in `output`/generated.

  Returns:
    How many scenes the set has.
  """
  found = photographs(folder)
  jobs = [(name, path) for name in found for path in PATHS]
  with _quietly(output) as bar, bar("make scenes", len(jobs)) as counter:
    for name, path in jobs:
      picture = images.read_image(found[name][0])
      steps = shot.camera_path(path, maker.frames)
      image, cameras = shot.photograph(picture, steps, maker.height, maker.width)
      place = output / "generated" / f"{name}-{path}"
      maker.generate(place, image, cameras, steps.times, found[name][1])
      counter.update(1)
  return len(jobs)


def embedded(
  output: pathlib.Path, maker: Maker, count: int, kinds: Sequence[str] = KINDS[:2]
) -> int:
  """Held-out embedded scenes in which something moves, with their truth.

  In `output`: `generated` from the first frame, the true path and the caption; `reconstructed` from
  the true video; `two_stage`, fitted to the true video through the autoencoder; `still`, the first
  frame again and again, which every method has to beat; `true`, which names the clips.

  Args:
    output: folder.
    maker: makes the scenes.
    count: clips.
    kinds: which of KINDS to make.

  Returns:
    The number of clips.
  """
  if count < 1:
    raise ValueError(f"{count} embedded scenes; expected at least 1.")
  size = {"frames": maker.frames, "height": maker.height, "width": maker.width}
  options = {"split": "heldout", "kind": "dynamic", "views": 8, **size}
  source = open_source("synthetic", **options)
  names = [f"clip{number:03d}" for number in range(count)]
  for name in ("true", "still"):
    (output / name).mkdir(parents=True, exist_ok=True)
  clips = {name: number for number, name in enumerate(names)}
  described = {"source": "synthetic", "options": options, "clips": clips}
  (output / "true" / SOURCE).write_text(json.dumps(described, indent=1) + "\n")
  with _quietly(output) as bar, bar("make scenes", len(kinds) * count) as counter:
    for number, name in enumerate(names):
      clip = source.read(number)
      video = np.asarray(clip.source.images)
      first = images.to_bytes(video[:1])
      np.save(output / "still" / f"{name}.npy", np.repeat(first, len(video), axis=0))
      told = clip.source.cameras, clip.source.times, clip.text
      for kind in kinds:
        make = {
          "generated": functools.partial(maker.generate, image=video[0]),
          "reconstructed": functools.partial(maker.reconstruct, video=video),
          "two_stage": functools.partial(maker.two_stage, video=video),
        }[kind]
        make(output / kind / name, cameras=told[0], times=told[1], text=told[2])
        counter.update(1)
  return count


@contextlib.contextmanager
def _quietly(output: pathlib.Path):
  """What the pipeline says goes to a file; yields what makes a progress bar on the screen."""
  output.mkdir(parents=True, exist_ok=True)
  screen = sys.stderr

  def bar(what: str, total: int):
    with contextlib.redirect_stderr(screen):
      return progress.bar(what, total, "scene")

  with (output / "log.txt").open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
    yield bar
