"""What an evaluation is asked to do: the keys of `configs/evaluate.py`."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Weights:
  """Folders or files of published weights that the user has; "" for none.

  Attributes:
    clip: folder of `openai/clip-vit-large-patch14` in transformers' layout: CLIP-Score and
      CLIP-Aesthetic.
    clip_b32: likewise of `openai/clip-vit-base-patch32`: background consistency.
    dino: folder of `facebook/dino-vitb16`: subject consistency.
    aesthetic: LAION's improved predictor `sac+logos+ava1-l14-linearMSE` as safetensors.
  """

  clip: str = ""
  clip_b32: str = ""
  dino: str = ""
  aesthetic: str = ""


@dataclasses.dataclass(frozen=True)
class Settings:
  """The keys.

  Attributes:
    samples: folders of scenes or videos to score, with commas; NAME=FOLDER names one.
    reference: folder of the true videos, or one with a source.json; "" for none.
    masks: folder of videos that are white where the subject is; "" for none.
    metrics: names of METRICS with commas; "" for all.
    output: folder of the report.
    cache: folder of what was computed, shared by runs; "" for one in `output`.
    frames: of each video that FVD and KVD look at, from the first on.
    gap: frames between the two pictures of a pair in which matches are counted.
    pose_side: pixels of the lower side of videos of scenes in which matches and camera paths are
      looked for.
    batch: videos in memory together.
    shown: videos of each set in the page.
    weights: see `Weights`.
    qa_url: base address of an OpenAI-compatible endpoint, as http://127.0.0.1:8000/v1.
    qa_model: the model to ask there.
    matcher: PACKAGE.MODULE:FUNCTION of a matcher of your own, as MASt3R.
  """

  samples: str = ""
  reference: str = ""
  masks: str = ""
  metrics: str = ""
  output: str = "runs/evaluation"
  cache: str = ""
  frames: int = 16
  gap: int = 4
  pose_side: int = 256
  batch: int = 4
  shown: int = 6
  weights: Weights = Weights()
  qa_url: str = ""
  qa_model: str = ""
  matcher: str = ""

  @classmethod
  def of(cls, config: Mapping[str, Any]) -> "Settings":
    """From a configuration that has these keys.

    Raises:
      ValueError: a number is out of range.
    """
    fields: dict[str, Any] = dict(config)
    fields["weights"] = Weights(**fields["weights"])
    settings = cls(**fields)
    least = {"frames": 1, "gap": 1, "pose_side": 1, "batch": 1, "shown": 0}
    for name, value in least.items():
      if getattr(settings, name) < value:
        raise ValueError(f"config.{name} is {getattr(settings, name)}; expected at least {value}.")
    return settings
