"""What stands before the application: who may come in, and how much they may bring."""

import hmac
import urllib.parse
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "d4s_jax_token"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# Of everything beside the photograph in a request.
_REST = 2**20


class Guard:
  """ASGI middleware; refuses before anything of the body is read."""

  def __init__(self, app: ASGIApp, *, most_bytes: int, token: str | None, local: bool):
    """Guards an application.

    Args:
      app: the application.
      most_bytes: of a photograph.
      token: that every request must bring; None for none.
      local: serve names of this machine alone (a page elsewhere whose name was made to lead here
        must not read it: DNS rebinding).
    """
    self._app, self._most, self._token, self._local = app, most_bytes + _REST, token, local

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers, or lets the application do it."""
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    headers = {name.decode("latin-1"): x.decode("latin-1") for name, x in scope["headers"]}
    host, origin = headers.get("host", ""), headers.get("origin")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if self._local and name not in LOOPBACK:
      await _refuse(403, f"Served to {', '.join(LOOPBACK)} alone.", scope, receive, send)
    elif origin is not None and _place(origin) != host or _embedded(headers):
      await _refuse(403, "Pages of other places may not use this.", scope, receive, send)
    elif self._token is not None and not self._known(headers):
      await self._greet(scope, receive, send)
    elif int(headers.get("content-length", "0")) > self._most:  # digits: uvicorn sees to that
      await _refuse(413, self._large, scope, receive, send)
    else:
      await self._app(scope, self._counted(receive), send)

  @property
  def _large(self) -> str:
    return f"The request is larger than {self._most - _REST} bytes."

  def _known(self, headers: dict[str, str]) -> bool:
    bearer = headers.get("authorization", "").removeprefix("Bearer ")
    # Cookies of all ports of this name come along, in whatever form others write them.
    return self._fits(bearer) or self._fits(
      cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
    )

  def _fits(self, brought: str) -> bool:
    return hmac.compare_digest(brought.encode(), (self._token or "").encode())

  async def _greet(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Takes the token of `/?token=...` as a cookie, for browsers; refuses anything else."""
    query = scope["query_string"].decode("latin-1")
    # A plus sign is one, as base 64 has it, or a blank, as forms write it.
    given = [
      urllib.parse.parse_qs(x).get("token", [""])[0] for x in (query.replace("+", "%2B"), query)
    ]
    fitting = next(filter(self._fits, given), None)
    if scope["path"] == "/" and scope["method"] == "GET" and fitting is not None:
      response: Any = RedirectResponse("/", 303)
      response.set_cookie(COOKIE, fitting, httponly=True, samesite="strict")
      await response(scope, receive, send)
      return
    headers = {"WWW-Authenticate": "Bearer"}
    text = "Expected the header Authorization: Bearer TOKEN, or, in a browser, /?token=TOKEN once."
    await JSONResponse({"detail": text}, 401, headers)(scope, receive, send)

  def _counted(self, receive: Receive) -> Receive:
    """Ends a body that grows too large; its header need not tell the truth."""
    taken = 0

    async def counted() -> Message:
      nonlocal taken
      message = await receive()
      taken += len(message.get("body", b""))
      if taken > self._most:
        raise HTTPException(413, self._large)
      return message

    return counted


async def _refuse(status: int, text: str, scope: Scope, receive: Receive, send: Send) -> None:
  await JSONResponse({"detail": text}, status)(scope, receive, send)


def _embedded(headers: dict[str, str]) -> bool:
  """Whether a page of another place asks, not a person who follows a link of it."""
  foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
  return foreign and headers.get("sec-fetch-dest") != "document"


def _place(origin: str) -> str | None:
  """Host and port of an origin; None if it is none."""
  try:
    return urllib.parse.urlsplit(origin).netloc
  except ValueError:
    return None
