"""What the marks survive and what they cost, on scenes of the shipped weights.

python tests/benchmarks/watermark.py --scenes scenes/cat scenes/astronaut [--unmarked]

The scenes are made with --nowatermark, so that what is measured is the mark alone. Every figure is
the decimal logarithm of the bound on the false-positive rate (-6: one in a million; 0: nothing),
the worst of the scenes. --unmarked looks for 200 wrong keys, which shows what the bound is worth.

If blind-watermark is installed, its 64 bits go through the same, at the strength that costs as much
as our mark of frames; its figures are the logarithm of the chance to guess as many bits.
"""

import argparse
import io
import math
import pathlib
import sys
import tempfile
from fractions import Fraction

import av
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.formats import scene, splat_colors  # noqa: E402
from d4s_jax.pipeline import drawing, shot  # noqa: E402
from d4s_jax.pipeline.exports import Export  # noqa: E402
from d4s_jax.watermark import frames, gaussians, keys  # noqa: E402

try:
  import blind_watermark

  blind_watermark.bw_notes.close()
except ImportError:
  blind_watermark = None

KEY = keys.PUBLIC
BITS = np.random.default_rng(0).random(64) < 0.5


def bytes_of(pictures):
  return (255 * np.clip(pictures, 0, 1) + 0.5).astype("u1")


def film(pictures, quality):
  """Through H.264 at a constant rate factor."""
  pixels, buffer = bytes_of(pictures), io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=Fraction(8), options={"crf": str(quality)})
    stream.height, stream.width = pixels.shape[1:3]
    stream.pix_fmt = "yuv420p"
    for image in pixels:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
    container.mux(stream.encode())
  buffer.seek(0)
  with av.open(buffer) as container:
    decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
  return np.stack(decoded).astype(np.float32) / 255


def still(pictures, kind, quality):
  """Through a format of pictures, one by one."""
  found = []
  for image in bytes_of(pictures):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, quality=quality)
    found.append(np.asarray(Image.open(buffer).convert("RGB"), np.float32) / 255)
  return np.stack(found)


def resize(pictures, share):
  height, width = (int(share * size) // 2 * 2 for size in pictures.shape[1:3])
  small = [Image.fromarray(x).resize((width, height)) for x in bytes_of(pictures)]
  return np.stack([np.asarray(x, np.float32) for x in small]) / 255


def crop(pictures, share):
  """Off the middle."""
  _, height, width, _ = pictures.shape
  rows, columns = int(share * height) // 2 * 2, int(share * width) // 2 * 2
  top, left = int((height - rows) * 0.37), int((width - columns) * 0.61)
  return pictures[:, top : top + rows, left : left + columns]


def turn(pictures, degrees):
  turned = [
    Image.fromarray(x).rotate(degrees, Image.Resampling.BICUBIC) for x in bytes_of(pictures)
  ]
  return np.stack([np.asarray(x, np.float32) for x in turned]) / 255


OF_FRAMES = {
  "untouched, 8 bits": lambda x: bytes_of(x).astype(np.float32) / 255,
  "one frame alone": lambda x: x[len(x) // 2 :][:1],
  "H.264 at CRF 18 (as we write)": lambda x: film(x, 18),
  "H.264 at CRF 23": lambda x: film(x, 23),
  "H.264 at CRF 28": lambda x: film(x, 28),
  "H.264 at CRF 33": lambda x: film(x, 33),
  "H.264 at CRF 38": lambda x: film(x, 38),
  "JPEG 90, every frame": lambda x: still(x, "JPEG", 90),
  "JPEG 50, every frame": lambda x: still(x, "JPEG", 50),
  "JPEG 50, one frame": lambda x: still(x[len(x) // 2 :][:1], "JPEG", 50),
  "WebP 80, every frame": lambda x: still(x, "WEBP", 80),
  "half the size": lambda x: resize(x, 0.5),
  "twice the size": lambda x: resize(x, 2),
  "0.6 of the size, CRF 28": lambda x: film(resize(x, 0.6), 28),
  "cropped to 3/4 of each side": lambda x: crop(x, 0.75),
  "cropped to half of each side": lambda x: crop(x, 0.5),
  "cropped to 3/4, CRF 28": lambda x: film(crop(x, 0.75), 28),
  "brightness +20%, +10": lambda x: np.clip(1.2 * x + 10 / 255, 0, 1),
  "noise of 5 of 255": lambda x: np.clip(x + _noise(x.shape, 5), 0, 1),
  "turned by 0.5 degrees": lambda x: turn(x, 0.5),
  "turned by 3 degrees": lambda x: turn(x, 3),
  "mirrored": lambda x: x[:, :, ::-1],
}


def _noise(shape, size):
  return np.random.default_rng(0).normal(0, size / 255, shape).astype(np.float32)


def _part(colors, share):
  return np.random.default_rng(0).permutation(colors)[: int(share * len(colors))]


OF_GAUSSIANS = {
  "untouched": lambda x: x,
  "another order": lambda x: _part(x, 1),
  "half of them, at random": lambda x: _part(x, 0.5),
  "a tenth of them": lambda x: _part(x, 0.1),
  "noise of 1 of 255 in colours": lambda x: x + _noise(x.shape, 1),
  "noise of 2 of 255": lambda x: x + _noise(x.shape, 2),
  "noise of 4 of 255": lambda x: x + _noise(x.shape, 4),
  "brighter by 10%": lambda x: 1.1 * x,
  "darker by 8 of 255": lambda x: x - 8 / 255,
  "brighter by 10%, and 8 of 255": lambda x: 1.1 * x + 8 / 255,
  "one channel by 10%": lambda x: x * [1, 1.1, 1],
  "half as many strangers among them": lambda x: np.concatenate(
    [x, np.random.default_rng(0).random((len(x) // 2, 3))]
  ),
}


def blind(share):
  """blind-watermark at a share of its own strength."""
  found = blind_watermark.WaterMark()
  found.bwm_core.d1, found.bwm_core.d2 = 36 * share, 20 * share
  return found


def embed(pictures, least):
  """The pictures with its bits, as strong as they may be for so many decibels, and the share."""
  for share in np.arange(1, 0, -0.05):
    marked = []
    for image in bytes_of(pictures):
      other = blind(share)
      other.read_img(img=np.ascontiguousarray(image[..., ::-1]))
      other.read_wm(BITS.copy(), mode="bit")
      marked.append(other.embed()[..., ::-1] / 255)
    shown = bytes_of(np.stack(marked)).astype(np.float32) / 255
    if psnr(shown, pictures) >= least:
      return shown, share
  raise ValueError(f"No strength of blind-watermark costs less than {least} dB.")


def guessed(pictures, share):
  """The logarithm of the chance to guess as many bits as it finds, over all pictures."""
  total = np.zeros(len(BITS))
  for image in bytes_of(pictures):
    other = blind(share)
    other.wm_size = len(BITS)
    image = np.ascontiguousarray(image[..., ::-1])
    total += other.extract_decrypt(other.bwm_core.extract(image, wm_shape=len(BITS)))
  right = int(((total / len(pictures) > 0.5) == BITS).sum())
  ways = sum(math.comb(len(BITS), k) for k in range(right, len(BITS) + 1))
  return math.log10(ways / 2 ** len(BITS))


EXPORTS = (".ply", ".glb", ".splat", ".spz", ".compressed.ply", ".sog")


def psnr(a, b):
  return -10 * np.log10(np.mean((np.asarray(a, np.float64) - b) ** 2))


def along(dynamic, metadata, name, count):
  """The scene along a path, at 256 pixels."""
  path = shot.camera_path(name, count)
  cameras = shot.through_scene(path, metadata.cameras[0])
  return np.clip(drawing.draw(dynamic, cameras, path.times, "", metadata.cameras).image, 0, 1)


def measure(folder, place):
  """Rows of one scene: name to logarithm, or to decibels."""
  plain, metadata = scene.read_scene(folder)
  marked = gaussians.mark(plain, KEY)
  views = along(plain, metadata, "spiral", len(plain.times))
  again = along(marked, metadata, "spiral", len(plain.times))
  shown = frames.mark(again, KEY)
  rows = {
    ("cost, dB", "mark of Gaussians, drawn"): psnr(again, views),
    ("cost, dB", "mark of frames"): psnr(shown, again),
    ("cost, dB", "both"): psnr(shown, views),
  }
  for name, change in OF_FRAMES.items():
    rows["frames", name] = frames.detect(change(shown), KEY).log10_false
  if blind_watermark is not None:
    others, share = embed(again, rows["cost, dB", "mark of frames"])
    rows["cost, dB", "blind-watermark"] = psnr(others, again)
    for name, change in OF_FRAMES.items():
      rows["blind-watermark", name] = guessed(change(others), share)
  orbit = along(marked, metadata, "orbit", 49)
  rows["frames", "new views by render_scene, 49 frames, CRF 28"] = frames.detect(
    film(frames.mark(orbit, KEY), 28), KEY
  ).log10_false
  rows["frames", "new views by another program"] = frames.detect(orbit, KEY).log10_false
  small = frames.mark(resize(again, 0.25), KEY)
  rows["frames", "64 x 64 pixels, CRF 18"] = frames.detect(film(small, 18), KEY).log10_false
  rows["frames", "unmarked"] = frames.detect(views, KEY).log10_false
  colors = gaussians.colors_of(marked.harmonics)[np.asarray(marked.opacities) > 0]
  for name, change in OF_GAUSSIANS.items():
    rows["Gaussians", name] = gaussians.detect(change(colors), KEY).log10_false
  for suffix in EXPORTS:
    for time in (0.0, 1.0):
      file = place / f"{folder.name}-{time}{suffix}"
      Export(file, time).write(marked, metadata)
      found = gaussians.detect(splat_colors.read_colors(file), KEY).log10_false
      rows["Gaussians", f"{suffix} at time {time:.0f}"] = found
  half = gaussians.detect(
    _part(splat_colors.read_colors(place / f"{folder.name}-1.0.spz"), 0.5), KEY
  )
  rows["Gaussians", ".spz at time 1, half of it"] = half.log10_false
  faint = np.asarray(marked.opacities) >= np.median(marked.opacities)
  solid = gaussians.colors_of(marked.harmonics)[faint]
  rows["Gaussians", "the more opaque half"] = gaussians.detect(solid, KEY).log10_false
  bare = gaussians.colors_of(plain.harmonics)[np.asarray(plain.opacities) > 0]
  rows["Gaussians", "unmarked"] = gaussians.detect(bare, KEY).log10_false
  return rows


def unmarked(folder, count):
  """Bounds that wrong keys reach: of frames and of Gaussians."""
  dynamic, metadata = scene.read_scene(folder)
  marked = gaussians.mark(dynamic, KEY)
  views = frames.mark(along(marked, metadata, "spiral", len(dynamic.times)), KEY)
  colors = gaussians.colors_of(marked.harmonics)
  wrong = [f"wrong {index}" for index in range(count)]
  return {
    "frames": [frames.detect(views, key).log10_false for key in wrong],
    "Gaussians": [gaussians.detect(colors, key).log10_false for key in wrong],
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--scenes", type=pathlib.Path, nargs="+", required=True)
  parser.add_argument("--unmarked", action="store_true")
  options = parser.parse_args()
  if options.unmarked:
    for folder in options.scenes:
      for kind, found in unmarked(folder, 200).items():
        shares = ", ".join(
          f"{np.mean(np.array(found) <= np.log10(level)):.3f} at {level}"
          for level in (0.3, 0.1, 0.03, 0.01)
        )
        print(
          f"{folder.name}, {kind}: shares of 200 wrong keys with a bound of {shares}", flush=True
        )
    return
  with tempfile.TemporaryDirectory() as name:
    measured = [measure(folder, pathlib.Path(name)) for folder in options.scenes]
  for kind, what in measured[0]:
    values = [rows[kind, what] for rows in measured]
    worst = min(values) if kind == "cost, dB" else max(values)
    print(f"{kind:15} {what:46} {worst:8.1f}   ({', '.join(f'{x:.1f}' for x in values)})")


if __name__ == "__main__":
  main()
