"""A small client of an OpenAI-compatible endpoint: pictures in, a caption out.

The address is an argument, or else OPENAI_BASE_URL, such as http://127.0.0.1:8000/v1; the key is
OPENAI_API_KEY, if one is needed (it is sent to that server alone; the one of `evaluation.q_align`,
which may be somebody else's, has a key of its own); the model OPENAI_MODEL, or else the first that
the server lists. vLLM, SGLang, llama.cpp and Ollama serve Qwen-VL, which the paper uses, this way.
"""

import base64
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

from PIL import Image

from d4s_jax.formats import images

QUESTION = (
  "Describe this video in one or two plain sentences: what is seen, what moves and how, and how the"
  " camera moves. No preamble."
)
ABOUT_A_PICTURE = (
  "Describe this picture in one or two plain sentences, and what is likely to move next. No"
  " preamble."
)
# Bytes of an answer, and characters of a caption.
_MOST, _LONGEST = 1_000_000, 2000
_ATTEMPTS, _PAUSE = 4, 1.0
# Seconds for the list of models, which a server has ready however busy its model is.
LISTED = 45.0


class _Straight(urllib.request.HTTPRedirectHandler):
  """Goes nowhere else: the key is for the server that was named."""

  def redirect_request(self, *args: Any, **kwargs: Any) -> None:
    """Makes a redirection the error that it is without a handler."""


_OPENER = urllib.request.build_opener(_Straight)

# Stands for a prompt that the endpoint writes; pixels of the longer side that it is shown.
AUTO, _SHOWN = "auto", 1024


def prompt(given: str, photograph: str | os.PathLike) -> str:
  """The prompt, or, for "auto", what the endpoint of OPENAI_BASE_URL says of a photograph.

  Raises:
    ValueError, ConnectionError: there is no endpoint, or no answer.
    FileNotFoundError: there is no photograph.
  """
  if given != AUTO:
    return given
  endpoint = Endpoint()
  picture = Image.fromarray(images.to_bytes(images.read_image(photograph)))
  picture.thumbnail((_SHOWN, _SHOWN))
  contents = io.BytesIO()
  picture.save(contents, "JPEG", quality=92)
  return endpoint.caption([contents.getvalue()], ABOUT_A_PICTURE)


class Endpoint:
  """Answers about pictures.

  Args:
    address: of the endpoint; "" for OPENAI_BASE_URL.
    timeout: seconds for an answer.

  Raises:
    ValueError: there is no address, or it is none of HTTP.
  """

  def __init__(self, address: str = "", timeout: float = 480.0):
    self.address = (address or os.environ.get("OPENAI_BASE_URL", "")).rstrip("/")
    if not self.address:
      raise ValueError(
        "No endpoint for captions; set OPENAI_BASE_URL, for example to http://127.0.0.1:8000/v1."
      )
    if urllib.parse.urlsplit(self.address).scheme not in ("http", "https"):
      raise ValueError(f"Endpoint {self.address!r}; expected http:// or https://.")
    self._timeout = timeout
    self._model, self._reached = os.environ.get("OPENAI_MODEL", ""), False

  def reach(self) -> None:
    """Chooses the model; refuses a server that isn't there, within a minute.

    Raises:
      ConnectionError: the endpoint can't be reached, or is too busy.
      ValueError: it lists no model, and none was named.
    """
    try:
      listed = self._ask("/models", None, LISTED)
      self._model = self._model or str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
      raise ValueError(f"{self.address}/models lists no model; set OPENAI_MODEL.") from None
    except ValueError:  # it is there, and need not list what was named
      if not self._model:
        raise
    self._reached = True

  def caption(self, jpegs: Sequence[bytes], question: str = QUESTION) -> str:
    """What the model says of some pictures (JPEG files), in one line.

    Raises:
      ConnectionError: the endpoint can't be reached, or is too busy.
      ValueError: it refuses, or what it answers is no caption.
    """
    if not self._reached:
      self.reach()
    pictures = [
      {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + _text(jpeg)}}
      for jpeg in jpegs
    ]
    content = [*pictures, {"type": "text", "text": question}]
    answer = self._ask(
      "/chat/completions",
      {
        "model": self._model,
        "messages": [{"role": "user", "content": content}],
        **{"max_tokens": 200, "temperature": 0},
      },
      self._timeout,
    )
    try:
      said = " ".join(answer["choices"][0]["message"]["content"].split())
    except (KeyError, IndexError, TypeError, AttributeError):
      raise ValueError(f"{self.address} answered without a caption ({answer!r:.200}).") from None
    if not said:
      raise ValueError(f"{self.address} answered with an empty caption.")
    return said[:_LONGEST]

  def _ask(self, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
    return ask(self.address + path, body, os.environ.get("OPENAI_API_KEY", ""), timeout)


def ask(url: str, body: dict[str, Any] | None, key: str, timeout: float) -> Any:
  """What a server answers, in JSON; asks again, a few times, where it says that it is too busy.

  Where it is only slow it is not asked again: it would have twice as much to do.

  Args:
    url: what is asked.
    body: is sent, in JSON; None for nothing.
    key: of the server, "" for none.
    timeout: seconds for an answer.

  Raises:
    ConnectionError: it can't be reached, is too busy, or doesn't answer in time.
    ValueError: the address is none of HTTP, it refuses, or it answers with something else.
  """
  if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
    raise ValueError(f"Endpoint {url!r:.80}; expected http:// or https://.")
  headers = {"Content-Type": "application/json"} | (
    {"Authorization": f"Bearer {key}"} if key else {}
  )
  data = None if body is None else json.dumps(body).encode()
  reason = ""
  for attempt in range(_ATTEMPTS):
    if attempt:
      time.sleep(_PAUSE * 2 ** (attempt - 1))
    try:
      request = urllib.request.Request(url, data, headers)
      with _OPENER.open(request, timeout=timeout) as response:
        contents = response.read(_MOST + 1)
      if len(contents) > _MOST:
        raise ValueError(f"{url} answered with more than {_MOST} bytes.")
      return json.loads(contents)
    except urllib.error.HTTPError as error:
      reason = f"HTTP {error.code}: {error.read(300).decode(errors='replace')}"
      if error.code not in (408, 409, 425, 429) and (error.code < 500 or error.code == 501):
        raise ValueError(f"{url} refused: {reason}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, OSError) as error:
      cause = getattr(error, "reason", error)
      if isinstance(cause, TimeoutError):
        raise ConnectionError(
          f"{url} doesn't answer within {timeout:g} s; is the server running?"
        ) from None
      reason = str(cause)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
      raise ValueError(f"{url} answered with no JSON ({error}).") from None
  raise ConnectionError(
    f"{url} can't be reached ({reason}, {_ATTEMPTS} attempts); is the server running?"
  )


def _text(contents: bytes) -> str:
  return base64.b64encode(contents).decode()
