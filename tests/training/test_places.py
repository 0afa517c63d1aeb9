"""Runs in folders, and in a bucket of an emulator of Google Cloud Storage."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from d4s_jax.training import places

ROOT = pathlib.Path(__file__).parents[2]

SERVER = """
import sys
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import create_server

download = objects.download

def with_generation(request, response, storage, *args, **kwargs):
  # Google tells the generation of what it sends, and TensorStore writes on condition of it.
  name = request.params["bucket_name"], request.params["object_id"]
  download(request, response, storage, *args, **kwargs)
  if int(response.status) in (200, 206):
    response["x-goog-generation"] = storage.get_file_obj(*name)["generation"]

objects.download = with_generation
create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
"""

RUN = """
import pathlib
import jax, numpy as np
from d4s_jax.training import checkpoint, places, recovery, run_folder
from tests.training.test_checkpoint import PARAMS, make_state
from tests.training.test_run_folder import CONFIG, DATA

run = places.place("gs://bucket/run")
assert not places.is_local(run) and not run_folder.is_resumed(run)
run_folder.write_config(run, CONFIG, DATA)
name = run_folder.identity(run)
files = {"spiece.model": b"pieces"}
run_folder.write_tokenizer(run, files)
saved = checkpoint.Checkpoints(run, keep=2)
for step in (1, 2, 3):
  saved.save(make_state(step))
  saved.wait()
saved.close()
assert checkpoint.whole_steps(run) == [2, 3] and run_folder.is_resumed(run)
tokenized = {"backbone": {"tokenizer": "gone"}}
assert run_folder.read_tokenizer(run, tokenized) == files
run_folder.write_config(run, CONFIG | {"steps": 20}, DATA)
assert run_folder.identity(run) == name
try:
  run_folder.write_config(run, CONFIG | {"seed": 1}, DATA)
  raise AssertionError("another configuration")
except checkpoint.CheckpointError as error:
  assert "seed: saved 0, now 1" in str(error)
jax.tree.map(
  np.testing.assert_array_equal, recovery.newest(run, None, make_state(0)), make_state(3)
)
# A damaged one goes aside, here too.
(run / "checkpoints" / "3" / "model" / "manifest.ocdbt").write_bytes(b"")
state = recovery.newest(run, None, make_state(0))
jax.tree.map(np.testing.assert_array_equal, state, make_state(2))
assert checkpoint.whole_steps(run) == [2]
assert [x.name[:2] for x in (run / "damaged").iterdir()] == ["3-"]
params, step = checkpoint.read_model(run, jax.eval_shape(lambda: PARAMS))
assert step == 2
# Logs go there and come back on another host.
folder = places.on_host(run)
(folder / "metrics.jsonl").write_text('{}\\n')
(folder / "samples").mkdir()
(folder / "samples" / "a.mp4").write_bytes(b"video")
places.publish(folder, run)
(folder / "metrics.jsonl").unlink()
assert places.on_host(run) == folder
assert folder.parts[:2] == ("runs", ".gs")
assert (folder / "metrics.jsonl").read_text() == '{}\\n'
assert (run / "samples" / "a.mp4").read_bytes() == b"video"
"""


def test_a_run_is_kept_in_a_bucket(tmp_path):
  pytest.importorskip("gcsfs")
  pytest.importorskip("gcp_storage_emulator")
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  address = f"http://localhost:{port}"
  environment = os.environ | {
    **{"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address},
    **{"GOOGLE_CLOUD_PROJECT": "test", "JAX_PLATFORMS": "cpu"},
    "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
  }
  server = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stderr=subprocess.DEVNULL)
  try:
    _wait_for(port)
    done = subprocess.run(
      [sys.executable, "-c", RUN],
      env=environment,
      cwd=tmp_path,
      capture_output=True,
      text=True,
      timeout=600,
    )
  finally:
    server.terminate()
    server.wait()
  assert done.returncode == 0, done.stderr[-3000:]


def _wait_for(port):
  for _ in range(1200):
    with socket.socket() as knock:
      knock.settimeout(0.2)
      if not knock.connect_ex(("localhost", port)):
        return
    time.sleep(0.1)
  raise AssertionError("the emulator does not answer")


def test_folders_are_what_they_were(tmp_path):
  folder = places.place(str(tmp_path / "run"))
  assert folder == tmp_path / "run" and places.is_local(folder)
  assert places.on_host(folder) is folder
  places.publish(folder, folder)


@pytest.mark.parametrize("address", ["s3://bucket/run", "ftp://host/run"])
def test_other_addresses_are_refused(address):
  with pytest.raises(ValueError, match="can't keep a run; expected a folder or gs://BUCKET/NAME"):
    places.place(address)


def test_a_bucket_without_its_package_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  with pytest.raises(ValueError, match=r"needs the package gcsfs: pip install"):
    places.place("gs://bucket/run")
