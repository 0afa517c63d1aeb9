"""Gaussians in glTF, read and drawn by programs that know the extension; they are not ours."""

import base64
import json
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

from d4s_jax.formats import splats
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry import rotations
from d4s_jax.pipeline.clips import moment
from d4s_jax.pipeline.drawing import draw
from tests.browser import needs_browser, open_tab
from tests.formats import test_page
from tests.formats.test_splats import make, seen

NPM = shutil.which("npm")
MODULES = pathlib.Path(
  NPM
  and subprocess.run([NPM, "root", "-g"], capture_output=True, text=True).stdout.strip()
  or "none"
)
SIDE = 288
FLIP = np.diag([1.0, -1.0, -1.0])

_THREE = """
import { readFileSync } from "node:fs";
globalThis.self = globalThis;
const [modules, path] = process.argv.slice(2), loaders = `${modules}/three/examples/jsm/loaders`;
const { GLTFLoader } = await import(`${loaders}/GLTFLoader.js`);
const extension = await import(`${loaders}/GLTFGaussianSplatLoaderExtension.js`);
const loader = new GLTFLoader();
loader.register((parser) => new extension.GLTFGaussianSplatLoaderExtension(parser));
const { scene } = await loader.parseAsync(new Uint8Array(readFileSync(path)).buffer, "");
scene.updateMatrixWorld(true);
const [splats] = scene.children, found = { world: splats.matrixWorld.elements };
for (const [name, { array }] of Object.entries(splats.splatGeometry.attributes))
  found[name] = Array.from(name.startsWith("spherical") ? new Uint8Array(array.buffer) : array);
console.log(JSON.stringify(found));
"""


@pytest.mark.skipif(not (MODULES / "three").exists(), reason="three (npm) is not installed")
def test_three_reads_their_shape_place_and_colour(tmp_path):
  gaussians = make()
  splats.write_glb(tmp_path / "a.glb", gaussians)
  (tmp_path / "read.mjs").write_text(_THREE)
  command = ["node", tmp_path / "read.mjs", MODULES, tmp_path / "a.glb"]
  done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
  found = {name: np.array(x, np.float64) for name, x in json.loads(done.stdout).items()}
  want = seen(gaussians)
  count = len(want["means"])
  np.testing.assert_array_equal(found["world"].reshape(4, 4), np.eye(4))
  np.testing.assert_allclose(found["position"].reshape(-1, 3), want["means"] @ FLIP, atol=1e-6)
  spread = FLIP @ rotations.to_matrix(want["quaternions"]) * want["scales"][:, None]
  spread = (spread @ spread.swapaxes(1, 2))[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
  np.testing.assert_allclose(found["covariance"].reshape(-1, 6), spread, rtol=1e-4, atol=1e-6)
  colour = np.clip(0.5 + 0.28209479 * want["harmonics"][:, 0], 0, 1)
  colour = np.column_stack([colour, want["opacities"]])
  np.testing.assert_allclose(found["color"].reshape(-1, 4) / 255, colour, atol=0.51 / 255)
  # Three bytes of each of the three of degree 1, which go with y, z, x.
  rest = found["sphericalHarmonics1"].reshape(count, 12)[:, :9].reshape(count, 3, 3)
  turned = want["harmonics"][:, 1:] * np.array([-1, -1, 1])[:, None]
  np.testing.assert_allclose((rest - 128) / 128, np.clip(turned, -1, 127 / 128), atol=0.51 / 128)


_BABYLON = """<!doctype html><body style="margin: 0"><canvas id="canvas"></canvas>
<script src="{core}"></script><script src="{loaders}"></script>
<script>
window.drawn = async ({{ glb, eye, target, up, fov, side }}) => {{
  const canvas = document.getElementById("canvas");
  const engine = new BABYLON.Engine(canvas, false, {{ preserveDrawingBuffer: true }});
  engine.setSize(side, side);
  const scene = new BABYLON.Scene(engine), vector = (x) => new BABYLON.Vector3(...x);
  scene.useRightHandedSystem = true;
  scene.clearColor = new BABYLON.Color4(0, 0, 0, 1);
  await BABYLON.ImportMeshAsync(`data:;base64,${{glb}}`, scene, {{ pluginExtension: ".glb" }});
  const camera = new BABYLON.FreeCamera("camera", vector(eye), scene);
  [camera.minZ, camera.fov, camera.upVector] = [0.01, fov, vector(up)];
  camera.setTarget(vector(target));
  const kinds = scene.meshes.map((mesh) => mesh.getClassName());
  for (let i = 0; i < 20; i++) {{  // It sorts beside.
    scene.render();
    await new Promise((done) => setTimeout(done, 100));
  }}
  const pixels = await engine.readPixels(0, 0, side, side);
  return [kinds, Array.from(pixels)];
}};
</script>"""


@needs_browser
@pytest.mark.skipif(
  not (MODULES / "babylonjs-loaders").exists(), reason="babylonjs-loaders (npm) is not installed"
)
def test_babylon_draws_what_the_renderer_draws(tmp_path):
  dynamic, metadata = test_page.make()
  splats.write_glb(tmp_path / "a.glb", moment(dynamic, 0.6))
  camera = pinhole.resize(metadata.cameras[np.array([4])], SIDE, SIDE)
  pose = np.asarray(camera.world_from_camera)[0]
  asked = {
    "glb": base64.b64encode((tmp_path / "a.glb").read_bytes()).decode(),
    "eye": (FLIP @ pose[:3, 3]).tolist(),
    "target": (FLIP @ (pose[:3, 3] + pose[:3, 2])).tolist(),
    "up": (FLIP @ -pose[:3, 1]).tolist(),
    "fov": float(2 * np.arctan(SIDE / 2 / camera.intrinsics[0, 1, 1])),
    "side": SIDE,
  }
  core = MODULES / "babylonjs" / "babylon.js"
  loaders = MODULES / "babylonjs-loaders" / "babylonjs.loaders.js"
  html = _BABYLON.format(core=core.as_uri(), loaders=loaders.as_uri())
  (tmp_path / "a.html").write_text(html)
  with open_tab((tmp_path / "a.html").as_uri(), tmp_path) as tab:
    tab.wait("window.drawn && window.BABYLON")
    kinds, pixels = tab.run(f"drawn({json.dumps(asked)})")
  assert "GaussianSplattingMesh" in kinds
  found = np.reshape(pixels, (SIDE, SIDE, 4))[::-1, :, :3]
  want = 255 * np.clip(draw(dynamic, camera, np.float32([0.6]), "").image[0], 0, 1)
  error, mirrored, upside = (np.abs(x - want).mean() for x in (found, found[:, ::-1], found[::-1]))
  assert error < 3 and min(mirrored, upside) > 20
