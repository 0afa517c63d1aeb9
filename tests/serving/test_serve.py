"""The server with a maker of its own, over real connections."""

import asyncio
import concurrent.futures
import contextlib
import json
import pathlib
import threading
import time
import urllib.parse

import httpx
import numpy as np
import pytest

from d4s_jax.formats.images import write_image
from d4s_jax.pipeline import progress
from d4s_jax.serving import address as listening
from d4s_jax.serving import app, jobs

TOKEN = "a token of more than sixteen"

# Ahead, and half a metre up.
PATHS = {"spiral": [[0.0, -0.5 * x, 1.0 * x] for x in (0, 0.5, 1)]}


def take(image: pathlib.Path, trajectory, prompt, seed, fov):
  """Refuses what isn't a picture's beginning; the order is what was given."""
  if not image.read_bytes().startswith(b"\x89PNG"):
    raise ValueError(f"{image} is no picture")
  if pathlib.Path(trajectory).is_file():
    trajectory = pathlib.Path(trajectory).read_text()
  return {"trajectory": trajectory, "prompt": prompt, "seed": seed, "fov": fov}


def make(order, folder: pathlib.Path):
  """Writes the order; some prompts do bad things."""
  for name, error in (
    ("bad", ValueError(f"bad\nweather in {folder}/scene")),
    ("bug", KeyError("private")),
    ("exit", SystemExit("private")),
    ("disk", OSError(28, "full", "/private")),
  ):
    if order["prompt"] == name:
      raise error
  with progress.bar("work", 3, "step") as bar:
    for _ in range(3):
      time.sleep(1.0 if order["prompt"] == "slow" else 0.005)
      bar.update()
  (folder / "order.json").write_text(json.dumps(order))
  (folder / app.VIEWER).write_text("<p>viewer")


def offer(**changes):
  return app.Offer(
    **{"take": take, "make": make, "about": {"model": "fake"}, "trajectories": PATHS} | changes
  )


def served(**changes):
  """A running server of the maker above; yields its address."""
  return running(offer(**changes))


@contextlib.contextmanager
def running(offered):
  """A running server; yields its address."""
  bound = listening.bind("127.0.0.1", 0)
  server = listening.Server(app.build(offered))
  thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
  thread.start()
  while not server.started:
    assert thread.is_alive()
    time.sleep(0.01)
  try:
    yield listening.url(bound).removesuffix("/")
  finally:
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
  path = tmp_path_factory.mktemp("serving") / "photo.png"
  write_image(path, np.full((8, 8, 3), 0.5, np.float32))
  return path.read_bytes()


@pytest.fixture(scope="module")
def address():
  with served() as found:
    yield found


def order(address, picture, **fields):
  return httpx.post(f"{address}/jobs", files={"image": picture}, data=fields)


def events(address, identity, **headers):
  """All events of a job, until it ends."""
  found = []
  with httpx.stream("GET", f"{address}/jobs/{identity}/events", headers=headers) as stream:
    assert stream.headers["content-type"].startswith("text/event-stream")
    number = None
    for line in stream.iter_lines():
      if line.startswith("id: "):
        number = int(line[4:])
      if line.startswith("data: "):
        found.append((number, json.loads(line[6:])))
  return found


def ended(address, identity):
  events(address, identity)
  return httpx.get(f"{address}/jobs/{identity}").json()


def test_a_job_runs_from_order_to_results(address, picture):
  path = json.dumps({"version": 1})
  first = order(address, picture, prompt="a cat", seed="7", trajectory=path, fov="50")
  assert first.status_code == 202
  told = events(address, first.json()["id"])
  assert [number for number, _ in told] == list(range(len(told)))
  states = [event["state"] for _, event in told]
  assert states[0] == "queued" and states[-1] == "done" and "running" in states
  steps = [event["done"] for _, event in told if event["what"] == "work"]
  assert steps == [0, 1, 2, 3]
  status = httpx.get(f"{address}/jobs/{first.json()['id']}").json()
  made = httpx.get(address + status["files"]["order.json"]).json()
  assert made == {"trajectory": path, "prompt": "a cat", "seed": 7, "fov": 50.0}
  viewer = httpx.get(address + status["viewer"])
  assert viewer.text == "<p>viewer"
  assert "default-src 'none'" in viewer.headers["content-security-policy"]


def test_events_go_on_where_a_connection_broke(address, picture):
  identity = order(address, picture).json()["id"]
  told = events(address, identity)
  assert events(address, identity, **{"Last-Event-ID": "1"}) == told[2:]


REFUSED = {
  "no picture": ({"files": {"image": b"text"}}, 422, "the photograph is no picture"),
  "nothing": ({}, 422, "image: Field required"),
  "seed": ({"data": {"seed": "-1"}}, 422, "seed: Input should be greater"),
  "typo": ({"data": {"trajectory": "orbti:degrees=4"}}, 422,
    "Unknown trajectory 'orbti:degrees=4'; expected one of spiral, or the text"),
  "long prompt": ({"data": {"prompt": 3000 * "a"}}, 422, "prompt: String should have at most"),
  "field of view": ({"data": {"fov": "nan"}}, 422, "fov: Input should be"),
}  # fmt: skip


@pytest.mark.parametrize("wrong, code, message", REFUSED.values(), ids=REFUSED)
def test_bad_orders_are_refused(wrong, code, message, address, picture):
  files = {} if wrong == {} else {"image": picture}
  answer = httpx.post(f"{address}/jobs", **{"files": files} | wrong)
  assert answer.status_code == code
  assert message in answer.json()["detail"]
  assert "/tmp" not in answer.text


def test_a_named_path_keeps_its_parameters(address, picture):
  identity = order(address, picture, trajectory="spiral:turns=2,distance=0.3").json()["id"]
  status = ended(address, identity)
  made = httpx.get(address + status["files"]["order.json"]).json()
  assert made["trajectory"] == "spiral:turns=2,distance=0.3"


def test_a_path_on_the_server_is_no_trajectory(address, picture):
  identity = order(address, picture, trajectory="/etc/passwd").json()["id"]
  status = ended(address, identity)
  made = httpx.get(address + status["files"]["order.json"]).json()
  assert made["trajectory"] == "/etc/passwd"


def test_failures_stay_with_their_job(address, picture):
  prompts = ("bad", "bug", "exit", "disk", "fine")
  named = [order(address, picture, prompt=x).json()["id"] for x in prompts]
  bad, *others, fine = (ended(address, identity) for identity in named)
  assert (bad["state"], bad["what"]) == ("failed", "bad weather in the result/scene")
  for other in others:
    assert other["state"] == "failed" and "private" not in other["what"]
  assert fine["state"] == "done"
  assert bad["files"] == {} and bad["viewer"] is None


def test_jobs_are_cancelled_at_any_time(address, picture):
  done = ended(address, order(address, picture).json()["id"])
  running = order(address, picture, prompt="slow").json()["id"]
  waiting = order(address, picture).json()
  assert waiting["before"] == 0
  for identity in (waiting["id"], running):
    with httpx.stream("GET", f"{address}/jobs/{identity}/events") as stream:
      lines = stream.iter_lines()
      assert next(lines) == "id: 0"
      assert httpx.delete(f"{address}/jobs/{identity}").status_code == 204
      last = json.loads([x for x in lines if x.startswith("data: ")][-1][6:])
      # Not "cancelled: 1 of 3".
      assert last == {"state": "cancelled", "what": "cancelled", "done": 0, "total": 0}
    assert httpx.get(f"{address}/jobs/{identity}").status_code == 404
  # Of one that has ended, the results go.
  assert httpx.delete(f"{address}/jobs/{done['id']}").status_code == 204
  assert httpx.get(address + done["files"]["order.json"]).status_code == 404


def test_streams_of_events_end_with_the_server(picture, capsys):
  with concurrent.futures.ThreadPoolExecutor() as pool, served() as address:
    named = [order(address, picture, prompt="slow").json()["id"] for _ in range(2)]
    watched = [pool.submit(events, address, x) for x in named]
    while httpx.get(f"{address}/jobs/{named[0]}").json()["state"] == "queued":
      time.sleep(0.01)
    time.sleep(0.5)  # for both to be connected
  first, second = (x.result()[-1][1] for x in watched)
  # It may have noticed before its watcher did.
  assert first["state"] in ("running", "cancelled")
  assert (second["state"], second["what"]) == ("cancelled", "the server stops")
  assert "Stops: jobs are cancelled" in capsys.readouterr().err


def test_nothing_else_is_given_out(address, picture):
  identity = order(address, picture).json()["id"]
  ended(address, identity)
  for name in ("none", "..%2f..%2fetc%2fpasswd", "%2e%2e"):
    assert httpx.get(f"{address}/jobs/{identity}/files/{name}").status_code == 404
  assert httpx.get(f"{address}/jobs/{'A' * 16}").status_code == 404
  assert httpx.get(f"{address}/jobs/short").status_code == 422


def test_large_bodies_end_early(picture):
  with served(most_bytes=1000) as address:
    large = picture + bytes(2**21)
    assert order(address, large).status_code == 413

    def pieces():  # without a length in the header
      yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
      for _ in range(100):
        yield bytes(2**16)

    form = {"Content-Type": "multipart/form-data; boundary=x"}
    with contextlib.suppress(httpx.WriteError):
      answer = httpx.post(f"{address}/jobs", content=pieces(), headers=form)
      assert answer.status_code == 413
    assert order(address, picture).status_code == 202


def test_only_this_machine_and_its_own_pages_come_in(address, picture):
  assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 403
  assert httpx.get(address, headers={"Host": "127.0.0.1.evil.example:80"}).status_code == 403
  foreign = httpx.post(
    f"{address}/jobs", files={"image": picture}, headers={"Origin": "http://evil.example"}
  )
  assert foreign.status_code == 403
  asked = (
    *(("cross-site", "image", 403), ("cross-site", "document", 200)),
    *(("same-site", "iframe", 403), ("same-origin", "empty", 200)),
  )
  for site, kind, code in asked:
    fetched = {"Sec-Fetch-Site": site, "Sec-Fetch-Dest": kind}
    assert httpx.get(f"{address}/about", headers=fetched).status_code == code
  strange = httpx.post(f"{address}/jobs", headers={"Origin": "http://["})
  assert strange.status_code == 403
  own = httpx.post(f"{address}/jobs", files={"image": picture}, headers={"Origin": address})
  assert own.status_code == 202
  assert "drop" in httpx.get(address).text


def test_a_token_opens_the_door():
  with served(token=TOKEN, local=False) as address:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "d4s_jax_token=wrong"}):
      assert httpx.get(f"{address}/about", headers=headers).status_code == 401
    assert httpx.get(f"{address}/?token=wrong").status_code == 401
    assert httpx.get(f"{address}/openapi.json").status_code == 401
    bearer = {"Authorization": f"Bearer {TOKEN}", "Host": "example.org"}
    assert httpx.get(f"{address}/about", headers=bearer).json()["about"] == {"model": "fake"}
    with httpx.Client() as browser:
      opened = browser.get(f"{address}/", params={"token": TOKEN})
      assert (opened.status_code, opened.headers["location"]) == (303, "/")
      assert "HttpOnly" in opened.headers["set-cookie"]
      assert "SameSite=strict" in opened.headers["set-cookie"]
      assert "drop" in browser.get(f"{address}/").text


def test_cookies_of_others_and_signs_in_a_token_dont_matter():
  token = "ab+cd/ef==gh ij kl"
  quoted = urllib.parse.quote(token)
  with served(token=token, local=False) as address:
    for cookie in ('prefs={"a":1}', "a/b=1", "a b"):
      for headers in (
        {"Cookie": cookie, "Authorization": f"Bearer {token}"},
        {"Cookie": f'{cookie}; d4s_jax_token="{token}"'},
      ):
        assert httpx.get(f"{address}/about", headers=headers).status_code == 200
    # As forms write it, and as a person types it.
    for query in (quoted.replace("%20", "+"), quoted.replace("%2B", "+"), quoted):
      with httpx.Client(follow_redirects=True) as browser:
        assert "drop" in browser.get(f"{address}/?token={query}").text


def test_results_expire(picture, monkeypatch):
  with served(keep_seconds=0.0) as address:
    first = order(address, picture).json()["id"]
    events(address, first)
    order(address, picture)
    assert httpx.get(f"{address}/jobs/{first}").status_code == 404
  with served(kept=1) as address:
    named = []
    for grace in (60, 60, 0, 0):
      monkeypatch.setattr(jobs, "GRACE", grace)
      named.append(order(address, picture).json()["id"])
      files = ended(address, named[-1])["files"]
    codes = [httpx.get(f"{address}/jobs/{x}").status_code for x in named]
    # At the last order there were three.
    assert codes == [404, 404, 200, 200]
    assert httpx.get(address + files["order.json"]).status_code == 200


async def _insist(client, address, picture, number):
  """Orders until it is accepted, and returns what was made."""
  refused = 0
  while True:
    data = {"prompt": f"client {number}", "seed": str(number)}
    answer = await client.post(f"{address}/jobs", files={"image": picture}, data=data)
    if answer.status_code == 202:
      break
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
    refused += 1
    await asyncio.sleep(0.05)
  identity = answer.json()["id"]
  async with client.stream("GET", f"{address}/jobs/{identity}/events") as stream:
    lines = [line async for line in stream.aiter_lines() if line.startswith("data: ")]
  assert json.loads(lines[-1][6:])["state"] == "done"
  status = (await client.get(f"{address}/jobs/{identity}")).json()
  return (await client.get(address + status["files"]["order.json"])).json(), refused


def test_a_hundred_clients_lose_nothing(picture):
  async def all_of_them(address):
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:
      return await asyncio.gather(*(_insist(client, address, picture, n) for n in range(100)))

  with served(waiting=5, kept=10) as address:
    made = asyncio.run(all_of_them(address))
  assert [(x["prompt"], x["seed"]) for x, _ in made] == [(f"client {n}", n) for n in range(100)]
  assert sum(refused for _, refused in made) > 0
