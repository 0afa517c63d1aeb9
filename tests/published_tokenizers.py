"""Small tokenizers in the files of published ones, made in a second."""

import functools
import io
import pathlib
import random

WORDS = (
  "a red ball rolls past the blue cube cat dog wall camera moves left right slowly and turns its"
  " head naïve café 日本語 テスト über straße fast 4K ultra HD 3 2 1 0 , . ! ? ' \" - – ( ) ＡＢ ½"
).split()


@functools.cache
def spiece() -> bytes:
  """A sentencepiece model numbered as T5's, trained on sentences of `WORDS`."""
  import sentencepiece

  source, model = random.Random(0), io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=(" ".join(source.choices(WORDS, k=12)) for _ in range(2000)),
    model_writer=model,
    model_type="unigram",
    vocab_size=200,
    hard_vocab_limit=False,
    character_coverage=1.0,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  return model.getvalue()


def write_t5(folder: pathlib.Path) -> pathlib.Path:
  """As of CogVideoX: spiece.model alone."""
  folder.mkdir(parents=True)
  (folder / "spiece.model").write_bytes(spiece())
  return folder


def write_umt5(folder: pathlib.Path) -> pathlib.Path:
  """As of Wan: tokenizer.json as transformers writes it, its configuration, and spiece.model."""
  import transformers

  write_t5(folder)
  transformers.T5Tokenizer.from_pretrained(str(folder), extra_ids=10).save_pretrained(folder)
  return folder
