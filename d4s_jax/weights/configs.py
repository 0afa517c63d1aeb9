"""The config.json of a published model, read with every objection listed at once."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from d4s_jax.formats import checked

# Far above every published size: what is larger would take time and memory before the weights do.
_LARGEST = 2**20
WIDE, DEEP, LEVELS = 2**14, 2**10, 2**3
# Of an autoencoder's levels together; the published ones have 12.
MOST_BLOCKS = 24

# What transformers writes for every model and no encoder's output depends on: where it came from,
# how it was trained, how texts are generated, how results are handed over.
TRANSFORMERS = (
  *("architectures", "auto_map", "transformers_version", "model_type", "torch_dtype", "dtype"),
  *("tokenizer_class", "task_specific_params", "finetuning_task", "problem_type", "prefix"),
  *("id2label", "label2id", "num_labels", "initializer_range", "initializer_factor"),
  *("dropout", "dropout_rate", "attention_dropout", "classifier_dropout"),
  *("hidden_dropout_prob", "attention_probs_dropout_prob", "chunk_size_feed_forward"),
  *("return_dict", "use_return_dict", "output_hidden_states", "output_attentions"),
  *("output_scores", "output_past", "return_dict_in_generate", "use_cache", "torchscript"),
  *("is_encoder_decoder", "tie_word_embeddings", "tie_encoder_decoder", "remove_invalid_values"),
  *("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "decoder_start_token_id"),
  *("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"),
  *("bad_words_ids", "max_length", "min_length", "do_sample", "early_stopping", "num_beams"),
  *("num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p"),
  *("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "num_return_sequences"),
  *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "renormalize_logits"),
  *("gradient_checkpointing", "use_bfloat16", "tf_legacy_loss", "attn_implementation"),
)


class Reader:
  """Reads values one by one and collects what is wrong with them until `check`."""

  def __init__(self, config: Mapping[str, Any]):
    self._config = config
    self._problems: list[str] = []
    self._asked: set[str] = set()

  def size(self, name: str, most: int = _LARGEST, default: int | None = None) -> int:
    """A whole number from 1 to `most`."""
    if default is not None and name not in self._config:
      self._asked.add(name)
      return default
    return self._read(name, 1, lambda value: checked.integer(value, name, 1, most))

  def sizes(self, name: str, count: int | None = None, most: int = DEEP) -> tuple[int, ...]:
    """A short list of whole numbers from 1 to `most`, of this length if it is given."""
    return self._read(name, (1,) * (count or 1), lambda value: _sizes(value, name, count, most))

  def flag(self, name: str) -> bool:
    """True or false; a missing one is false."""

    def read(value):
      if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r:.60}; expected true or false.")
      return value

    self._asked.add(name)
    return self._read(name, False, read) if name in self._config else False

  def flags(self, name: str, count: int) -> tuple[bool, ...]:
    """A list of so many true or false."""

    def read(value):
      if not isinstance(value, list) or [type(x) for x in value] != [bool] * count:
        raise ValueError(f"{name}: {value!r:.60}; expected {count} times true or false.")
      return tuple(value)

    return self._read(name, (False,) * count, read)

  def number(self, name: str) -> float:
    """A finite number above 0."""

    def read(value):
      if checked.number(value, name) <= 0:
        raise ValueError(f"{name}: {value!r:.60}; expected a number above 0.")
      return float(value)

    return self._read(name, 1.0, read)

  def numbers(self, name: str, count: int, positive: bool = False) -> tuple[float, ...]:
    """A list of so many finite numbers, all above 0 if they have to be."""

    def read(value):
      found = checked.numbers(value, name, (count,))
      if positive and not (found > 0).all():
        raise ValueError(f"{name} has {found.min():g}; expected numbers above 0.")
      return tuple(found.tolist())

    return self._read(name, (1.0,) * count, read)

  def only(self, name: str, *supported: Any, others: str = "") -> None:
    """A value that our model has built in; the first one is also what a missing key means.

    Args:
      name: the key.
      *supported: values.
      others: which models have another value, where that is known.
    """
    self._asked.add(name)
    value = self._config.get(name, supported[0])
    # Python takes 1 for True; others may not.
    if not any(value == x and isinstance(value, bool) is isinstance(x, bool) for x in supported):
      note = f" (another is of {others}, which we don't have)" if others else ""
      self._problems.append(
        f"{name} is {value!r:.60}, and our model has only {supported[0]!r}{note}"
      )

  def product(self, name: str, sizes: Sequence[int], most: int) -> None:
    """Sizes that are fine one by one must not be too many numbers together."""
    if math.prod(sizes) > most:
      self._problems.append(f"{name} make {math.prod(sizes)}; expected at most {most}")

  def rest(self, *ignored: str) -> None:
    """Nothing else is switched on: a later version may have what our model doesn't.

    Args:
      *ignored: what the model doesn't depend on.
    """
    for name, value in self._config.items():
      if name not in self._asked and name not in ignored and name[:1] != "_" and value:
        self._problems.append(f"{name!r:.60} is {value!r:.60}, which our model doesn't know")

  def check(self) -> None:
    """Raises ValueError if anything was wrong."""
    if self._problems:
      raise ValueError("; ".join(self._problems))

  def _read(self, name: str, fallback: Any, read: Callable[[Any], Any]) -> Any:
    self._asked.add(name)
    try:
      if name not in self._config:
        raise ValueError(f"{name} is missing")
      return read(self._config[name])
    except ValueError as error:
      self._problems.append(str(error).rstrip("."))
      return fallback


def _sizes(value: Any, name: str, count: int | None, most: int) -> tuple[int, ...]:
  values = checked.items(value, name, LEVELS)
  if count is not None and len(values) != count:
    raise ValueError(f"{name} has {len(values)} entries; expected {count}.")
  return tuple(checked.integer(x, name, 1, most) for x in values)
