"""What is answered over HTTP: its fields, and the refusals that OpenAPI describes."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from d4s_jax.serving.jobs import STATES


class Problem(BaseModel):
  """Why a request was refused."""

  detail: str


class Progress(BaseModel):
  """How far a job is."""

  state: Annotated[str, Field(json_schema_extra={"enum": list(STATES)})]
  what: str = Field(description="What is being done, or why it failed.")
  done: int = Field(description="How much of that is done.")
  total: int = Field(description="Of how much; 0 where that is not known.")


class Status(Progress):
  """A job."""

  id: str
  warnings: list[str] = Field(
    description="What is probably wrong with the camera file; what of a long prompt is left out."
  )
  before: int | None = Field(description="Jobs that come first, while it waits.")
  files: dict[str, str] = Field(description="Results: where to get each of them.")
  viewer: str | None = Field(description="Page that shows the scene.")


class About(BaseModel):
  """What is served."""

  version: str
  about: dict[str, Any] = Field(description="The models.")
  trajectories: dict[str, list[list[float]]] = Field(
    description="Names of paths, and where they lead: metres right, down and ahead."
  )
  most_bytes: int = Field(description="Of a photograph.")
  waiting: int = Field(description="Jobs that wait now.")


REFUSALS: dict[int | str, dict[str, Any]] = {
  401: {"model": Problem, "description": "The token is missing."},
  403: {"model": Problem, "description": "Not for pages of other places."},
  422: {"model": Problem, "description": "Something in it can't be used."},
}
UNKNOWN: dict[int | str, dict[str, Any]] = {
  404: {"model": Problem, "description": "No such job, or its time is over."}
}
CROWDED: dict[int | str, dict[str, Any]] = {
  202: {
    "links": {
      name: {"operationId": name, "parameters": {"identity": "$response.body#/id"}}
      for name in ("look", "events", "cancel")
    }
  },
  400: {"model": Problem, "description": "No form."},
  413: {"model": Problem, "description": "Too large."},
  503: {"model": Problem, "description": "Too many jobs wait; Retry-After says when to come."},
}
