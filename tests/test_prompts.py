"""The benchmark of prompts: which captions a clip is asked about, and who is right."""

import jax.numpy as jnp
import numpy as np

from tests.benchmarks import prompts

TEXTS = (
  "A red ball rolls left and an orange egg stands on grass. The camera orbits.",
  "An orange drum spins in a red room. The camera rises.",
  "A blue rock lies on grass under a grey sky. The camera rises.",
)


def test_words_of_a_kind_are_exchanged_and_nothing_else():
  assert prompts.exchanged(TEXTS[0], prompts.WORDS["directions"])[1:3] == [
    TEXTS[0].replace("left", "right"),
    TEXTS[0].replace("left", "away"),
  ]
  (own, other, *rest) = prompts.exchanged(TEXTS[0], prompts.WORDS["objects"])
  assert own == TEXTS[0]
  assert other == "A red box rolls left and an orange stone stands on grass. The camera orbits."
  assert len({own, other, *rest}) == 8
  # The first colour is the next of the last; articles follow.
  assert prompts.exchanged(TEXTS[1], prompts.WORDS["colours"])[1].startswith(
    "A red drum spins in a g"
  )


def test_clips_without_such_a_word_are_left_out():
  asked = prompts.questions(list(TEXTS))
  assert [each is None for each in asked["directions"]] == [False, True, True]
  assert [each is None for each in asked["objects"]] == [False, False, True]
  assert all(each and each[0] == text for each, text in zip(asked["whole captions"], TEXTS))


def test_a_model_that_reads_captions_is_right_and_one_that_does_not_is_not():
  rows = [[0, 1, 2], [2, 0, 1]]  # Losses of two clips under three captions, own first.
  assert list(prompts.first_is_least(list(np.transpose(rows)))) == [True, False]
  # No answer: all captions are as good.
  assert list(prompts.first_is_least([jnp.zeros(2)] * 3)) == [False, False]
