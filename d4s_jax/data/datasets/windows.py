"""A dataset as a source of clips: windows of frames of its scenes, cut as `data.cutting` does."""

import os
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from d4s_jax.data.cutting import Cut
from d4s_jax.data.datasets.registry import entry, open_dataset
from d4s_jax.data.datasets.scene import Dataset, Scene
from d4s_jax.data.identity import digest
from d4s_jax.data.record import CorruptRecord
from d4s_jax.data.sampling import Augmentation, NoLength
from d4s_jax.data.splits import EmptySplit, of_split
from d4s_jax.data.transforms import in_floats
from d4s_jax.data.wanted import Wanted
from d4s_jax.types import Clip, Tracks

# Clips in a row that may be without a length.
_TRIES = 50


class Windows:
  """Clips of a dataset of the registry.

  Which scene a clip is of depends on (seed, split, index) and on what is in the folder. Captions
  are empty.

  Args:
    dataset: a name of the registry.
    path: its folder.
    split: "train" or "heldout".
    kind: "static" or "dynamic", which the dataset must be, or "mixed".
    posed: whether cameras and lengths matter.
    distance: units that the median known depth is scaled to, in each clip; 0 keeps metres, which
      the dataset must have.
    shapes: unused: clips of all shapes can be had.
    augment: what is random; None for nothing but the choice of frames.
    **sizes: the other fields of `Wanted`.

  Raises:
    OSError: there is no such folder.
    ValueError: it holds no scenes of the dataset, or an argument is out of range.
  """

  def __init__(
    self,
    dataset: str,
    path: str | os.PathLike,
    split: str = "train",
    kind: str = "mixed",
    *,
    posed: bool = True,
    distance: float = 0.0,
    shapes: Any = (),
    augment: Augmentation | None = None,
    **sizes: Any,
  ):
    del shapes
    line = entry(dataset)
    own = "dynamic" if line.dynamic else "static"
    wanted = Wanted(split=split, kind=kind, **sizes)
    if kind not in (own, "mixed"):
      raise ValueError(f"{line.title} has scenes of kind {own!r}; expected it instead of {kind!r}.")
    if posed and not line.metric and not distance:
      raise ValueError(
        f"The lengths of {line.title} are no metres; set config.data.distance, for example to 1, or"
        " curate it with a plug-in that finds its scale."
      )
    self._cut = Cut(wanted, posed, distance, **({"augment": augment} if augment else {}))
    self._name, self._dataset = dataset, open_dataset(dataset, path)
    self._names = split_names(self._dataset, split)
    # Scenes that were found too short: opened once, whatever is drawn.
    self._short: set[str] = set()

  def __len__(self) -> int:
    return self._cut.wanted.length

  def contents(self) -> dict[str, Any]:
    """What tells these clips from others: names of scenes, how they are cut, a look at some scenes.

    All files would be too many to look at.
    """
    looked = (self._names[0], self._names[len(self._names) // 2], self._names[-1])
    seen = digest(_seen(self._dataset, name) for name in looked)
    return {**self._cut.contents(self._names), "hash of three scenes": seen}

  def read(self, index: int) -> Clip:
    """One clip, always the same; see `draw`."""
    rng = np.random.default_rng((*self._cut.wanted.entropy, index, 1))
    return jax.tree.map(in_floats, self.draw(index, rng))

  def draw(self, index: int, rng: np.random.Generator) -> Clip:
    """One clip; the generator chooses its frames and what part of the picture is shown.

    Raises:
      CorruptRecord: a file is missing or damaged.
      NoLength: many scenes in a row have no length to scale by.
      ValueError: no scene is long enough.
    """
    wanted = self._cut.wanted
    wanted.check(index, len(self))
    scenes, tries = np.random.default_rng((*wanted.entropy, index)), 0
    while len(self._short) < len(self._names):
      name = self._names[scenes.integers(len(self._names))]
      if name in self._short:
        continue
      try:
        footage = _OfScene(self._name, self._dataset.open(name))
        if footage.longest >= wanted.frames:
          return self._cut(footage, rng)
        self._short.add(name)
      except NoLength as error:
        tries += 1
        if tries == _TRIES:
          raise NoLength(
            f"Clip {index}: none of {tries} scenes drawn in a row has depth, tracks or a camera"
            f" that moves; the last: {error}"
          ) from error
      except (ValueError, OSError) as error:
        raise CorruptRecord(f"Clip {index}, scene {name}: {error}") from error
    raise ValueError(
      f"None of {len(self._names)} scenes in {self._dataset.root} has {wanted.frames} frames;"
      " expected a shorter clip, or longer scenes."
    )


class _OfScene:
  """A scene as footage: the cameras whose pictures have the size of the first one's."""

  caption = ""

  def __init__(self, dataset: str, scene: Scene):
    self.name = f"{dataset}/{scene.name}"
    self.metric, self.dynamic = scene.metric, scene.dynamic
    first = scene.views[0].cameras
    self.height, self.width = first.height, first.width
    self._views = [
      x for x in scene.views if (x.cameras.height, x.cameras.width) == (self.height, self.width)
    ]
    lengths = [len(view) for view in self._views]
    self.longest = max(lengths)
    self.view = np.repeat(np.arange(len(lengths)), lengths)
    self._start = np.append(0, np.cumsum(lengths))
    self.times = np.concatenate([view.times for view in self._views])
    self.world_from_camera: Any = np.concatenate([x.cameras.world_from_camera for x in self._views])
    self.intrinsics: Any = np.concatenate([x.cameras.intrinsics for x in self._views])

  def _place(self, index: int) -> tuple[Any, int]:
    """The view of a frame, and the frame's number in it."""
    number = int(self.view[index])
    return self._views[number], int(index - self._start[number])

  def picture(
    self, index: int, window: tuple[int, int, int, int], to: tuple[int, int]
  ) -> UInt8[np.ndarray, "h w 3"]:
    """A window of a frame, resized with an antialiased bicubic filter."""
    view, frame = self._place(index)
    top, left, height, width = window
    whole = Image.fromarray(view.pixels(frame))
    box = (left, top, left + width, top + height)
    return np.asarray(whole.resize((to[1], to[0]), Image.Resampling.BICUBIC, box=box))

  def depth(self, index: int) -> Float[np.ndarray, "h w"] | None:
    """Z-depth of a frame."""
    view, frame = self._place(index)
    return None if view.depth is None else view.depth(frame)

  def instances(self, index: int) -> Int[np.ndarray, "h w"] | None:
    """Instances of a frame."""
    view, frame = self._place(index)
    return None if view.instances is None else view.instances(frame)

  def tracks(self, source: Int[np.ndarray, "f"]) -> Tracks | None:
    """Tracks over some frames of one camera."""
    view, first = self._place(int(source[0]))
    if view.tracks is None:
      return None
    frames = source - source[0] + first
    # Views take rising frames.
    order = np.argsort(frames)
    found, back = view.tracks(frames[order]), np.argsort(order)
    return Tracks(
      points=found.points[:, back], visible=found.visible[:, back], valid=found.valid[:, back]
    )


def _seen(dataset: Dataset, name: str) -> Any:
  """What is quickly seen of a scene: its frames, and the first picture."""
  try:
    views = dataset.open(name).views
    return [(x.name, x.numbers.tolist()) for x in views], digest([views[0].pixels(0).tobytes()])
  except (OSError, ValueError):
    return "unreadable"


def split_names(dataset: Dataset, split: str) -> list[str]:
  """Scenes of a split; see `splits.of_split`.

  Raises:
    EmptySplit: there are none.
  """
  own = dataset.splits()
  names = of_split({name: (own[name], dataset.group(name)) for name in dataset.names}, split)
  if not names:
    raise EmptySplit(
      f"{dataset.root} has no scenes of the split {split!r} among {len(dataset.names)}; expected"
      " more of the dataset, or shards of it: curate cuts scenes into clips, some of which are held"
      " out."
    )
  return names
