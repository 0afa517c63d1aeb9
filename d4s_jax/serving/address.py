"""Where a server listens, and to whom it may."""

import errno
import socket

import uvicorn
from fastapi import FastAPI

from d4s_jax.pipeline import progress

_LOCAL = ("127.0.0.1", "::1", "localhost")
_SHORTEST = 16
# Seconds that answers have to end when the server does.
_PATIENCE = 5


def check(host: str, token: str | None, variable: str) -> bool:
  """Whether an address is of this machine alone.

  Args:
    host: the address.
    token: that requests must bring; None for none.
    variable: of the environment, that it comes from.

  Raises:
    ValueError: it isn't, and there is no token; or there is one that is easily guessed, or that no
      header can carry.
  """
  local = host in _LOCAL
  if token is None and not local or token is not None and len(token) < _SHORTEST:
    raise ValueError(
      f"{variable} is {'not set' if token is None else 'too short'}; expected {_SHORTEST}"
      f" characters or more, which every request to {host} must bring."
    )
  if token is not None and not (token.isascii() and token.isprintable()):
    raise ValueError(f"{variable} holds more than letters, digits and signs of ASCII.")
  return local


def bind(host: str, port: int) -> socket.socket:
  """A socket that listens at an address: who asks waits until `serve` answers.

  Raises:
    OSError: the port is taken, or the address is not of this machine.
  """
  try:
    family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(place)
    # Else another could bind it too, and one of both would end after its long work.
    bound.listen()
    return bound
  except OSError as error:
    if error.errno == errno.EADDRINUSE:
      text = f"Port {port} is taken; name another with --port, or 0 for any."
      raise OSError(text) from error
    raise OSError(f"Nothing can be served at {host}, port {port} ({error}).") from error


def url(bound: socket.socket) -> str:
  """What to type into a browser."""
  host, port = bound.getsockname()[:2]
  return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


class Server(uvicorn.Server):
  """Serves until it is told to stop; streams of events end then, which uvicorn would wait for."""

  def __init__(self, app: FastAPI):
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_PATIENCE)
    super().__init__(config)
    self._app = app

  async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
    """Takes nothing more, ends what is open, and waits for the job at hand."""
    progress.say("Stops: jobs are cancelled, the one at hand at its next step.")
    self._app.state.jobs.stop()
    await super().shutdown(sockets)
