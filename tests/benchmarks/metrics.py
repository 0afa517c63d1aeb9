r"""Seconds of our metric networks beside PyTorch's on the same inputs and cores, in one run.

  pip install --no-deps cd-fvd==0.1.1
  chrt -r 5 python tests/benchmarks/metrics.py  # without chrt on an idle machine

What `evaluate` computes of a video of 9 frames and of its truth, PSNR, SSIM and LPIPS (AlexNet),
beside the same three of torchmetrics; LPIPS alone (AlexNet, and the VGG of
training) beside torchmetrics' copy of the authors' package with the same weights; I3D features
beside the network of cd-fvd, whose weights are random here: its time doesn't depend on them.
Resizing, normalising and copying in and out are part of both. Medians of several calls after one
that compiles, ratios of ours over theirs: below 1 ours is faster.
"""

import argparse
import functools
import importlib
import importlib.util
import pathlib
import statistics
import sys
import time

import jax
import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.evaluation import families, i3d, tools  # noqa: E402
from d4s_jax.evaluation.settings import Settings  # noqa: E402
from d4s_jax.losses import lpips  # noqa: E402
from tests.losses.test_perceptual import torch_alexnet, torch_vgg16  # noqa: E402

THREADS = 2


def median(call, repeats: int) -> float:
  """Seconds of a call, which returns host arrays."""
  call()
  found = []
  for _ in range(repeats):
    start = time.perf_counter()
    call()
    found.append(time.perf_counter() - start)
  return statistics.median(found)


def line(name: str, ours: float, theirs: float) -> None:
  """Prints a row."""
  print(f"{name:40} {ours:8.3f} s {theirs:8.3f} s   ratio {ours / theirs:.2f}", flush=True)


def torch_lpips(net: str):
  """torchmetrics' LPIPS with our weights, without torchvision."""
  package = importlib.import_module("torchmetrics.functional.image.lpips")
  layers = torch_alexnet(torch) if net == "alex" else torch_vgg16(torch)
  convolutions = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
  for index, layer in enumerate(convolutions):
    weights = lpips.load_weights(net)[f"conv_{index}"]
    kernel = np.array(weights["kernel"]).transpose(3, 2, 0, 1)
    layer.weight.data = torch.from_numpy(np.ascontiguousarray(kernel))
    layer.bias.data = torch.from_numpy(np.array(weights["bias"]))
  stack = torch.nn.Sequential(*layers)
  package._get_tv_model_features = lambda *_, **__: stack
  return package._LPIPS(pretrained=True, net=net).eval()


def planes(x: np.ndarray) -> torch.Tensor:
  """Channels first."""
  return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def compare_scores(side: int, frames: int, repeats: int) -> None:
  """One row of what `evaluate` takes for a video, after checking that both find the same."""
  rng = np.random.default_rng(0)
  truth = rng.random((frames, side, side, 3), np.float32)
  video = np.clip(truth + 0.1 * rng.normal(size=truth.shape), 0, 1).astype(np.float32)
  weights = tools.TOOLS["lpips"].open(Settings())
  distance = torch_lpips(tools.LPIPS_NET)
  image = importlib.import_module("torchmetrics.functional.image")

  def ours():
    return families.image_scores(video, truth, weights)

  def theirs():
    with torch.inference_mode():
      a, b = planes(video), planes(truth)
      one = dict(data_range=1.0, reduction="none")
      noise = image.peak_signal_noise_ratio(a, b, **one, dim=(1, 2, 3))
      similar = image.structural_similarity_index_measure(a, b, **one)
      return {"psnr": noise, "ssim": similar, "lpips": distance(a, b, normalize=True).ravel()}

  mine, other = ours(), theirs()
  # They fill the borders for SSIM, so that it is of other pixels.
  for name, tolerance in (("psnr", 1e-4), ("lpips", 1e-3), ("ssim", 2e-2)):
    np.testing.assert_allclose(mine[name], other[name].numpy(), rtol=tolerance)
  taken = median(ours, repeats), median(theirs, repeats)
  line(f"PSNR, SSIM, LPIPS, {frames} frames of {side} px", *taken)


def compare_lpips(net: str, side: int, batch: int, repeats: int) -> None:
  """One row of LPIPS, after checking that both find the same distances."""
  rng = np.random.default_rng(0)
  x, y = (rng.random((batch, side, side, 3), np.float32) for _ in range(2))
  weights = jax.device_put(lpips.load_weights(net))
  jitted = jax.jit(functools.partial(lpips.distance, net=net))
  theirs = torch_lpips(net)

  def ours():
    return np.asarray(jitted(x, y, weights))

  def call_theirs():
    with torch.inference_mode():
      return theirs(planes(x), planes(y), normalize=True).numpy()

  np.testing.assert_allclose(ours(), call_theirs().ravel(), rtol=1e-3)
  mine = median(ours, repeats)
  line(f"LPIPS {net}, {batch} pairs of {side} px", mine, median(call_theirs, repeats))


def torch_i3d():
  """The network of cd-fvd, without importing the package."""
  spec = importlib.util.find_spec("cdfvd")
  if spec is None or spec.submodule_search_locations is None:
    raise SystemExit("I3D needs the package: pip install --no-deps cd-fvd==0.1.1")
  folder = pathlib.Path(spec.submodule_search_locations[0])
  place = folder / "third_party" / "i3d" / "pytorch_i3d.py"
  spec = importlib.util.spec_from_file_location("pytorch_i3d", place)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.InceptionI3d(400, in_channels=3).eval()


def compare_i3d(frames: int, side: int, batch: int, repeats: int) -> None:
  """One row of I3D features."""
  videos = np.random.default_rng(0).random((batch, frames, side, side, 3), np.float32)
  theirs = torch_i3d()

  def call_theirs():
    with torch.inference_mode():
      x = planes(videos)
      flat = x.permute(0, 2, 1, 3, 4).flatten(0, 1)
      flat = torch.nn.functional.interpolate(flat, (224, 224), mode="bilinear")
      x = flat.unflatten(0, (batch, frames)).permute(0, 2, 1, 3, 4)
      return theirs(2 * x - 1).numpy()

  mine = median(lambda: i3d.features(videos, batch), repeats)
  line(f"I3D, {batch} videos of {frames} x {side} px", mine, median(call_theirs, repeats))


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--repeats", type=int, default=5)
  options = parser.parse_args()
  torch.set_num_threads(THREADS)
  print(f"{'':40} {'ours':>10} {'theirs':>10}")
  for side in (64, 256):
    compare_scores(side, 9, options.repeats)
  compare_lpips("alex", 64, 8, options.repeats)
  compare_lpips("alex", 256, 8, options.repeats)
  compare_lpips("vgg", 256, 2, options.repeats)
  compare_i3d(16, 64, 2, options.repeats)


if __name__ == "__main__":
  main()
