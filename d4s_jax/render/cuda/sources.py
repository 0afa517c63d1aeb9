"""What the backend is compiled from: gsplat's installed kernels and the bridge around them.

gsplat's wheel carries its CUDA sources. They are found without importing gsplat, whose import looks
for a CUDA toolkit and for torch.
"""

import hashlib
import importlib.metadata
import importlib.util
import pathlib
import re

GSPLAT_VERSION = "1.5.3"
INSTALL = f"pip install gsplat=={GSPLAT_VERSION}"

# Our handlers: third_party/gsplat_ffi, through a link, so that wheels carry it too.
BRIDGE = pathlib.Path(__file__).parent / "bridge"
HANDLERS = ("project", "intersect", "rasterize")

# Colour and depth.
CHANNELS = 4

_KERNELS = {
  "csrc/IntersectTile.cu": "ca321d5e1f2e7b48372bf428d1f2fe92a2115bccdb186b83c0725bc84095b015",
  "csrc/ProjectionEWA3DGSFused.cu": (
    "b8537134770e4e098d6d8616164a20d3bfe34dbf0c4c1dffee42f35cc3c3710e"
  ),
  "csrc/RasterizeToPixels3DGSBwd.cu": (
    "2848738467309afa7d277c692ae1a53643f0658a23a06f066b8eaa9daf67c455"
  ),
  "csrc/RasterizeToPixels3DGSFwd.cu": (
    "9bebdfcb347798d49d329aa3d295431c53b41308b81dd5d8f64721b1426ec7de"
  ),
}
_HEADERS = {
  "csrc/Intersect.h": "efcfa29d112b546929947d79383c311d68e69d3a937c434dc8a3222134097747",
  "csrc/Projection.h": "ae6c03ecb57467cec066d07573522a5d1d670c5c17b84f0317c623ac08813b89",
  "csrc/Rasterization.h": "f4af57565065f56a7479025796b4907b9c80c31b1e72467fae264db9a5d4c716",
  "include/Cameras.h": "091b9f506824d3b2a5102cca93589510a4f8154adc06245bc0afcaadd585b873",
  "include/Common.h": "d865c47346ced0830186b37f8abc0800c056114a78dd3cb87e0b5ff5c3a7cc73",
  "include/Utils.cuh": "e1a62dbd73fccfc8349abb87d7cc8eb25a03e120ea8dc838d1c5d322361245cd",
}
# The vector library that gsplat's wheel brings along: all of its headers in one hash.
_GLM = "csrc/third_party/glm"
_GLM_HASH = "c839e5d713855da4b626cc62e663e65f65223e361a73b37069af6a69cf7ca49b"

# gsplat instantiates its rasterizers for 19 numbers of channels, a line for each, and compiling
# those takes most of an hour.
_INSTANTIATION = re.compile(r"^__INS__\((\d+)\)$", re.MULTILINE)


def find_gsplat() -> pathlib.Path:
  """The folder of gsplat's CUDA sources, checked to be those that this package was written for.

  Raises:
    ValueError: gsplat is missing, of another version, or not as it was published.
  """
  spec = importlib.util.find_spec("gsplat")
  if spec is None or not spec.submodule_search_locations:
    raise ValueError(f"gsplat, whose kernels it compiles, is not installed. Run: {INSTALL}")
  version = importlib.metadata.version("gsplat")
  if version != GSPLAT_VERSION:
    raise ValueError(f"gsplat {version} is installed; expected {GSPLAT_VERSION}. Run: {INSTALL}")
  folder = pathlib.Path(spec.submodule_search_locations[0]) / "cuda"
  check(folder)
  return folder


def check(folder: pathlib.Path) -> None:
  """Compares the files that are compiled with gsplat's release.

  Raises:
    ValueError: one is missing or differs.
  """
  for name, expected in {**_KERNELS, **_HEADERS}.items():
    path = folder / name
    if not path.is_file():
      raise ValueError(f"{path} is missing. Run: {INSTALL} --force-reinstall --no-deps")
    _compare(path, _digest(path.read_bytes()), expected)
  _compare(folder / _GLM, _tree_digest(folder / _GLM / "glm"), _GLM_HASH)


def units(folder: pathlib.Path) -> dict[str, str]:
  """Name and text of each translation unit: gsplat's, unneeded channel numbers left out, and ours.

  Args:
    folder: what `find_gsplat` returns.
  """
  paths = [folder / name for name in _KERNELS]
  paths += [BRIDGE / f"{name}.cu" for name in HANDLERS]
  return {path.stem: f'#line 1 "{path}"\n{_one_instantiation(path.read_text())}' for path in paths}


def include_folders(folder: pathlib.Path, platform: str) -> list[pathlib.Path]:
  """Where the units find their headers; `platform` is "gpu" or "emulator"."""
  ours = [BRIDGE, BRIDGE / platform, BRIDGE / "torch_stand_in"]
  return [*ours, folder / "include", folder / "csrc", folder / _GLM]


def headers_digest(xla: pathlib.Path) -> str:
  """One hash of the bridge's headers and of XLA's, which are in the folder `xla`."""
  return _tree_digest(BRIDGE) + _tree_digest(xla / "xla" / "ffi")


def _one_instantiation(text):
  return _INSTANTIATION.sub(lambda line: line[0] if int(line[1]) == CHANNELS else "", text)


def _compare(path, actual, expected):
  if actual != expected:
    raise ValueError(
      f"{path} is not the file of gsplat {GSPLAT_VERSION} (SHA-256 {actual[:12]}..., expected"
      f" {expected[:12]}...). Run: {INSTALL} --force-reinstall --no-deps"
    )


def _digest(contents: bytes) -> str:
  return hashlib.sha256(contents).hexdigest()


def _tree_digest(folder: pathlib.Path) -> str:
  """A hash of the names and contents of all headers under a folder."""
  total = hashlib.sha256()
  paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
  for name in sorted(paths):
    if paths[name].suffix in (".h", ".hpp", ".inl", ".cuh"):
      total.update(name.encode() + b"\0" + paths[name].read_bytes())
  return total.hexdigest()
