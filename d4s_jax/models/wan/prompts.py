"""What the Wan pipelines do to a prompt before it becomes tokens."""

import html
import importlib


def clean(text: str) -> str:
  """Repairs a garbled encoding, resolves HTML entities (twice, as some are) and joins whitespace.

  The repairs, which also make quotes straight, are those of the package `ftfy`. The authors'
  pipeline always makes them and diffusers only where it is installed; here it is required, since
  what a prompt means must not depend on that.

  Raises:
    ValueError: the package is missing.
  """
  try:
    ftfy = importlib.import_module("ftfy")
  except ImportError as error:
    raise ValueError(
      "Prompts of Wan models are cleaned with the package ftfy; pip install -e '.[text]' brings it."
    ) from error
  return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
