import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d4s_jax.models.tokenizer import ByteTokenizer


def test_bytes_are_numbered_as_in_byt5():
  np.testing.assert_array_equal(ByteTokenizer(6)("aé"), [100, 198, 172, 1, 0, 0])
  assert ByteTokenizer(6)("aé").dtype == np.int32
  np.testing.assert_array_equal(ByteTokenizer(3)(""), [1, 0, 0])


@given(text=st.text(), max_length=st.integers(1, 40))
def test_any_text_gives_whole_characters_and_one_end(text, max_length):
  tokens = ByteTokenizer(max_length)(text)
  assert tokens.shape == (max_length,)
  end = int(np.flatnonzero(tokens == 1)[0])
  assert not tokens[end + 1 :].any()
  kept = bytes((tokens[:end] - 3).tolist()).decode("utf-8")
  assert text.startswith(kept)
  # The next character, if any, would not have fitted.
  following = text[len(kept) : len(kept) + 1]
  assert not following or end + len(following.encode()) > max_length - 1


def test_half_a_surrogate_pair_is_no_error():
  np.testing.assert_array_equal(ByteTokenizer(3)("\ud800"), [ord("?") + 3, 1, 0])


def test_no_room_for_the_end_is_refused():
  with pytest.raises(ValueError, match="got 0"):
    ByteTokenizer(0)


@pytest.mark.parity
def test_equals_transformers():
  byt5 = pytest.importorskip("transformers").ByT5Tokenizer()
  for text in ("a red ball rolls past", "日本語 – naïve", ""):
    want = byt5(text, padding="max_length", max_length=64)["input_ids"]
    np.testing.assert_array_equal(ByteTokenizer(64)(text), want)
