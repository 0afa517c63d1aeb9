"""The families of values: what is measured of each sample, and by which protocol."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from d4s_jax.evaluation import geometry, i3d, matching, structure_from_motion, xfeat
from d4s_jax.evaluation.camera_paths import path_error
from d4s_jax.evaluation.metric import (
  Case,
  Context,
  Failure,
  Family,
  Measured,
  Values,
  frames_in_chunks,
  guarded,
  one_by_one,
)
from d4s_jax.evaluation.settings import Settings
from d4s_jax.evaluation.tools import LPIPS_NET
from d4s_jax.geometry.trajectories import trajectory
from d4s_jax.losses import lpips
from d4s_jax.losses.similarity import ssim
from d4s_jax.types import Cameras

# What a network sees at once: so many pixels, 16 pictures of 256 x 256, and no more pictures than
# these, since it is compiled for each number of them.
_PIXELS, _PICTURES = 2**20, 16
# A path is closed if its ends are nearer than this, metres and in the entries of rotations.
_CLOSED = 1e-4
# Radians of a whole turn, but for what a file rounds.
_TURN = 2 * np.pi - 0.1


def _video_features(cases: Sequence[Case], context: Context) -> list[Values | Failure]:
  """Logits of videos, those of one shape together."""
  found: dict[int, Values | Failure] = {}
  groups: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
  for index, case in enumerate(cases):
    clip = guarded(lambda case=case: {"video": _first(case.sample.video, context.settings.frames)})
    if isinstance(clip, Failure):
      found[index] = clip
    else:
      groups.setdefault(clip["video"].shape, []).append((index, clip["video"]))
  for group in groups.values():
    features = i3d.features([video for _, video in group], context.settings.batch)
    for (index, _), row in zip(group, features):
      found[index] = {"features": row}
  return [found[index] for index in range(len(cases))]


def _first(video: np.ndarray, count: int) -> np.ndarray:
  if len(video) < max(count, i3d.LEAST_FRAMES):
    raise ValueError(
      f"{len(video)} frames; expected at least {count} (config.frames), and {i3d.LEAST_FRAMES} for"
      " this network"
    )
  return video[:count]


VIDEO = Family(
  "video",
  lambda settings: f"{i3d.PROTOCOL}/first-{settings.frames}-frames/in-batches-of-{settings.batch}",
  _video_features,
  needs=frozenset(("references",)),
  tools=("i3d",),
  of_references=True,
)


def image_scores(images: np.ndarray, truth: np.ndarray, weights) -> dict[str, np.ndarray]:
  """PSNR, SSIM and LPIPS [v] of pictures [v h w 3] in [0, 1].

  Raises:
    ValueError: the sizes differ, or are too small.
  """
  if images.shape != truth.shape:
    raise ValueError(
      f"pictures of {images.shape} and true ones of {truth.shape}; expected one size"
    )
  most = max(1, min(_PICTURES, _PIXELS // images[0, ..., 0].size))
  chunks = frames_in_chunks(len(images), most)
  rows = [_similar(images[rows], truth[rows], weights) for rows in chunks]
  similar, distance = (np.concatenate(x)[: len(images)] for x in zip(*rows))
  return {"psnr": psnr(images, truth), "ssim": similar, "lpips": distance}


def _means(scores: dict[str, np.ndarray]) -> dict[str, float]:
  return {name: float(np.mean(x)) for name, x in scores.items()}


def psnr(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
  """Of each picture [v h w 3] in [0, 1], dB, at most 100."""
  error = np.mean(np.square(images.astype(np.float64) - truth), axis=(1, 2, 3))
  return -10 * np.log10(np.maximum(error, 1e-10))


@jax.jit
def _similar(images, truth, weights):
  return ssim(images, truth), lpips.distance(images, truth, weights, net=LPIPS_NET)


@one_by_one
def _frames(case: Case, context: Context) -> Measured:
  assert case.reference is not None
  scores = image_scores(case.sample.video, case.reference.video, context.tools["lpips"])
  found = _means(scores)
  # Where the first frame is given, repeating it scores 100 dB there: much of a short video.
  if len(case.sample.video) > 1:
    later = _means({name: x[1:] for name, x in scores.items()})
    found |= {f"later_{name}": x for name, x in later.items()}
  return found


FRAMES = Family(
  "frames",
  lambda settings: (
    f"frame-by-frame/psnr-max-100dB/ssim-11-1.5/lpips-0.1-{LPIPS_NET}/mean-of-frames,-or-of-those-"
    "after-the-first"
  ),
  _frames,
  needs=frozenset(("reference",)),
  tools=("lpips",),
)


@one_by_one
def _views(case: Case, context: Context) -> Measured:
  target, dynamic = case.reference.clip.target, case.sample.read[0]  # pyright: ignore
  drawn = geometry.scene_views(dynamic, target.cameras, np.asarray(target.times))
  return _means(image_scores(drawn, np.asarray(target.images), context.tools["lpips"]))


_OTHERS = "views-and-times-of-the-reference-that-were-not-input"
VIEWS = Family(
  "views",
  lambda settings: (
    f"{_OTHERS}/over-black/psnr-max-100dB/ssim-11-1.5/lpips-0.1-{LPIPS_NET}/mean-of-views"
  ),
  _views,
  needs=frozenset(("scene", "clip")),
  tools=("lpips",),
)


@one_by_one
def _depth(case: Case, context: Context) -> Measured:
  del context
  target, dynamic = case.reference.clip.target, case.sample.read[0]  # pyright: ignore
  found = geometry.scene_depth(dynamic, target.cameras, np.asarray(target.times))
  return geometry.depth_scores(found, np.asarray(target.depth))


DEPTH = Family(
  "depth",
  lambda settings: f"{_OTHERS}/median-aligned-over-all/cap-80m/where-alpha>.5/delta-1.25",
  _depth,
  needs=frozenset(("scene", "clip")),
)


@one_by_one
def _motion(case: Case, context: Context) -> Measured:
  del context
  return geometry.motion_scores(case.sample.read[0], case.reference.clip)  # pyright: ignore


MOTION = Family(
  "motion",
  lambda settings: (
    f"drawn-3d-displacement-from-frame-0/true-tracks/moving>{geometry.MOVING}m/"
    f"still<{geometry.STILL}m"
  ),
  _motion,
  needs=frozenset(("scene", "clip")),
)


@one_by_one
def _cycle(case: Case, context: Context) -> Measured:
  """A scene is drawn at the ends of an orbit; a video whose path is closed is taken as it is."""
  del context
  sample = case.sample
  if "scene" not in sample.has:
    video = sample.video
    poses = np.asarray(sample.cameras(*video.shape[1:3]).world_from_camera)
    if np.abs(poses[-1] - poses[0]).max() > _CLOSED or len(poses) != len(video):
      raise ValueError("its path is not closed")
    yaw = np.unwrap(np.arctan2(poses[:, 0, 2], poses[:, 2, 2]))
    if abs(yaw[-1] - yaw[0]) < _TURN:
      raise ValueError("its path is no turn of 360 degrees")
    return {"running": min(geometry.cycle_psnr(video[0], video[-1]), 100.0)}
  dynamic, metadata = sample.read  # pyright: ignore
  ends = trajectory("orbit", 49)[[0, -1]]
  lens = np.asarray(metadata.cameras.intrinsics)[:1].repeat(2, axis=0)
  size = metadata.cameras.height, metadata.cameras.width
  cameras = Cameras(world_from_camera=ends, intrinsics=lens, height=size[0], width=size[1])  # pyright: ignore
  found = {}
  for name, times in {"running": (0.0, 1.0), "frozen": (0.0, 0.0)}.items():
    first, last = geometry.scene_views(dynamic, cameras, np.asarray(times, np.float32))
    found[name] = min(geometry.cycle_psnr(first, last), 100.0)
  return found


CYCLE = Family(
  "cycle",
  lambda settings: "first-and-last-of-a-closed-360-degree-orbit/mse-of-rgb/at-most-100dB",
  _cycle,
  needs=frozenset(("cameras",)),
)


@one_by_one
def _poses(case: Case, context: Context) -> Measured:
  video = case.sample.pictures(context.settings.pose_side)
  cameras = case.sample.cameras(*video.shape[1:3])
  truth = np.asarray(cameras.world_from_camera)
  if len(truth) != len(video):
    raise ValueError(f"{len(video)} frames and {len(truth)} cameras; expected one for each")
  found = structure_from_motion.find_path(video, cameras)
  if found is None:
    return {"found": 0.0}
  error = path_error(found, truth)
  return {
    "found": 1.0,
    "translation": error.relative_translation,
    "rotation": error.relative_rotation,
    "absolute": error.absolute,
  }


POSES = Family(
  "poses",
  lambda settings: (
    f"{structure_from_motion.PROTOCOL.replace(', ', '/').replace(' ', '-')}/"
    f"scenes-drawn-sharp-at-{settings.pose_side}-px/umeyama-sim3/evo-rpe-delta-1-frame/"
    "rms-translation/mean-rotation"
  ),
  _poses,
  needs=frozenset(("cameras",)),
  tools=("colmap",),
)


def _matches(name: str, protocol: str, tools: tuple[str, ...], of_tools) -> Family:
  @one_by_one
  def measure(case: Case, context: Context) -> Measured:
    video = case.sample.pictures(context.settings.pose_side)
    return {"matches": matching.average(video, context.settings.gap, *of_tools(context.tools))}

  def told(settings: Settings) -> str:
    chosen = settings.matcher if name == "matches_plug_in" else protocol
    return (
      f"{chosen}/frames-{settings.gap}-apart/fundamental-ransac-{matching.REACH:g}px/"
      f"scenes-drawn-sharp-at-{settings.pose_side}-px"
    )

  return Family(name, told, measure, tools=tools)


MATCHES_SIFT = _matches(
  *("matches_sift", matching.SIFT, ("colmap",)),
  lambda tools: (matching.sift_features, matching.sift_match),
)
MATCHES_XFEAT = _matches(
  *("matches_xfeat", xfeat.PROTOCOL, ("xfeat", "colmap")),
  lambda tools: (functools.partial(xfeat.detect, weights=tools["xfeat"]), xfeat.match),
)
MATCHES_PLUG_IN = _matches(
  *("matches_plug_in", "", ("matcher", "colmap")), lambda tools: (lambda x: x, tools["matcher"])
)


@one_by_one
def _facts(case: Case, context: Context) -> Measured:
  del context
  frames, height, width, _ = case.sample.video.shape
  return {"frames": frames, "height": height, "width": width, "fps": case.sample.fps or 0.0}


# No metric: what the report says about a set.
FACTS = Family("facts", lambda settings: "facts", _facts)
