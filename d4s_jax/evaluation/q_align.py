"""Quality as a served vision-language model sees it, by Q-Align's scheme (Wu et al., 2023).

The model is asked how it would rate a video, and the probabilities of the five words of the scale
are read from the first token of its answer: sum of p_i w_i with w = 1, .75, .5, .25, 0, times 5,
which is what "0-5" is taken to mean here. Any OpenAI-compatible server of chat completions with
log-probabilities will do; which model answered is part of the protocol.
"""

import base64
import contextlib
import hashlib
import io
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from d4s_jax import captioning
from d4s_jax.formats import images
from d4s_jax.models.clip import MEAN
from d4s_jax.pipeline import progress

LEVELS = {"excellent": 1.0, "good": 0.75, "fair": 0.5, "poor": 0.25, "bad": 0.0}
PROMPT = (
  "How would you rate the quality of this video? Answer with one word: excellent, good, fair, poor"
  " or bad."
)
PROMPT_HASH = hashlib.sha256(PROMPT.encode()).hexdigest()[:8]
# Environment variable of a key, if the server wants one: not OPENAI_API_KEY, which is for the
# server of captions and would be given away to another.
KEY = "D4S_JAX_QA_KEY"
# Of the answer's first token; more is more than servers give.
_ALTERNATIVES = 20
_MOST_FRAMES = 16
# For an answer, also for the first one, about a grey picture: a model may be slow.
_SECONDS = 300.0
# Probability that the five words must have together: else the model answered something else.
_LEAST = 0.05


class Judge:
  """A served model that says how good videos are.

  It is asked at once, about a grey picture, so that a wrong name or key is told before anything is
  measured. Where it says nothing that is told too, in a line, and it is not asked again: where all
  answers were kept it is not needed.

  Args:
    url: base address of the server, ending in /v1.
    model: name of the model there.

  Raises:
    ValueError: the address is none of HTTP, the server refuses, or gives no log-probabilities.
  """

  def __init__(self, url: str, model: str):
    self._url, self._model, self._absent = url.rstrip("/"), model, ""
    grey = np.full((1, 32, 32, 3), 0.5, np.float32)
    try:
      # Whoever has it lists its models at once; an answer takes as long as the model does.
      with contextlib.suppress(ValueError):
        captioning.ask(f"{self._url}/models", None, _key(), captioning.LISTED)
      _first_token(self._answer(grey))
    except ConnectionError as error:
      self._absent = str(error)
      progress.say(f"{error} Only videos whose answers were kept have a quality.")

  def quality(self, video: Float[np.ndarray, "f h w 3"], fps: float) -> float:
    """The score of a video, from 0 to 5, seen at one frame a second, padded to a square.

    Args:
      video: RGB in [0, 1].
      fps: frames a second.

    Raises:
      ConnectionError: the server doesn't answer, or didn't at first.
      ValueError: it refuses, or its answer has no probabilities of the words.
    """
    if self._absent:
      raise ConnectionError(self._absent)
    step = max(1, round(fps))
    return score(_first_token(self._answer(video[::step][:_MOST_FRAMES])))

  def _answer(self, frames: Float[np.ndarray, "f h w 3"]) -> Any:
    content: list[dict[str, Any]] = [{"type": "text", "text": PROMPT}]
    for frame in frames:
      address = f"data:image/png;base64,{base64.b64encode(_png(frame)).decode()}"
      content.append({"type": "image_url", "image_url": {"url": address}})
    asked = {
      "model": self._model,
      "messages": [{"role": "user", "content": content}],
      "max_tokens": 1,
      "temperature": 0,
      "logprobs": True,
      "top_logprobs": _ALTERNATIVES,
    }
    return captioning.ask(f"{self._url}/chat/completions", asked, _key(), _SECONDS)


def _key() -> str:
  return os.environ.get(KEY, "")


def score(logarithms: Mapping[str, float]) -> float:
  """The score from 0 to 5, from log-probabilities of tokens.

  A token counts for the word that it begins, whatever its case and the space before it.

  Raises:
    ValueError: the words have less than 5% together.
  """
  found = dict.fromkeys(LEVELS, 0.0)
  for token, value in logarithms.items():
    text = token.strip(" \n\u2581\u0120").lower()
    levels = [level for level in LEVELS if text and level.startswith(text)]
    if len(levels) == 1:
      found[levels[0]] += math.exp(value)
  total = sum(found.values())
  if total < _LEAST:
    raise ValueError(
      f"the model gives the words {', '.join(LEVELS)} {total:.3f} of its probability; expected a"
      " vision-language model that follows the instruction"
    )
  return 5 * sum(LEVELS[level] * p for level, p in found.items()) / total


def _png(frame: np.ndarray) -> bytes:
  """The frame in the middle of a square of CLIP's mean colour in 8 bits, as Q-Align pads."""
  height, width, _ = frame.shape
  side = max(height, width)
  square = np.broadcast_to(np.floor(255 * MEAN) / 255, (side, side, 3)).copy()
  top, left = (side - height) // 2, (side - width) // 2
  square[top : top + height, left : left + width] = frame
  out = io.BytesIO()
  Image.fromarray(images.to_bytes(square)).save(out, "PNG")
  return out.getvalue()


def _first_token(answer: Any) -> dict[str, float]:
  """Log-probabilities of the alternatives for the first token."""
  try:
    entries = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    # Repeated texts are different tokens; the likeliest of them counts.
    found: dict[str, float] = {}
    for entry in entries:
      token, value = str(entry["token"]), float(entry["logprob"])
      found[token] = max(value, found.get(token, -math.inf))
    return found
  except (KeyError, IndexError, TypeError, ValueError) as error:
    raise ValueError(
      f"the server's answer has no choices[0].logprobs.content[0].top_logprobs ({error!r:.80});"
      " expected a server that gives log-probabilities"
    ) from error
