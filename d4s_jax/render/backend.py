"""What a backend raises where it can't be had."""


class BackendUnavailable(ValueError):
  """The message says why, and what to do."""
