"""The HTTP interface; FastAPI writes its OpenAPI description from what is here."""

import asyncio
import contextlib
import dataclasses
import json
import pathlib
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Header, HTTPException, Path, Security, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.datastructures import UploadFile as Upload

import d4s_jax
from d4s_jax.geometry.cameras import FOV_RANGE
from d4s_jax.pipeline import progress
from d4s_jax.serving import answers
from d4s_jax.serving.guard import Guard
from d4s_jax.serving.jobs import FullError, Job, Jobs, Maker

VIEWER = "viewer.html"
_PAGE = pathlib.Path(__file__).parent / "page.html"
_PROMPT = "a scene with 4K ultra HD, realistic tone"
_MOST_PROMPT = 2000
_MOST_SEED = 2**32 - 1
# Seconds between signs of life in a stream of events.
_PATIENCE = 15.0
# Seconds after which one who was refused may come back.
_RETRY = 5
# What is meant as a name, and is none of a file's texts.
_NAME = re.compile(r"\w+(:[^\n{\[]*)?", re.ASCII)
# Photographs that are decoded at a time: each takes 12 bytes a pixel.
_DECODERS = 2
# What a page of ours may do: what lies in it, and talk to where it came from.
_POLICY = (
  "default-src 'none'; script-src 'unsafe-inline' blob:; worker-src blob:;"
  " style-src 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob:;"
  " connect-src 'self'; form-action 'none'; frame-ancestors 'none'"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offer:
  """What is served, and within which limits.

  Attributes:
    take: (image file, trajectory's name or file, prompt, seed, field of view) -> order; raises
      ValueError for what can't be used. Called in threads.
    make: makes an order.
    about: what clients may want to know of the models.
    trajectories: names of camera paths, and the positions that each goes through [f 3], metres
      right, down and ahead.
    most_bytes: of a photograph.
    waiting: jobs that may wait.
    kept: results that are kept.
    keep_seconds: for how long.
    token: that every request must bring; None for none.
    local: serve names of this machine alone.
  """

  take: Callable[[pathlib.Path, str, str, int, float | None], Any]
  make: Maker
  about: dict[str, Any]
  trajectories: Mapping[str, Sequence[Sequence[float]]]
  most_bytes: int = 16 * 2**20
  waiting: int = 100
  kept: int = 50
  keep_seconds: float = 3600.0
  token: str | None = None
  local: bool = True


_Identity = Annotated[str, Path(pattern="^[A-Za-z0-9_-]{16}$")]


def build(offer: Offer) -> FastAPI:
  """The application; its results lie in a temporary folder that goes with it."""

  @contextlib.asynccontextmanager
  async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with tempfile.TemporaryDirectory(prefix="d4s_jax-serve-") as folder:
      jobs = Jobs(
        offer.make,
        pathlib.Path(folder),
        waiting=offer.waiting,
        kept=offer.kept,
        keep_seconds=offer.keep_seconds,
      )
      app.state.jobs, app.state.decoders = jobs, asyncio.Semaphore(_DECODERS)
      worker = asyncio.create_task(jobs.work())
      try:
        yield
      finally:
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
          await worker

  app = FastAPI(
    title="d4s_jax",
    version=d4s_jax.__version__,
    description="One photograph, a camera path and a prompt in; a dynamic 3D scene out.",
    lifespan=lifespan,
    docs_url=None,  # its scripts come from elsewhere
    redoc_url=None,
    responses=answers.REFUSALS,
    # Described here; the guard asks for it.
    dependencies=[Security(HTTPBearer(auto_error=False))] if offer.token else [],
    generate_unique_id_function=lambda route: route.name,
  )
  app.add_middleware(Guard, most_bytes=offer.most_bytes, token=offer.token, local=offer.local)
  app.add_exception_handler(RequestValidationError, _explain)
  _routes(app, offer)
  return app


def _routes(app: FastAPI, offer: Offer) -> None:
  def jobs() -> Jobs:
    return app.state.jobs

  def known(identity: str) -> Job:
    job = jobs().find(identity)
    if job is None:
      raise HTTPException(404, "No such job, or its time is over.")
    return job

  def status(job: Job) -> answers.Status:
    base = f"/jobs/{job.identity}/files"
    return answers.Status(
      **job.events[-1],
      id=job.identity,
      warnings=list(job.warnings),
      before=jobs().place(job),
      files={name: f"{base}/{name}" for name in job.files},
      viewer=f"{base}/{VIEWER}" if VIEWER in job.files else None,
    )

  @app.get("/", include_in_schema=False)
  async def page() -> HTMLResponse:
    return HTMLResponse(_PAGE.read_text(), headers={"Content-Security-Policy": _POLICY})

  @app.get("/about")
  async def about() -> answers.About:
    """What is served."""
    return answers.About(
      version=d4s_jax.__version__,
      about=offer.about,
      trajectories={name: list(map(list, way)) for name, way in offer.trajectories.items()},
      most_bytes=offer.most_bytes,
      waiting=len(jobs()),
    )

  @app.post("/jobs", status_code=202, responses=answers.CROWDED)
  async def submit(
    image: Annotated[UploadFile, File(description="A photograph.")],
    trajectory: Annotated[
      str,
      Form(
        description="A name of /about, with parameters (orbit:degrees=40,radius=3) or without, or"
        " the text of a camera file.",
        max_length=2**20,
      ),
    ] = "spiral",
    prompt: Annotated[
      str, Form(description="What is seen, and what happens.", max_length=_MOST_PROMPT)
    ] = _PROMPT,
    seed: Annotated[int, Form(ge=0, le=_MOST_SEED, description="Of the noise.")] = 0,
    fov: Annotated[
      float,
      Form(
        ge=0,
        le=FOV_RANGE[1],
        description=f"Degrees that the photograph sees, {FOV_RANGE[0]} to {FOV_RANGE[1]}; 0 if"
        " nothing is known.",
      ),
    ] = 0.0,
  ) -> answers.Status:
    """Orders a scene."""
    try:
      jobs().check_room()
      async with app.state.decoders:
        taken = await asyncio.to_thread(_take, offer, image, trajectory, prompt, seed, fov or None)
      return status(jobs().submit(*taken))
    except FullError as error:
      raise HTTPException(503, str(error), {"Retry-After": str(_RETRY)}) from error
    except ValueError as error:
      raise HTTPException(422, " ".join(str(error).split())) from error

  @app.get("/jobs/{identity}", responses=answers.UNKNOWN)
  async def look(identity: _Identity) -> answers.Status:
    """How far a job is, and what came out of it."""
    return status(known(identity))

  @app.delete("/jobs/{identity}", status_code=204, responses=answers.UNKNOWN)
  async def cancel(identity: _Identity) -> None:
    """Forgets a job and its results; one that waits or runs is cancelled, at its next step."""
    jobs().cancel(known(identity))

  @app.get(
    "/jobs/{identity}/events",
    response_class=StreamingResponse,
    responses=answers.UNKNOWN | {200: {"content": {"text/event-stream": {}}}},
  )
  async def events(
    identity: _Identity,
    last: Annotated[str, Header(alias="Last-Event-ID", pattern="^[0-9]{0,9}$")] = "",
  ) -> StreamingResponse:
    """Server-sent events: each the progress of a job as JSON, the past ones first."""
    job = known(identity)

    async def stream() -> AsyncIterator[str]:
      async for number, event in job.watch(int(last) + 1 if last else 0, _PATIENCE):
        yield ":\n\n" if event is None else f"id: {number}\ndata: {json.dumps(event)}\n\n"

    headers = {"Cache-Control": "no-store"}
    return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)

  @app.get(
    "/jobs/{identity}/files/{name}",
    response_class=FileResponse,
    responses=answers.UNKNOWN | {200: {"content": {"application/octet-stream": {}}}},
  )
  async def result(identity: _Identity, name: Annotated[str, Path(max_length=100)]) -> FileResponse:
    """One of the results."""
    job = known(identity)
    if name not in job.files:
      raise HTTPException(404, "No such result.")
    headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": _POLICY}
    return FileResponse(job.folder / name, headers=headers)


def _take(
  offer: Offer, image: Upload, trajectory: str, prompt: str, seed: int, fov: float | None
) -> tuple[Any, tuple[str, ...]]:
  """In a thread: checks an order; what was uploaded lies in files meanwhile.

  Returns:
    The order, and what was said of it.
  """
  said: list[str] = []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    photo = folder / "photograph"
    photo.write_bytes(image.file.read())
    # Never a path of the client's: a name, with parameters or without, or the contents of a file.
    if trajectory.partition(":")[0] not in offer.trajectories:
      if _NAME.fullmatch(trajectory):
        names = ", ".join(offer.trajectories)
        raise ValueError(
          f"Unknown trajectory {trajectory!r:.80}; expected one of {names}, or the text of a camera"
          " file."
        )
      (folder / "trajectory").write_text(trajectory, encoding="utf-8", errors="replace")
      trajectory = str(folder / "trajectory")
    try:
      with progress.listening(lambda text, done, total: said.append(text)):
        return offer.take(photo, trajectory, prompt, seed, fov), tuple(said)
    except (ValueError, OSError) as error:
      text = str(error).replace(f"{folder}/", "the ").replace(str(folder), "")
      raise ValueError(text) from error


async def _explain(request: Any, error: Any) -> JSONResponse:
  """Refusals have one shape: a line of text."""
  del request
  first = error.errors()[0]
  place = ".".join(str(part) for part in first["loc"][1:]) or "the request"
  return JSONResponse({"detail": f"{place}: {first['msg']}"}, 422)
