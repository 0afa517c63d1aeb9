"""Records and folders of shards for tests, made from the embedded scenes."""

import dataclasses
import pathlib

import numpy as np

from d4s_jax.data import record as records
from d4s_jax.data import shards
from d4s_jax.data.source import open_source

HEIGHT, WIDTH, FRAMES = 48, 64, 17


def scene_record(index: int = 0, kind: str = "static", **changes) -> records.Record:
  """A record of an embedded scene, with exact cameras, depth, instances and tracks."""
  size = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH}
  source = open_source("synthetic", kind=kind, views=1, tracks=64, length=index + 1, **size)
  clip = source.read(index)
  views = clip.source
  pixels = np.round(np.asarray(views.images) * 255).astype(np.uint8)
  record = records.Record(
    name=f"{kind}/{index}",
    caption=clip.text,
    metric=True,
    dynamic=kind == "dynamic",
    view=np.zeros(FRAMES, np.int64),
    times=np.arange(FRAMES) / 24,
    height=HEIGHT,
    width=WIDTH,
    images=[records.to_jpeg(image) for image in pixels],
    world_from_camera=np.asarray(views.cameras.world_from_camera),
    intrinsics=np.asarray(views.cameras.intrinsics),
    depth=[records.to_depth_png(depth) for depth in np.asarray(views.depth)],
    instances=[records.to_instance_png(x) for x in np.asarray(clip.instances)],
    tracks=clip.tracks,
  )
  return dataclasses.replace(record, **changes)


def plain_record(name: str, frames: int = 5, height: int = 16, width: int = 16, **changes):
  """A grey record whose brightness is its number; no supervision but cameras."""
  value = int(name.rpartition("/")[2]) % 250
  image = records.to_jpeg(np.full((height, width, 3), value, np.uint8))
  record = records.Record(
    **{"name": name, "caption": f"clip {value}", "metric": True, "dynamic": False},
    **{"height": height, "width": width, "images": [image] * frames},
    view=np.zeros(frames, np.int64),
    times=np.arange(frames, dtype=np.float64),
    world_from_camera=np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1)),
    intrinsics=np.tile(np.float32([[20, 0, 8], [0, 20, 8], [0, 0, 1]]), (frames, 1, 1)),
  )
  return dataclasses.replace(record, **changes)


def entry(record: records.Record, shard: str, row: int, split: str = "train") -> shards.Entry:
  """What a manifest says of a record."""
  return shards.Entry(
    **{"shard": shard, "row": row, "name": record.name, "group": record.name, "split": split},
    **{"frames": int(np.bincount(record.view).max()), "posed": record.intrinsics is not None},
    **{x: getattr(record, x) for x in ("height", "width", "metric", "dynamic")},
  )


def write_folder(folder: pathlib.Path, all_records, per_shard: int = 8, heldout=()) -> None:
  """A folder of shards as curation leaves it; names in `heldout` are of that split."""
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / shards.MANIFEST).open("wb") as manifest:
    for start in range(0, len(all_records), per_shard):
      some = all_records[start : start + per_shard]
      name = f"shard-{start // per_shard:05d}.array_record"
      shards.write_shard(folder / name, [records.encode(record) for record in some])
      for row, record in enumerate(some):
        split = "heldout" if record.name in heldout else "train"
        told = shards.to_json(entry(record, name, row, split))
        manifest.write(shards.line({"clip": record.name, "kept": True, "record": told}))
