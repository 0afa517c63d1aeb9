"""Families of values that CLIP, DINO and served vision-language models see in videos."""

import numpy as np

from d4s_jax.evaluation import q_align, semantics
from d4s_jax.evaluation.metric import Case, Context, Family, Measured, one_by_one
from d4s_jax.models.dino import MEAN
from d4s_jax.weights.encoders import CLIP, Encoder

# Where nothing says how fast a video is.
_FPS = 8.0
# A pixel is the subject's where the mask is brighter.
_WHITE = 0.5
# How CLIP is shown a picture, and which CLIP likes it.
_SQUARE = "centre-square-224-bicubic-antialiased"
_CLIP_L14 = f"clip-vit-l14-projected/{_SQUARE}"


@one_by_one
def _clip_score(case: Case, context: Context) -> Measured:
  clip, sample = context.tools["clip"], case.sample
  text = sample.text
  if not text.strip():
    raise ValueError("its prompt is empty; CLIP-Score needs words")
  return {"score": semantics.clip_score(clip, sample.video, text)}


CLIP_SCORE = Family(
  "clip_score",
  lambda settings: f"{_CLIP_L14}/max(100-cos,0)/mean-of-frames/77-tokens",
  _clip_score,
  needs=frozenset(("text",)),
  tools=("clip",),
)


@one_by_one
def _clip_aesthetic(case: Case, context: Context) -> Measured:
  clip, head = context.tools["clip"], context.tools["aesthetic"]
  return {"score": semantics.aesthetic(clip, head, case.sample.video)}


CLIP_AESTHETIC = Family(
  "clip_aesthetic",
  lambda settings: f"{_CLIP_L14}/laion-improved-v2/about-1-to-10/mean-of-frames",
  _clip_aesthetic,
  tools=("clip", "aesthetic"),
)


@one_by_one
def _quality(case: Case, context: Context) -> Measured:
  judge: q_align.Judge = context.tools["qa"]
  return {"score": judge.quality(case.sample.video, case.sample.fps or _FPS)}


QUALITY = Family(
  "quality",
  lambda settings: (
    f"{settings.qa_model}/5-levels-1-.75-.5-.25-0-times-5/1-frame-a-second-at-most-16/"
    f"padded-square-of-clip-mean/no-rate-means-{_FPS:g}-fps/prompt-{q_align.PROMPT_HASH}"
  ),
  _quality,
  tools=("qa",),
)


def _consistency(name: str, tool: str, protocol: str, segmented: str) -> Family:
  """A family; `segmented` is "" or which part of the picture is kept, "subject" or "background"."""

  @one_by_one
  def measure(case: Case, context: Context) -> Measured:
    network = context.tools[tool]
    encoder: Encoder = network.vision if isinstance(network, CLIP) else network
    video = case.sample.video
    if segmented:
      assert case.mask is not None
      video = kept(video, case.mask.video, segmented)
    value = semantics.consistency(semantics.embed(encoder, video))
    return {"segmented" if segmented else "whole": value}

  rest = f"/{segmented}-kept-rest-imagenet-mean" if segmented else "/no-segmentation"
  return Family(
    name,
    lambda settings: f"vbench-formula-x100/raw-not-rescaled/{protocol}{rest}",
    measure,
    needs=frozenset(("mask",) if segmented else ()),
    tools=(tool,),
  )


def kept(video: np.ndarray, mask: np.ndarray, part: str) -> np.ndarray:
  """A video of which a part is kept and the rest has ImageNet's mean colour.

  Args:
    video: [f h w 3] in [0, 1].
    mask: of the same size, white where the subject is.
    part: "subject" or "background".

  Raises:
    ValueError: the sizes differ, or nothing would be left of a frame.
  """
  if video.shape != mask.shape:
    raise ValueError(f"a video of {video.shape} and a mask of {mask.shape}; expected one size")
  chosen = mask.mean(axis=-1, keepdims=True) > _WHITE
  chosen = chosen if part == "subject" else ~chosen
  empty = ~chosen.any(axis=(1, 2, 3))
  if empty.any():
    raise ValueError(f"the mask leaves nothing of the {part} in {empty.sum()} frames")
  return np.where(chosen, video, MEAN)


_DINO = "dino-vitb16-class-token/shorter-side-224-bilinear/positions-bicubic-as-dino"
_CLIP = f"clip-vit-b32-projected/{_SQUARE}"
SUBJECT = _consistency("subject", "dino", _DINO, "")
SUBJECT_SEGMENTED = _consistency("subject_segmented", "dino", _DINO, "subject")
BACKGROUND = _consistency("background", "clip_b32", _CLIP, "")
BACKGROUND_SEGMENTED = _consistency("background_segmented", "clip_b32", _CLIP, "background")
