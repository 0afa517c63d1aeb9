"""The datasets that can be read: what each offers, where it is to be had, on what terms.

Licences and sizes are what the datasets' own pages or README files state, or, where said so, what
others report: read the licence where you fetch the data.
"""

import os
import pathlib
from typing import NamedTuple

from d4s_jax.data.datasets.dynamicreplica import DynamicReplica
from d4s_jax.data.datasets.matrixcity import MatrixCity
from d4s_jax.data.datasets.multicamvideo import MultiCamVideo
from d4s_jax.data.datasets.pointodyssey import PointOdyssey
from d4s_jax.data.datasets.realestate10k import RealEstate10K
from d4s_jax.data.datasets.scene import Dataset
from d4s_jax.data.datasets.spring import Spring
from d4s_jax.data.datasets.stereo4d import Stereo4D
from d4s_jax.data.datasets.tartanair import TartanAir
from d4s_jax.data.datasets.virtual_kitti import VirtualKitti


class Entry(NamedTuple):
  """A line of the registry.

  Attributes:
    dataset: reads it.
    title: its own name.
    span: frames that a training clip reaches over at most; those of MoVieS, and, where it doesn't
      use a dataset, our choice.
    licence: of the data.
    page: that tells how to get it.
    size: of the download.
    cameras: that film a scene at the same time.
    depth: whether it has depth.
    tracks: whether it has point tracks.
    instances: whether it tells things, or foreground, from the background.
    metric: whether lengths are metres.
    about: whether they are so by an assumption that holds about (Stereo4D's baseline of 63 mm).
    dynamic: whether things move.
  """

  dataset: type[Dataset]
  title: str
  span: int
  licence: str
  page: str
  size: str
  cameras: int = 1
  depth: bool = False
  tracks: bool = False
  instances: bool = False
  metric: bool = False
  about: bool = False
  dynamic: bool = False

  @property
  def offers(self) -> str:
    """What it offers, in words."""
    words = [
      "1 camera" if self.cameras == 1 else f"{self.cameras} cameras",
      *(word for word in ("depth", "tracks", "instances") if getattr(self, word)),
      "about " * self.about + "metric" if self.metric else "of unknown scale",
      "dynamic" if self.dynamic else "static",
    ]
    return ", ".join(words)

  @property
  def layout(self) -> str:
    """The layout that is expected, in one line."""
    return (self.dataset.__doc__ or "").strip().splitlines()[0]


DATASETS = {
  "tartanair": Entry(
    dataset=TartanAir,
    title="TartanAir (V1)",
    cameras=2,
    depth=True,
    metric=True,
    span=34,
    licence="CC BY 4.0 (as others report)",
    page="https://theairlab.org/tartanair-dataset/",
    size="about 1.1 TB of the archives listed, 3 TB in all",
  ),
  "matrixcity": Entry(
    dataset=MatrixCity,
    title="MatrixCity",
    depth=True,
    metric=True,
    span=17,
    licence="CC BY-NC 4.0",
    page="https://github.com/city-super/MatrixCity",
    size="519,000 pictures",
  ),
  "realestate10k": Entry(
    dataset=RealEstate10K,
    title="RealEstate10K",
    span=170,
    licence="CC BY 4.0 (cameras; the videos are their owners')",
    page="https://google.github.io/realestate10k/",
    size="720 MB of cameras; 10 million frames of 80,000 clips to be fetched",
  ),
  "pointodyssey": Entry(
    dataset=PointOdyssey,
    title="PointOdyssey (1.2)",
    depth=True,
    tracks=True,
    metric=True,
    dynamic=True,
    span=34,
    licence="CC BY-NC-SA 4.0 in its repository, MIT on its data card",
    page="https://pointodyssey.com/",
    size="184 GB",
  ),
  "dynamicreplica": Entry(
    dataset=DynamicReplica,
    title="DynamicReplica",
    cameras=2,
    depth=True,
    tracks=True,
    instances=True,
    metric=True,
    dynamic=True,
    span=34,
    licence="CC BY-NC",
    page="https://github.com/facebookresearch/dynamic_stereo",
    size="1.8 TB train, 106 GB valid, 328 GB test",
  ),
  "spring": Entry(
    dataset=Spring,
    title="Spring",
    cameras=2,
    depth=True,
    metric=True,
    dynamic=True,
    span=85,
    licence="CC BY 4.0 (as others report)",
    page="https://spring-benchmark.org/",
    size="6,000 stereo frames",
  ),
  "virtual_kitti": Entry(
    dataset=VirtualKitti,
    title="Virtual KITTI 2",
    cameras=2,
    depth=True,
    instances=True,
    metric=True,
    dynamic=True,
    span=17,
    licence="CC BY-NC-SA 3.0 (as others report)",
    page="https://europe.naverlabs.com/proxy-virtual-worlds-vkitti-2/",
    size="15 GB of pictures, depth and classes (by one count)",
  ),
  "multicamvideo": Entry(
    dataset=MultiCamVideo,
    title="MultiCamVideo",
    cameras=10,
    metric=True,
    dynamic=True,
    span=81,
    licence="Apache-2.0",
    page="https://huggingface.co/datasets/KwaiVGI/MultiCamVideo-Dataset",
    size="136,000 videos of 81 frames",
  ),
  "stereo4d": Entry(
    dataset=Stereo4D,
    title="Stereo4D",
    cameras=2,
    tracks=True,
    metric=True,
    about=True,
    dynamic=True,
    span=85,
    licence="CC BY 4.0 (annotations; the videos are their owners')",
    page="https://github.com/Stereo4d/stereo4d-code",
    size="3.6 TB for 110,000 clips",
  ),
}


_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".xz", ".bz2")


def entry(name: str) -> Entry:
  """The line of a dataset.

  Raises:
    ValueError: there is none.
  """
  if name not in DATASETS:
    raise ValueError(f"Unknown dataset {name!r}; choose one of {', '.join(sorted(DATASETS))}.")
  return DATASETS[name]


def open_dataset(name: str, root: str | os.PathLike) -> Dataset:
  """A dataset in a folder.

  Raises:
    OSError: there is no such folder.
    ValueError: the name is unknown, or the folder holds no scenes of it; the message says how to
      get it.
  """
  line = entry(name)
  try:
    return line.dataset(root)
  except ValueError as error:
    packed = [x.name for x in sorted(pathlib.Path(root).iterdir()) if x.suffix in _ARCHIVES]
    hint = f" Unpack {', '.join(packed[:3])} first; archives are not read." if packed else ""
    raise ValueError(
      f"{error}{hint} {line.title} is to be had from {line.page} ({line.licence})."
    ) from None


def listing() -> str:
  """The registry as text."""
  lines = []
  for name, line in DATASETS.items():
    lines += [
      f"{name}: {line.title}",
      f"  {line.offers}",
      f"  licence: {line.licence}",
      f"  from: {line.page}",
      f"  size: {line.size}",
      f"  layout: {line.layout}",
    ]
  return "\n".join(lines)
