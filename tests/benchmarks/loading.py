"""Loading beside a torch DataLoader, the training step's wait for data, and memory.

  python tests/benchmarks/loading.py [--film=bunny.mp4] [--seconds=10] [--steps=60] [--clips=10000]

One run, the same two cores: decoded clips per second of our loader over shards and over video files
(Stereo4D's layout), and of a torch DataLoader over each of them; ratios of medians over rounds that
take turns. Then the share of a training run of `tiny` that waits for data, with the default source
and with shards, of the steps after compilation; and resident memory over many clips.
"""

import itertools
import pathlib
import statistics
import sys
import tempfile
import time

import av
import numpy as np
import psutil
import torch
from absl import app, flags
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from configs import joint  # noqa: E402
from d4s_jax.curation import recording, units
from d4s_jax.data.loader import make_loader
from d4s_jax.data.sampling import Augmentation
from d4s_jax.data.source import open_source
from d4s_jax.data.transforms import in_floats
from d4s_jax.formats.video import write_video
from d4s_jax.training import loop, record
from d4s_jax.training.log import read_metrics
from tests.curation.footage import pan
from tests.data.records import scene_record, write_folder

_FILM = flags.DEFINE_string("film", "", "A video file to cut the clips from; else made up.")
_STEPS = flags.DEFINE_integer("steps", 60, "Of each training run after its first ones; 0 for none.")
_CLIPS = flags.DEFINE_integer("clips", 10_000, "Over which memory is watched; 0 for none.")
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Of each measurement.")

_COUNT, _LONG, _SIDE, _FPS = 24, 49, 256, 24
_SHAPE, _VIEWS = {"frames": 17, "height": 192, "width": 192}, 6
_BATCH, _ROUNDS = 4, 4
# Steps of one account of a training run.
_EVERY = 5
# Batches that workers make ahead, at the most.
_READY = 8


def main(argv):
  del argv
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    films(folder)
    speed(folder)
    if _STEPS.value:
      waiting(folder)
    if _CLIPS.value:
      memory(folder)


def films(folder):
  """The same clips as shards and as video files with cameras."""
  made, videos = [], folder / "videos" / "train"
  videos.mkdir(parents=True)
  for number, frames in zip(range(_COUNT), footage()):
    name = f"film_{number:03d}"
    write_video(videos / f"{name}-left_rectified.mp4", frames, _FPS)
    poses = np.tile(np.eye(4)[:3], (_LONG, 1, 1))
    poses[:, 0, 3] = np.linspace(0, 1, _LONG)
    times = (np.arange(_LONG) * 1e6 / _FPS).astype(np.int64)
    np.savez(videos / f"{name}.npz", camera2world=poses, timestamps=times)
  for number in range(_COUNT):
    unit = units.Unit("stereo4d", str(folder / "videos"), f"film_{number:03d}")
    span = units.Span(unit, 0, _LONG - 1)
    made.append(recording.to_record(span, units.open_span(span), _SIDE)[0])
  write_folder(folder / "shards", made)
  places = {"videos": videos, "shards": folder / "shards"}
  size = {x: sum(y.stat().st_size for y in place.iterdir()) for x, place in places.items()}
  print(
    f"{_COUNT} clips of {_LONG} frames, {made[0].width} x {made[0].height}; MB a clip: "
    + ", ".join(f"{x} {y / _COUNT / 1e6:.2f}" for x, y in size.items())
  )


def footage():
  if not _FILM.value:
    yield from (pan(seed, _LONG, 2, _SIDE, _SIDE) for seed in range(_COUNT))
    return
  with av.open(_FILM.value) as container:
    frames = []
    for number, frame in enumerate(container.decode(video=0)):
      if number < 1500:
        continue
      wide = frame.width * _SIDE // frame.height
      whole = frame.reformat(wide, _SIDE, format="rgb24").to_ndarray()
      frames.append(whole[:, (wide - _SIDE) // 2 :][:, :_SIDE])
      if len(frames) == _LONG:
        yield np.stack(frames).astype(np.float32) / 255
        frames = []


def tokenize(text):
  del text
  return np.zeros(8, np.int32)


class OfShards(torch.utils.data.Dataset):
  """What a user of torch writes over the same shards, with the same choices of frames."""

  def __init__(self, source):
    self.source = source

  def __len__(self):
    return 1 << 20

  def __getitem__(self, index):
    rng = np.random.default_rng(index)
    clip = self.source.draw(int(rng.integers(len(self.source))), rng)
    # Floats, as torchvision makes them of pictures.
    return tuple(torch.from_numpy(in_floats(x.images)) for x in (clip.source, clip.target))


class OfVideos(torch.utils.data.Dataset):
  """What a user of torch writes over video files: decode, choose, cut, resize."""

  def __init__(self, folder):
    self.files = sorted(folder.glob("train/*.mp4"))

  def __len__(self):
    return 1 << 20

  def __getitem__(self, index):
    rng = np.random.default_rng(index)
    frames, height, width = _SHAPE.values()
    stride = int(rng.integers(1, 4))
    first = int(rng.integers(_LONG - stride * (frames - 1)))
    source = list(range(first, first + stride * (frames - 1) + 1, stride))
    # Target views as our loader chooses them: frames between, where there are enough.
    between = rng.permutation(np.setdiff1d(np.arange(first, source[-1] + 1), source))[:_VIEWS]
    target = [*between.tolist(), *rng.choice(source, _VIEWS - len(between)).tolist()]
    wanted, images = {*source, *target}, {}
    with av.open(str(self.files[int(rng.integers(len(self.files)))])) as container:
      # One thread, as ours: there is a process for each core.
      container.streams.video[0].codec_context.thread_count = 1
      for number, frame in enumerate(container.decode(video=0)):
        if number in wanted:
          images[number] = frame.to_ndarray(format="rgb24")
        if number == source[-1]:
          break
    # A random window of the same sizes as our loader's, in the same quality.
    side = int(rng.integers(round(0.8 * _SIDE), _SIDE + 1))
    top, left = rng.integers(_SIDE - side + 1, size=2)
    box = (left, top, left + side, top + side)
    cut = {
      number: Image.fromarray(x).resize((width, height), Image.Resampling.BICUBIC, box=box)
      for number, x in images.items()
    }
    return tuple(
      torch.from_numpy(np.stack([np.asarray(cut[x]) for x in chosen]).astype(np.float32) / 255)
      for chosen in (source, target)
    )


def ours(source, workers):
  with make_loader(source, tokenize, batch_size=_BATCH, seed=0, workers=workers) as batches:
    yield from rate(batches)


def torch_over(dataset):
  loader = torch.utils.data.DataLoader(
    dataset,
    _BATCH,
    num_workers=2,
    # JAX's threads don't survive a fork.
    multiprocessing_context="spawn",
  )
  yield from rate(iter(loader))


def rate(batches):
  """Clips a second and processor seconds a clip, again and again.

  What lay ready before each measurement is thrown away. Processor time is that of this process and
  of all its workers; those of other loaders have full buffers and wait.
  """
  while True:
    for _ in range(_READY):
      next(batches)
    start, busy, count = time.perf_counter(), processor(), 0
    while time.perf_counter() - start < _SECONDS.value:
      next(batches)
      count += _BATCH
    yield count / (time.perf_counter() - start), (processor() - busy) / count


def processor():
  """Seconds that this process and its children have used."""
  me = psutil.Process()
  times = [one.cpu_times() for one in (me, *me.children(recursive=True))]
  return sum(one.user + one.system for one in times)


def opened(name):
  cutting = {"augment": Augmentation(stride=3)}
  return open_source(name, posed=False, cutting=cutting, **_SHAPE, views=_VIEWS, length=1000)


def speed(folder):
  shards, videos = opened(f"shards:{folder}/shards"), opened(f"stereo4d:{folder}/videos")
  contenders = {
    "ours over shards": lambda: ours(shards, 2),
    "torch over shards": lambda: torch_over(OfShards(shards)),
    "ours over videos": lambda: ours(videos, 2),
    "torch over videos": lambda: torch_over(OfVideos(folder / "videos")),
    "ours over shards, a thread": lambda: ours(shards, 0),
  }
  found = {name: [] for name in contenders}
  # All are open at once: the others wait, with full buffers, while one is measured.
  measuring = {name: make() for name, make in contenders.items()}
  for _ in range(_ROUNDS):
    for name, rates in measuring.items():
      found[name].append(next(rates))
  for rates in measuring.values():
    rates.close()
  median = {name: statistics.median(x for x, _ in values) for name, values in found.items()}
  cost = {name: statistics.median(x for _, x in values) for name, values in found.items()}
  for name, values in found.items():
    rates = [x for x, _ in values]
    print(
      f"{name}: {median[name]:.1f} clips/s ({min(rates):.1f} to {max(rates):.1f}),"
      f" {1e3 * cost[name]:.0f} ms of a core a clip"
    )
  for ours_over, torchs in (("shards", "shards"), ("videos", "videos"), ("shards", "videos")):
    ratio = median[f"ours over {ours_over}"] / median[f"torch over {torchs}"]
    less = cost[f"torch over {torchs}"] / cost[f"ours over {ours_over}"]
    print(f"ours over {ours_over}, over torch over {torchs}: {ratio:.2f}; by processor {less:.2f}")


def waiting(folder):
  """Share of time that training waits for data, of the steps after the first account."""
  scenes = [scene_record(number, kind) for number in range(12) for kind in ("static", "dynamic")]
  write_folder(folder / "scenes", scenes, heldout=("static/0", "dynamic/0"))
  for name in ("synthetic", f"shards:{folder}/scenes"):
    config = joint.get_config("tiny")
    # The first account is that of starting and compiling.
    config.steps, config.heldout.batches, config.heldout.every = _STEPS.value + _EVERY, 1, 10**6
    config.checkpoint.every, config.data.source, record._OFTEN = 10**6, name, _EVERY
    config.optimizer.warmup = 0
    run = folder / f"run-{name.partition(':')[0]}"
    loop.run(config, run)
    parts = read_metrics(run, "watch")[1:]
    total = {x: sum(part.get(x, 0.0) for part in parts) for x in ("steps", "data")}
    share = total["data"] / (total["steps"] + total["data"])
    steps = int(sum(part["updates"] for part in parts))
    print(
      f"{name.partition(':')[0]}: {share:.2%} of {sum(total.values()):.0f} s of {steps} steps after"
      " compilation waits for data"
    )


def memory(folder):
  """Resident memory of this process and of its workers while clips pass."""
  small = {"frames": 5, "height": 32, "width": 32, "length": 1000}
  process = psutil.Process()
  for name, workers in itertools.product(("shards:shards", "stereo4d:videos"), (0, 1)):
    kind, _, place = name.partition(":")
    cutting = {"augment": Augmentation()}
    source = open_source(f"{kind}:{folder / place}", posed=False, cutting=cutting, **small)
    told = {}
    with make_loader(source, tokenize, batch_size=20, seed=0, workers=workers) as batches:
      for number in range(20, _CLIPS.value + 1, 20):
        next(batches)
        if number % (max(_CLIPS.value // 200, 1) * 20) == 0:
          family = [process, *process.children(recursive=True)]
          told[number] = sum(x.memory_info().rss for x in family) / 2**20
    line = ", ".join(f"{number}: {value:.0f}" for number, value in told.items())
    print(f"{place}, {workers} workers, MiB after so many clips: {line}", flush=True)


if __name__ == "__main__":
  app.run(main)
