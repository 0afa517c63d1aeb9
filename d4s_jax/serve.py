"""Serves generation over HTTP: a page to try it in a browser, and jobs for programs.

Example:
  python -m d4s_jax.serve --port=8000

Keeps the models warm. Without --host, on this machine alone; on any other address every request
needs the token in the environment's D4S_JAX_TOKEN (16 characters or more). /openapi.json describes
the interface. Ctrl-C ends; results go with the server.
"""

import contextlib
import os

from absl import flags, logging

from d4s_jax import errors
from d4s_jax.pipeline import marking, progress
from d4s_jax.training import compilation, inference

_CHECKPOINT = flags.DEFINE_string("checkpoint", "shipped", "A run or converted weights.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to serve on.")
_PORT = flags.DEFINE_integer("port", 8000, "Where to serve; 0 takes any free one.", 0, 65535)
_WAITING = flags.DEFINE_integer("waiting", 100, "Jobs that may wait.", 1, 10_000)
_KEPT = flags.DEFINE_integer("kept", 50, "Results that are kept.", 1, 10_000)
_KEEP = flags.DEFINE_float("keep_minutes", 60, "For how long.", 0.1, 10_000)
_MEGABYTES = flags.DEFINE_float("megabytes", 16, "Of a photograph.", 0.01, 1000)
_WATERMARK = flags.DEFINE_boolean("watermark", True, "Mark results invisibly as generated.")
_TOKEN = "D4S_JAX_TOKEN"


def main(argv: list[str]) -> None:
  """Serves until Ctrl-C."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    try:
      from d4s_jax.serving import address, app, workshop
    except ImportError as error:
      raise ValueError(f"{error.name} is missing: pip install 'd4s_jax[serve]'.") from error
    token = os.environ.get(_TOKEN)
    local = address.check(_HOST.value, token, _TOKEN)
    # Taken before the long work.
    with address.bind(_HOST.value, _PORT.value) as socket:
      trained = inference.open_checkpoint(_CHECKPOINT.value, progress.timed)
      for note in (compilation.cache(), trained.note):
        progress.say(note) if note else None
      offer = workshop.offer(
        *(trained, marking.key(_WATERMARK.value)),
        **dict(waiting=_WAITING.value, kept=_KEPT.value, keep_seconds=60 * _KEEP.value),
        **dict(most_bytes=int(_MEGABYTES.value * 1e6), token=token, local=local),
      )
      print(f"Open {address.url(socket)} in a browser; Ctrl-C ends.", flush=True)
      with contextlib.suppress(KeyboardInterrupt):
        address.Server(app.build(offer)).run(sockets=[socket])


if __name__ == "__main__":
  errors.run(main)
