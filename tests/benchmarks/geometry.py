r"""How near meshes come to the surfaces of embedded scenes, whose depth is exact.

  python tests/benchmarks/geometry.py

Static held-out scenes, from 0 on. The truth is the exact depth of the views that `export` fuses, 6
to 15 of the source's path and beside it, at 256 x 256 pixels, as points with normals (from their
neighbours in the picture).
Three meshes: `fusion` of the exact depth of the same views (what the method loses), `splats`:
Gaussians on the pixels of the exact depth of source frames, drawn and fused as `export` does it
(what drawing loses), and `shipped`: what the shipped weights make of the source video. Chamfer
distance is the mean over both directions, in centimetres; the normal error is the median angle at
the nearest point, degrees; completeness the share of true points within 10 cm of the mesh.
"Planes" are true points with a flat neighbourhood, "edges" those where two faces meet or one ends;
of these the distance is one way.
The shipped model's scale is aligned by the median of depth.
"""

import argparse
import dataclasses
import pathlib
import sys

import jax
import numpy as np
from scipy.spatial import cKDTree

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.data.synthetic.source import SyntheticScenes  # noqa: E402
from d4s_jax.formats.scene import SceneMetadata  # noqa: E402
from d4s_jax.geometry import cameras as pinhole  # noqa: E402
from d4s_jax.geometry import fusion  # noqa: E402
from d4s_jax.geometry.deformation import identity  # noqa: E402
from d4s_jax.pipeline import Pipeline, meshing, progress  # noqa: E402
from d4s_jax.training import inference  # noqa: E402
from d4s_jax.types import DynamicGaussians  # noqa: E402

NEAR = 0.1
# Angle, degrees, between normals of neighbouring pixels up to which a place is flat.
FLAT = 5.0


def true_points(depth, cameras):
  """Points [n 3], their normals, and which of them are on planes, from exact depth [v h w]."""
  places = pinhole.unproject(depth, cameras)
  right = (places[:, :-1, 1:] - places[:, :-1, :-1])[:, :-1, :-1]
  down = (places[:, 1:, :-1] - places[:, :-1, :-1])[:, :-1, :-1]
  normal = np.cross(down, right)
  normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
  known = fusion.without_edges(depth, 0.05)[:, :-2, :-2] > 0
  turn = np.ones(known.shape)
  for axis in (1, 2):
    for step in (-2, 2):
      # At the border, the pixel there.
      count = normal.shape[axis]
      other = np.take(normal, np.clip(np.arange(count) + step, 0, count - 1), axis)
      turn = np.minimum(turn, np.sum(normal * other, axis=-1))
  flat = known & (turn > np.cos(np.radians(FLAT)))
  seen = (depth > 0)[:, :-2, :-2]
  return places[:, :-2, :-2][seen], normal[seen], flat[seen]


def score(mesh, points, normals, flat):
  """Chamfer in cm, normal error in degrees, completeness, of all, planes and edges."""
  tree = cKDTree(mesh.vertices)
  distance, nearest = tree.query(points)
  back = cKDTree(points).query(mesh.vertices)[0]
  angle = np.degrees(np.arccos(np.clip(np.sum(mesh.normals[nearest] * normals, axis=-1), -1, 1)))
  rows = {}
  for name, mask in (("all", np.ones(len(points), bool)), ("planes", flat), ("edges", ~flat)):
    close = mask & (distance < NEAR)
    rows[name] = (
      100 * (distance[mask].mean() + (back.mean() if name == "all" else distance[mask].mean())) / 2,
      float(np.median(angle[close])) if close.any() else np.nan,
      float((distance[mask] < NEAR).mean()),
    )
  return rows


def on_pixels(depth, images, cameras, times):
  """Opaque Gaussians, flat as pixels, on every pixel of some views, that stand still."""
  places = pinhole.unproject(depth, cameras)
  width = depth / np.asarray(cameras.intrinsics)[:, 0, 0][:, None, None]
  seen = depth > 0
  count = int(seen.sum())
  turn = np.tile(np.float32([1, 0, 0, 0]), (count, 1))
  colours = (images[seen] - 0.5) / 0.28209479
  return DynamicGaussians(
    means=places[seen].astype("f4"),
    quaternions=turn,
    raw_scales=np.zeros((count, 3), "f4"),
    footprints=(0.6 * width[seen]).astype("f4"),
    opacities=np.full(count, 0.95, "f4"),
    harmonics=colours[:, None].astype("f4"),
    times=times,
    deformation=np.asarray(identity(len(times), count)),
  )


def numpy(tree):
  return jax.tree.map(np.asarray, tree)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--scenes", type=int, default=8)
  options = parser.parse_args()
  source = SyntheticScenes(split="heldout", kind="static", views=0, tracks=0)
  trained = inference.open_checkpoint("shipped", progress.timed)
  system, parts = trained.system, trained.parts
  pipeline = Pipeline(system, parts, **inference.sampling(trained.config, {})[0])
  found = {}
  for index in range(options.scenes):
    clip, scene = source.read(index), source.setting(index).scene
    cameras, times = clip.source.cameras, np.asarray(clip.source.times)
    metadata = SceneMetadata(cameras=cameras, times=times, prompt="", package_version="0")
    splats = on_pixels(clip.source.depth, clip.source.images, cameras, times)
    views = numpy(meshing.view_cameras(splats, metadata))
    images, depth, _ = scene.render(views, np.zeros(len(views.intrinsics)))
    truth = true_points(np.asarray(depth, "f4"), views)
    meshes = {
      "fusion": meshing.surface(fusion.without_edges(np.asarray(depth, "f4"), 0.05),
        np.asarray(images, "f4"), views)
    }  # fmt: skip
    (meshes["splats"],) = meshing.meshes(splats, metadata, np.zeros(1))
    latents = system.backbone.encode(parts, clip.source.images[None])[0]
    dynamic = numpy(pipeline.reconstruct(latents, cameras))
    (mesh,) = meshing.meshes(dynamic, metadata, np.zeros(1))
    # One factor, about the first camera, on which the scale of a reconstruction is free.
    eye = np.asarray(cameras.world_from_camera)[0, :3, 3]
    factor = np.median(np.linalg.norm(truth[0] - eye, axis=1)) / np.median(
      np.linalg.norm(mesh.vertices - eye, axis=1)
    )
    vertices = (eye + factor * (mesh.vertices - eye)).astype("f4")
    meshes["shipped"] = dataclasses.replace(mesh, vertices=vertices)
    for name, mesh in meshes.items():
      for part, numbers in score(mesh, *truth).items():
        found.setdefault((name, part), []).append(numbers)
    print(f"scene {index} done", file=sys.stderr, flush=True)
  print(
    f"{options.scenes} scenes; mean +- deviation   chamfer, cm   normals, degrees   within 10 cm"
  )
  for (name, part), rows in found.items():
    mean, deviation = np.nanmean(rows, axis=0), np.nanstd(rows, axis=0)
    shown = (f"{a * k:8.1f} +- {b * k:.1f}" for a, b, k in zip(mean, deviation, (1, 1, 100)))
    print(f"{name:8} {part:7} {'  '.join(shown)} %")


if __name__ == "__main__":
  main()
