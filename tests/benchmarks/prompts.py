"""Whether the video model knows the caption of a clip from seven others.

  python tests/benchmarks/prompts.py
  python tests/benchmarks/prompts.py --checkpoint=runs/joint-tiny --scenes=32

Each held-out clip in which something moves is denoised in one step from two noise levels, with four
noises each, under eight captions; retrieved is the one with the least flow-matching loss (a
diffusion classifier). The seven others are captions of other clips, or its own with one kind of
word exchanged all through: which way things go (four captions), what they are (eight), which
colours they have (eight). Exchanged words are the next ones of a fixed list, so that a caption
stays one. Shares of clips, with 95% by Wilson; those without such a word are left out. The picture
that is given shows objects and colours too, so that their words are less needed.
"""

import argparse
import dataclasses
import itertools
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.data.source import open_source  # noqa: E402
from d4s_jax.pipeline import progress  # noqa: E402
from d4s_jax.training import inference, validation  # noqa: E402
from d4s_jax.types import Clip  # noqa: E402

LEVELS, NOISES, BATCH = (0.7, 0.9), 4, 8
WORDS = {
  "directions": ("left", "right", "away", "closer"),
  "objects": ("ball", "box", "drum", "cone", "egg", "stone", "barrel", "pillar"),
  "colours": ("red", "green", "black", "yellow", "purple", "white", "teal", "orange"),
}


def exchanged(text: str, words: tuple[str, ...]) -> list[str]:
  """The text, and it with each of the words exchanged for the next of them, the one after, ..."""

  def shifted(shift: int) -> str:
    where = r"\b(?:" + "|".join(words) + r")\b"
    found = re.sub(where, lambda x: words[(words.index(x[0]) + shift) % len(words)], text)
    return re.sub(r"\b([Aa])n? (?=(.))", lambda x: x[1] + ("n " if x[2] in "aeiou" else " "), found)

  return [shifted(shift) for shift in range(len(words))]


def questions(texts: list[str]) -> dict[str, list[list[str] | None]]:
  """By kind, the captions that each clip is asked about, its own first; None without a word."""
  others = [[texts[(i + shift) % len(texts)] for shift in range(8)] for i in range(len(texts))]
  asked: dict[str, list[list[str] | None]] = {"whole captions": list(others)}
  for kind, words in WORDS.items():
    made = [exchanged(text, words) for text in texts]
    asked[kind] = [each if each[0] != each[1] else None for each in made]
  return asked


def make_losses(system, params):
  """The function from a batch of clips to the loss of each, over all levels and noises."""

  @jax.jit
  def losses(clip: Clip):
    latents = system.backbone.encode(params, clip.source.images)

    def one(clip, latents):
      clip, latents = jax.tree.map(lambda x: x[None], (clip, latents))
      found = [
        validation.denoised(system, params, clip, latents, level, seed)[1]
        for level, seed in itertools.product(LEVELS, range(NOISES))
      ]
      return jnp.mean(jnp.stack(found))

    return jax.vmap(one)(clip, latents)

  return losses


def first_is_least(losses) -> np.ndarray:
  """Of each clip whether the first caption's loss is less than all others'."""
  first, *others = np.stack(losses)
  return first < np.min(others, axis=0)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", default="shipped")
  parser.add_argument("--scenes", type=int, default=64)
  options = parser.parse_args()
  trained = inference.open_checkpoint(options.checkpoint, progress.timed)
  system = trained.system
  losses = make_losses(system, dict(trained.parts))
  source = open_source("synthetic", split="heldout", kind="dynamic", views=0)
  texts = [str(source.read(index).text) for index in range(options.scenes)]
  asked = questions(texts)
  tokenize = system.backbone.tokenizer
  best: dict[str, list[bool]] = {kind: [] for kind in asked}
  batches = validation.HeldOut(source, tokenize, BATCH, -(-options.scenes // BATCH))
  for number, clip in enumerate(batches):
    # The last batch may reach beyond them; what is asked there doesn't count.
    rows = range(number * BATCH, (number + 1) * BATCH)
    for kind, every in asked.items():
      count = len(next(each for each in every if each))
      own = [every[row] if row < len(texts) else None for row in rows]
      captions = [each or [texts[row % len(texts)]] * count for each, row in zip(own, rows)]
      found = [
        losses(dataclasses.replace(clip, text=np.stack([tokenize(x) for x in column])))
        for column in zip(*captions)
      ]
      right = first_is_least(found)
      best[kind] += [bool(x) for x, each in zip(right, own) if each]
    done = min(rows.stop, options.scenes)
    print(f"  {done} of {options.scenes} clips", file=sys.stderr, flush=True)
  for kind, right in best.items():
    test = stats.binomtest(sum(right), len(right))
    low, high = test.proportion_ci(0.95, "wilson")
    chance = 1 / len(next(each for each in asked[kind] if each))
    print(
      f"{kind:16} {sum(right)} of {len(right)}: {np.mean(right):.0%} [{low:.0%}, {high:.0%}]"
      f" (chance {chance:.1%})"
    )


if __name__ == "__main__":
  main()
