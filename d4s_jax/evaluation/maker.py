"""Makes scenes of any kind with one checkpoint, and leaves each with what it cost."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from d4s_jax.evaluation import fit_curve, starts
from d4s_jax.evaluation.cost import Costs
from d4s_jax.formats import scene
from d4s_jax.formats.scene import SceneMetadata
from d4s_jax.pipeline import Pipeline, progress, results
from d4s_jax.training import fitting, inference
from d4s_jax.types import Cameras, Clip, DynamicGaussians, Views

# Metres to what is seen, round which random points lie.
_DEPTH = 3.0


@dataclasses.dataclass
class Maker:
  """Makes scenes with one checkpoint.

  What is compiled, which is not what a scene costs, is compiled by making the first scene of a kind
  twice.

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
    self._gaussians = self.trained.config["model"]["ldrm"]["gaussians"]
    backbone = self.trained.system.backbone
    self._encode, self._decode = jax.jit(backbone.encode), jax.jit(backbone.decode)
    self._autoencoder = {"autoencoder": self.params["autoencoder"]}
    self._digest = self.trained.digest(progress.timed)
    self._warm: set[str] = set()

  def generate(self, folder: pathlib.Path, image, cameras: Cameras, times, text: str) -> None:
    """A scene from a picture, a path and a caption."""

    def make(costs: Costs) -> DynamicGaussians:
      with costs.stage("video model"):
        latents = jax.block_until_ready(self.pipeline.sample(image, cameras, text, self.seed))
      return self._reconstruct(costs, latents, cameras)

    told = self._metadata(cameras, times, text, self.trained.name)
    self._make(folder, "generated", make, told)

  def reconstruct(self, folder: pathlib.Path, clip: Clip) -> None:
    """A scene from a true video, through the autoencoder."""

    def make(costs: Costs) -> DynamicGaussians:
      with costs.stage("encoder"):
        latents = jax.block_until_ready(self.encode(clip))
      return self._reconstruct(costs, latents, clip.source.cameras)

    self._make(folder, "reconstructed", make, self._of_clip(clip, self.trained.name))

  def fit(self, folder: pathlib.Path, clip: Clip, kind: str) -> None:
    """Gaussians, as many as the model's, fitted to a decoded video.

    Args:
      folder: of the scene, which gets its curve (`fit_curve`).
      clip: the video, or the picture, path and caption to generate it from, and the views that are
        looked at meanwhile.
      kind: a name in `_FITTED`: to which video, and where the Gaussians are at first.
    """
    stage, to_latents, begin = _FITTED[kind]
    told = self._of_clip(clip, f"{kind} of {stage}, {fit_curve.STEPS[-1]} steps")
    curve: list[fit_curve.Moment] = []

    def make(costs: Costs) -> DynamicGaussians:
      with costs.stage(stage):
        latents = to_latents(self, clip)
        decoded = np.clip(self._decode(self._autoencoder, latents[None])[0], 0, 1)
      views = fitting.video_views(decoded, told)
      with costs.stage("start"):
        start = jax.block_until_ready(begin(self, latents, views))
      moments = fit_curve.STEPS if kind in self._warm else (0, 1)
      fitted, curve[:] = fit_curve.optimise(start, views, clip.target, costs, self.seed, moments)
      return fitted

    self._make(folder, kind, make, told, lambda staged: fit_curve.write(staged, curve))

  def from_random(self, views: Views) -> DynamicGaussians:
    """Points of any depth and colour."""
    return starts.of_random(views, self._gaussians, _DEPTH, self.seed)

  def from_points(self, views: Views) -> DynamicGaussians:
    """Points of SIFT matches at the true cameras."""
    return starts.of_sift(views, self._gaussians)[0]

  def _generated(self, clip: Clip):
    image, cameras = np.asarray(clip.source.images[0]), clip.source.cameras
    return self.pipeline.sample(image, cameras, str(clip.text), self.seed)

  def encode(self, clip: Clip) -> Float[Array, "f h w c"]:
    """Normalised latents of the true video."""
    return self._encode(self._autoencoder, np.asarray(clip.source.images)[None])[0]

  def _reconstruct(self, costs: Costs, latents, cameras: Cameras) -> DynamicGaussians:
    with costs.stage("reconstruction"):
      return jax.block_until_ready(self.pipeline.reconstruct(latents, cameras))

  def _of_clip(self, clip: Clip, name: str) -> SceneMetadata:
    return self._metadata(clip.source.cameras, clip.source.times, str(clip.text), name)

  def _metadata(self, cameras: Cameras, times, text: str, name: str) -> SceneMetadata:
    config = self.trained.config | {"sampling": self.pipeline.sampling}
    told = (cameras, np.asarray(times), text, self.seed)
    return results.metadata(config, name, self._digest, *told)

  def _make(
    self,
    folder: pathlib.Path,
    kind: str,
    make: Callable[[Costs], DynamicGaussians],
    metadata: SceneMetadata,
    leave: Callable[[pathlib.Path], None] = lambda staged: None,
  ) -> None:
    if _is_there(folder, metadata):
      return
    if kind not in self._warm:
      make(Costs())
      self._warm.add(kind)
    costs = Costs()
    dynamic = make(costs)
    with scene.replacing(folder, dynamic, metadata) as staged:
      costs.write(staged)
      leave(staged)


def _random(maker: Maker, latents: Any, views: Views) -> DynamicGaussians:
  del latents
  return maker.from_random(views)


def _points(maker: Maker, latents: Any, views: Views) -> DynamicGaussians:
  del latents
  return maker.from_points(views)


def _predicted(maker: Maker, latents: Any, views: Views) -> DynamicGaussians:
  return maker.pipeline.reconstruct(latents, views.cameras)


_Latents = Callable[[Maker, Clip], Any]
_Start = Callable[[Maker, Any, Views], DynamicGaussians]
# What is fitted to each clip: the stage that makes what the fit sees, how, and where it begins.
_FITTED: dict[str, tuple[str, _Latents, _Start]] = {
  # To the video that is generated from the first frame, the true path and the caption.
  "two_stage": ("video model", Maker._generated, _random),
  # To the true video through the autoencoder: from random points, from points of SIFT, from what
  # the model reconstructs.
  "from_random": ("encoder", Maker.encode, _random),
  "from_points": ("encoder", Maker.encode, _points),
  "refined": ("encoder", Maker.encode, _predicted),
}

# What is made of an embedded clip.
KINDS: dict[str, Callable[[Maker, pathlib.Path, Clip], None]] = {
  # From the first frame, the true path and the caption.
  "generated": lambda maker, folder, clip: maker.generate(
    *(folder, np.asarray(clip.source.images[0]), clip.source.cameras, clip.source.times),
    str(clip.text),
  ),
  # From the true video.
  "reconstructed": lambda maker, folder, clip: maker.reconstruct(folder, clip),
  **{kind: functools.partial(Maker.fit, kind=kind) for kind in _FITTED},
}


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
