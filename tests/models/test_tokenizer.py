import builtins
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d4s_jax.formats import tokenizer_files
from d4s_jax.models.system import System
from d4s_jax.models.tokenizer import ByteTokenizer, PublishedTokenizer, make_tokenizer
from d4s_jax.models.wan import prompts
from tests.published_tokenizers import WORDS, write_t5, write_umt5
from tests.support import small_config


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
  assert ByteTokenizer(max_length).cuts(text) == bool(following)


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


TEXTS = (
  "",
  "a",
  "A red ball rolls past the blue cube.",
  "  much \t\n white\u00a0space\u3000 here ",
  "日本語テスト, naïve café – straße!",
  "emoji 😀 and 👩‍👩‍👧‍👦 and 🇯🇵",
  "ＡＢ ½ ﬁ ① \u200b\ufeff\x07",
  "&amp;quot;cats&amp;quot; &lt;dogs&gt;",
  " ".join(WORDS) * 3,
)


@pytest.fixture(scope="module", params=[write_t5, write_umt5], ids=["t5", "umt5"])
def folder(request, tmp_path_factory):
  return request.param(tmp_path_factory.mktemp("published") / "tokenizer")


@pytest.fixture(scope="module")
def umt5(tmp_path_factory):
  return write_umt5(tmp_path_factory.mktemp("umt5") / "tokenizer")


def published(folder, max_length=32, **changes):
  return PublishedTokenizer(max_length, tokenizer_files.read(folder), **changes)


def theirs(folder, max_length=32):
  """What transformers makes of a text."""
  # The number of special tokens is not in spiece.model.
  extra = {} if (folder / "tokenizer.json").exists() else {"extra_ids": 0}
  tokenizer = pytest.importorskip("transformers").T5TokenizerFast.from_pretrained(folder, **extra)
  return lambda text: tokenizer(text, padding="max_length", max_length=max_length, truncation=True)[
    "input_ids"
  ]


@pytest.mark.parity
def test_published_files_give_the_tokens_of_transformers(folder):
  ours, wanted = published(folder), theirs(folder)
  for text in TEXTS:
    got = ours(text)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, wanted(text), err_msg=text)
  assert len({ours(text).tobytes() for text in TEXTS}) == len(TEXTS)


@pytest.mark.parity
def test_any_text_gives_the_tokens_of_transformers(umt5):
  ours, wanted = published(umt5), theirs(umt5)

  # Half surrogates, and tokens written out, are another thing there.
  @given(text=st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"])))
  def check(text):
    np.testing.assert_array_equal(ours(text), wanted(text))

  check()


@pytest.mark.parity
def test_plain_text_in_sentencepiece_gives_the_tokens_of_transformers(tmp_path):
  # Its own normalisation and that of the tokenizers library differ in stray combining marks.
  folder = write_t5(tmp_path / "tokenizer")
  ours, wanted = published(folder), theirs(folder)

  @given(text=st.lists(st.sampled_from([*WORDS, "😀", "x", " ", "\n", "漢字", "Ω", "&"])))
  def check(text):
    np.testing.assert_array_equal(ours(" ".join(text)), wanted(" ".join(text)))

  check()


def test_a_long_text_is_cut_before_its_end_mark(folder):
  @given(text=st.text(), max_length=st.integers(1, 12))
  def check(text, max_length):
    whole, short = published(folder, 2000), published(folder, max_length)
    tokens, got = whole(text), short(text)
    end = int(np.flatnonzero(tokens == 1)[0])
    assert tokens[:end].all() and not tokens[end + 1 :].any()
    kept = min(end, max_length - 1)
    np.testing.assert_array_equal(got, [*tokens[:kept], 1, *[0] * (max_length - kept - 1)])
    assert short.cuts(text) == (end > max_length - 1)

  check()


def test_marks_written_in_a_prompt_are_no_marks(folder):
  pad, stop = "<pad>", "</s>"
  tokens = published(folder)(f"a {pad} b {stop} c \ud800")
  end = int(np.flatnonzero(tokens == 1)[0])
  assert tokens[:end].all() and not tokens[end + 1 :].any()
  # Half a surrogate pair is read as "?".
  np.testing.assert_array_equal(tokens, published(folder)(f"a {pad} b {stop} c ?"))


def test_a_tokenizer_is_pickled_and_compared(folder):
  ours = published(folder, clean=prompts.clean)
  wanted = ours("a red ball &amp; a cat")
  again = pickle.loads(pickle.dumps(ours))
  np.testing.assert_array_equal(again("a red ball &amp; a cat"), wanted)
  assert again == ours and again != published(folder, 16)


def test_wan_prompts_are_cleaned():
  assert prompts.clean(" &amp;amp;  \u201ccafÃ©\u201d\n") == '& "café"'
  assert prompts.clean("") == ""


@pytest.mark.slow
@pytest.mark.parity
def test_wan_prompts_are_cleaned_as_in_diffusers():
  pipeline = pytest.importorskip("diffusers.pipelines.wan.pipeline_wan")
  texts = (*TEXTS, "&amp;lt;b&amp;gt; \u2018quotes\u2019", "cafÃ© schÃ¶n", "a\x1cb\u2028c")
  for text in texts:
    assert prompts.clean(text) == pipeline.prompt_clean(text)


def test_only_wan_cleans_prompts(umt5):
  files = tokenizer_files.read(umt5)
  config = small_config()
  wan = System.build(config.model.to_dict(), files).backbone.tokenizer
  np.testing.assert_array_equal(wan("cat &amp; dog"), published(umt5, 24)("cat & dog"))
  assert wan.max_length == config.model.backbone.text_length
  cog = make_tokenizer(24, files, 384)
  assert not np.array_equal(cog("cat &amp; dog"), wan("cat &amp; dog"))


def test_more_tokens_than_the_encoder_knows_are_refused(folder):
  files = tokenizer_files.read(folder)
  size = published(folder).vocabulary
  assert make_tokenizer(8, files, size).max_length == 8
  with pytest.raises(ValueError, match=rf"has {size} tokens, the text encoder only {size - 1}"):
    make_tokenizer(8, files, size - 1)
  assert make_tokenizer(8, {}, 1) == ByteTokenizer(8)


@pytest.mark.parametrize("contents", [b"", b"junk", b"\x0a\x05abcde"])
def test_a_damaged_sentencepiece_model_is_one_clear_error(contents):
  with pytest.raises(ValueError, match="spiece.model can't be used as a tokenizer.*restore it"):
    make_tokenizer(8, {"spiece.model": contents}, 1000)


@pytest.mark.parametrize("table", ["AAAA", "CAAAAAAAAAD/////"])
def test_a_panic_in_the_library_is_one_clear_error(umt5, table):
  value = json.loads((umt5 / "tokenizer.json").read_text())
  value["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": table}
  with pytest.raises(ValueError, match="tokenizer.json can't be used as a tokenizer"):
    make_tokenizer(8, {"tokenizer.json": json.dumps(value).encode()}, 1000)


def test_other_marks_than_t5_has_are_refused(umt5):
  value = json.loads((umt5 / "tokenizer.json").read_text())
  value["model"]["vocab"][0][0], value["added_tokens"] = "<other>", []
  with pytest.raises(ValueError, match="as marks; expected.*T5"):
    make_tokenizer(8, {"tokenizer.json": json.dumps(value).encode()}, 1000)


@pytest.mark.parametrize("missing", ["tokenizers", "sentencepiece", "ftfy"])
def test_a_missing_package_is_named_with_the_remedy(umt5, missing, monkeypatch):
  files = tokenizer_files.read(umt5)
  if missing == "sentencepiece":
    del files["tokenizer.json"]
  found = builtins.__import__("importlib").import_module

  def without(name):
    if name == missing:
      raise ImportError(name)
    return found(name)

  monkeypatch.setattr("importlib.import_module", without)
  with pytest.raises(ValueError, match=rf"package {missing}; pip install -e '.\[text\]'"):
    make_tokenizer(8, files, 1000, prompts.clean)("a cat")
