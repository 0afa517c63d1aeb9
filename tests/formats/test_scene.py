import dataclasses
import json
import pathlib
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from d4s_jax.formats import scene
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry import deformation, rotations, trajectories
from d4s_jax.types import Cameras, DynamicGaussians


def gaussians(count=6, times=3, seed=0) -> DynamicGaussians:
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  change = deformation.identity(times, count, xp=np) + 0.2 * normal(times, count, 10)
  change[..., 3:7] = rotations.normalize(change[..., 3:7])
  return DynamicGaussians(
    means=jnp.asarray(normal(count, 3)),
    quaternions=rotations.normalize(normal(count, 4)),
    raw_scales=normal(count, 3),
    footprints=np.abs(normal(count)),
    opacities=rng.uniform(size=count).astype(np.float32),
    harmonics=normal(count, 4, 3),
    times=np.linspace(0, 1, times, dtype=np.float32),
    deformation=change,
  )


def metadata(frames=3, **changes) -> scene.SceneMetadata:
  cameras = Cameras(
    world_from_camera=trajectories.trajectory("orbit", frames),
    intrinsics=np.tile(pinhole.intrinsics_from_fov(60, 48, 64), (frames, 1, 1)),
    height=48,
    width=64,
  )
  fields = {
    "cameras": cameras,
    "times": np.linspace(0, 1, frames, dtype=np.float32),
    "prompt": "a cat — “leaping”",
    "package_version": "0.1.0",
    "scale": 1.5,
    "seed": 7,
    "checkpoint": "joint/1000",
    "config_hash": "ab12",
  }
  return scene.SceneMetadata(**fields | changes)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  scene.write_scene(tmp_path / "scene", gaussians(), metadata())
  return tmp_path / "scene"


def snapshot(folder):
  return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def test_round_trip(folder):
  dynamic, described = scene.read_scene(folder)
  for field in dataclasses.fields(DynamicGaussians):
    read, written = getattr(dynamic, field.name), getattr(gaussians(), field.name)
    assert isinstance(read, jnp.ndarray)
    np.testing.assert_array_equal(read, written)
  expected = metadata()
  for name in ("prompt", "package_version", "scale", "seed", "checkpoint", "config_hash"):
    assert getattr(described, name) == getattr(expected, name)
  np.testing.assert_allclose(described.times, expected.times)
  assert (described.cameras.height, described.cameras.width) == (48, 64)
  for name in ("world_from_camera", "intrinsics"):
    np.testing.assert_allclose(
      getattr(described.cameras, name), getattr(expected.cameras, name), atol=1e-6
    )
  assert sorted(snapshot(folder)) == ["scene.json", "scene.safetensors"]
  assert [entry.name for entry in folder.parent.iterdir()] == ["scene"]


def test_what_was_not_known_stays_unknown(tmp_path):
  scene.write_scene(
    tmp_path / "a" / "b", gaussians(), metadata(seed=None, checkpoint=None, config_hash=None)
  )
  _, described = scene.read_scene(tmp_path / "a" / "b")
  assert (described.seed, described.checkpoint, described.config_hash) == (None, None, None)


def test_replacing_takes_the_old_pictures_away_and_keeps_foreign_files(folder):
  (folder / "video.mp4").write_text("of the old scene")
  (folder / "notes.txt").write_text("mine")
  scene.write_scene(folder, gaussians(count=9), metadata(prompt="new"))
  dynamic, described = scene.read_scene(folder)
  assert dynamic.means.shape == (9, 3) and described.prompt == "new"
  assert sorted(snapshot(folder)) == ["notes.txt", "scene.json", "scene.safetensors"]
  assert [entry.name for entry in folder.parent.iterdir()] == ["scene"]


def test_an_empty_folder_is_filled_and_others_are_refused(tmp_path):
  (tmp_path / "empty").mkdir()
  scene.write_scene(tmp_path / "empty", gaussians(), metadata())
  scene.read_scene(tmp_path / "empty")
  (tmp_path / "home").mkdir()
  (tmp_path / "home" / "thesis.txt").write_text("years of work")
  (tmp_path / "file").write_text("x")
  for name in ("home", "file"):
    with pytest.raises(FileExistsError, match=f"{name} exists and is not a scene"):
      scene.write_scene(tmp_path / name, gaussians(), metadata())
    with pytest.raises(FileExistsError):
      scene.check_output(tmp_path / name)
  assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"
  scene.check_output(tmp_path / "new")


@pytest.mark.parametrize("step", ["save", "_exchange"])
def test_a_failure_keeps_the_old_scene(folder, monkeypatch, step):
  before = snapshot(folder)

  def fail(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(scene, step, fail)
  with pytest.raises(OSError, match="No space left"):
    scene.write_scene(folder, gaussians(seed=1), metadata())
  assert snapshot(folder) == before
  assert [entry.name for entry in folder.parent.iterdir()] == ["scene"]


def test_a_failing_rename_puts_the_old_scene_back(folder, monkeypatch):
  before = snapshot(folder)
  rename = pathlib.Path.rename
  calls = []

  def second_fails(self, target):
    calls.append(target)
    if len(calls) == 2:
      raise PermissionError("denied")
    return rename(self, target)

  monkeypatch.setattr(pathlib.Path, "rename", second_fails)
  with pytest.raises(PermissionError):
    scene.write_scene(folder, gaussians(seed=1), metadata())
  assert len(calls) == 3 and snapshot(folder) == before


def replaced(**changes):
  return dataclasses.replace(gaussians(), **changes)


BAD_SCENES = {
  "NaN": (replaced(means=np.full((6, 3), np.nan)), "means holds NaN"),
  "a batch": (replaced(means=np.zeros((2, 6, 3))), r"means has shape \[2, 6, 3\], not \[n, 3\]"),
  "disagreement": (
    replaced(opacities=np.zeros(5), footprints=np.zeros(4)),
    r"footprints has shape \[4\], not \[n=6\]; opacities has shape \[5\], not \[n=6\]",
  ),
  "odd harmonics": (replaced(harmonics=np.zeros((6, 5, 3))), "5 coefficients, not .1, 4, 9, 16."),
  "opacity": (replaced(opacities=np.full(6, 1.5)), r"opacities are outside \[0, 1\]"),
  "falling times": (replaced(times=np.array([0, 0.6, 0.5])), "times do not rise"),
  "late times": (replaced(times=np.array([0, 1, 2.0])), "times do not rise within"),
}


@pytest.mark.parametrize("name", BAD_SCENES)
def test_a_senseless_scene_is_not_written(tmp_path, name):
  dynamic, message = BAD_SCENES[name]
  with pytest.raises(ValueError, match=message):
    scene.write_scene(tmp_path / "scene", dynamic, metadata())
  assert not list(tmp_path.iterdir())


def nan_camera():
  cameras = metadata().cameras
  return dataclasses.replace(cameras, world_from_camera=cameras.world_from_camera * np.nan)


BAD_METADATA = {
  "NaN in poses": ({"cameras": nan_camera()}, r"frames\[0\].world_from_camera.*all finite"),
  "a scale of zero": ({"scale": 0}, "scale: 0.0; expected a finite number from"),
  "a negative seed": ({"seed": -1}, "seed: -1; expected a whole number"),
  "a long prompt": ({"prompt": "x" * 30_000}, "at most 20000 characters"),
  "times beyond the clip": ({"times": np.array([0, 1, 2.0])}, r"times outside \[0, 1\]"),
}


@pytest.mark.parametrize("name", BAD_METADATA)
def test_senseless_metadata_is_not_written(tmp_path, name):
  changes, message = BAD_METADATA[name]
  with pytest.raises(ValueError, match=message):
    scene.write_scene(tmp_path / "scene", gaussians(), metadata(**changes))
  assert not list(tmp_path.iterdir())


def first_pose(value):
  def change(top):
    top["trajectory"]["frames"][0]["world_from_camera"] = value

  return change


BAD_JSON = {
  "lens": (
    lambda x: x["trajectory"]["frames"][1]["intrinsics"][0].__setitem__(0, 1e308),
    "scene.json: trajectory: frame 1 has focal lengths .* expected none beyond 1e.06",
  ),
  "far": (
    lambda x: x["trajectory"]["frames"][2]["world_from_camera"][0].__setitem__(3, 1e308),
    "scene.json: trajectory: frame 2 is 1e.308 units from the origin",
  ),
  "the future": (lambda t: t.update(version=2, new=1), "version 2, but .* up to 1; upgrade it"),
  "an unknown key": (lambda t: t.update(_target_="os.system"), "unknown '_target_'"),
  "unknown provenance": (lambda t: t["provenance"].update(code=1), "provenance: unknown 'code'"),
  "no trajectory": (lambda t: t.pop("trajectory"), "missing trajectory"),
  "no times": (lambda t: [f.pop("time") for f in t["trajectory"]["frames"]], "without time"),
  "a NaN pose": (first_pose([[float("nan")] * 4] * 4), "NaN is no number"),
  "no rotation": (first_pose(np.diag([3.0, 1, 1, 1]).tolist()), r"frames\[0\].*not a rotation"),
  "a list": (lambda t: t.update(provenance=[]), "provenance: a list of 0; expected an object"),
  "a long prompt": (lambda t: t.update(prompt="x" * 30_000), "at most 20000 characters"),
  "a prompt of numbers": (lambda t: t.update(prompt=3), "prompt: 3; expected a text"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_hostile_json_is_refused(folder, name):
  change, message = BAD_JSON[name]
  top = json.loads((folder / "scene.json").read_text())
  change(top)
  (folder / "scene.json").write_text(json.dumps(top))
  with pytest.raises(ValueError, match=message):
    scene.read_scene(folder)


def test_missing_and_misshapen_arrays_are_listed_at_once(folder):
  arrays = load_file(folder / "scene.safetensors")
  del arrays["opacities"]
  arrays["quaternions"] = arrays["quaternions"][:, :3].copy()
  arrays["deformation"] = arrays["deformation"][:, :4].copy()
  arrays["times"] = arrays["times"].astype(np.float64)
  arrays["payload"] = np.zeros(3, np.float32)
  save_file(arrays, folder / "scene.safetensors")
  with pytest.raises(ValueError) as error:
    scene.read_scene(folder)
  for problem in (
    "opacities is missing",
    "quaternions has shape [6, 3], not [n=6, 4]",
    "deformation has shape [3, 4, 10], not [t=3, n=6, 10]",
    "times has type F64, not F32",
    "'payload' is unknown",
  ):
    assert problem in str(error.value)


def header(description: dict) -> bytes:
  encoded = json.dumps(description).encode()
  return struct.pack("<Q", len(encoded)) + encoded


BIG = {"dtype": "F32", "shape": [10**9, 3], "data_offsets": [0, 12 * 10**9]}

BAD_ARRAYS = {
  "truncated": lambda whole: whole[: len(whole) // 2],
  "empty": lambda whole: b"",
  "a pickle": lambda whole: b"\x80\x04\x95" + bytes(100),
  "a header beyond the file": lambda whole: struct.pack("<Q", 2**60) + whole[8:],
  "a header of garbage": lambda whole: whole[:8] + bytes(len(whole) - 8),
  "arrays beyond the file": lambda whole: header({"means": BIG}) + bytes(64),
  "overlapping arrays": lambda whole: (
    header({n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in ("a", "b")})
    + bytes(16)
  ),
  "a negative size": lambda whole: (
    header({"means": {"dtype": "F32", "shape": [-1, 3], "data_offsets": [0, 16]}}) + bytes(16)
  ),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_hostile_arrays_are_refused(folder, name):
  path = folder / "scene.safetensors"
  path.write_bytes(BAD_ARRAYS[name](path.read_bytes()))
  with pytest.raises(ValueError, match="is truncated or no safetensors file"):
    scene.read_scene(folder)


def test_values_are_checked_when_read(folder):
  arrays = load_file(folder / "scene.safetensors")
  save_file(arrays | {"means": arrays["means"] * np.nan}, folder / "scene.safetensors")
  with pytest.raises(ValueError, match="means holds NaN"):
    scene.read_scene(folder)


def test_missing_parts_are_named(folder, tmp_path):
  with pytest.raises(FileNotFoundError, match="No scene at .*nowhere"):
    scene.read_scene(tmp_path / "nowhere")
  (folder / "scene.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match="No scene.safetensors in .*incomplete"):
    scene.read_scene(folder)
