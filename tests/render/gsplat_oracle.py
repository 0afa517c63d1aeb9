"""gsplat's own torch functions as the oracle, without CUDA.

Covariances, projection, spherical harmonics and compositing are gsplat's. Two things are supplied,
because there they are CUDA kernels: the list of which Gaussian counts at which pixel, and nerfacc's
two sums along rays.
"""

import sys
import types

import numpy as np
import torch

_TILE = 16


def _weights_along_rays(alphas, ray_indices, n_rays):
  """alpha times the product of (1 - alpha) before it on the same ray; rays are contiguous."""
  del n_rays
  logs = torch.log1p(-alphas)
  before = torch.cumsum(logs, 0) - logs
  _, ray, counts = torch.unique_consecutive(ray_indices, return_inverse=True, return_counts=True)
  starts = torch.cumsum(counts, 0) - counts
  transmittances = torch.exp(before - before[starts][ray])
  return transmittances * alphas, transmittances


def _sums_along_rays(weights, values, ray_indices, n_rays):
  weighted = weights[:, None] if values is None else weights[:, None] * values
  return torch.zeros(n_rays, weighted.shape[1], dtype=weighted.dtype).index_add(
    0, ray_indices, weighted
  )


_nerfacc = types.ModuleType("nerfacc")
_nerfacc.render_weight_from_alpha = _weights_along_rays
_nerfacc.accumulate_along_rays = _sums_along_rays


_MODELS = {"pinhole": "pinhole", "orthographic": "ortho"}


def render(
  scene: dict,
  poses,
  intrinsics,
  height: int,
  width: int,
  background,
  model: str = "pinhole",
  antialiased: bool = False,
):
  """Image, expected depth and alpha of each view; tensors in, tensors out, differentiable."""
  import gsplat.cuda._torch_impl as gsplat

  sys.modules.setdefault("nerfacc", _nerfacc)
  rotation = poses[:, :3, :3].transpose(1, 2)
  translation = -(rotation @ poses[:, :3, 3:])
  bottom = torch.tensor([[[0.0, 0.0, 0.0, 1.0]]], dtype=poses.dtype).expand(len(poses), 1, 4)
  views = torch.cat([torch.cat([rotation, translation], 2), bottom], 1)
  covariances, _ = gsplat._quat_scale_to_covar_preci(
    scene["quaternions"], scene["scales"], True, False
  )
  radii, means, depths, conics, compensations = gsplat._fully_fused_projection(
    scene["means"],
    covariances,
    views,
    intrinsics,
    width,
    height,
    calc_compensations=antialiased,
    camera_model=_MODELS[model],
  )
  directions = scene["means"][None] - poses[:, None, :3, 3]
  coefficients = scene["harmonics"][None].expand(len(poses), -1, -1, -1)
  degree = round(coefficients.shape[2] ** 0.5) - 1
  colours = gsplat._spherical_harmonics(degree, directions, coefficients)
  colours = torch.clamp_min(colours + 0.5, 0.0)
  values = torch.cat([colours, depths[..., None]], -1)
  opacities = scene["opacities"][None].expand(len(poses), -1)
  if antialiased:
    opacities = opacities * compensations
  pairs = _pairs(means, conics, opacities, depths, radii, height, width)
  sums, alphas = gsplat.accumulate(means, conics, opacities, values, *pairs, width, height)
  image = sums[..., :3] + (1 - alphas) * background
  return image, sums[..., 3] / alphas[..., 0].clamp(min=1e-10), alphas[..., 0]


@torch.no_grad()
def _pairs(means, conics, opacities, depths, radii, height, width):
  """Gaussian, pixel and view of every contribution: pixel after pixel, each front to back."""
  found = []
  for view in range(len(depths)):
    order = torch.argsort(depths[view], stable=True)
    splats = [x[view, order] for x in (means, conics, opacities, radii)]
    for y in range(0, height, _TILE):
      for x in range(0, width, _TILE):
        ranks, pixels = _pairs_of_tile(*splats, x, y, min(x + _TILE, width), min(y + _TILE, height))
        pixels = pixels[:, 1] * width + pixels[:, 0]
        found.append((order[ranks], pixels, torch.full_like(pixels, view)))
  return [torch.cat(x) for x in zip(*found)]


def _pairs_of_tile(means, conics, opacities, radii, left, top, right, bottom):
  low, high = torch.tensor([left, top]), torch.tensor([right, bottom])
  touching = (means + radii > low).all(-1) & (means - radii < high).all(-1) & (radii > 0).all(-1)
  ranks = torch.nonzero(touching)[:, 0]
  means, conics, opacities = means[ranks], conics[ranks], opacities[ranks]
  pixels = torch.cartesian_prod(torch.arange(top, bottom), torch.arange(left, right)).flip(-1)
  dx, dy = (pixels[:, None] + 0.5 - means).unbind(-1)
  a, b, c = conics.unbind(-1)
  sigma = 0.5 * (a * dx**2 + c * dy**2) + b * dx * dy
  alphas = torch.clamp_max(opacities * torch.exp(-sigma), 0.999)
  counts = (sigma >= 0) & (alphas >= 1 / 255)
  after = torch.cumprod(torch.where(counts, 1 - alphas, 1.0), -1)
  pixel, rank = torch.nonzero(counts & (after > 1e-4), as_tuple=True)
  return ranks[rank], pixels[pixel]


def value_and_gradients(
  scene, cameras, background, cotangents, dtype=torch.float64, antialiased=False
):
  """Outputs, and gradients of their sum weighted with `cotangents` (without these, None)."""

  def tensor(array):
    return torch.tensor(np.asarray(array), dtype=dtype)

  names = list(scene.__dataclass_fields__)
  tensors = {name: tensor(getattr(scene, name)).requires_grad_() for name in names}
  poses = tensor(cameras.world_from_camera).requires_grad_()
  outputs = render(
    tensors,
    poses,
    tensor(cameras.intrinsics),
    cameras.height,
    cameras.width,
    tensor(background),
    cameras.model,
    antialiased,
  )
  values = [x.detach().numpy() for x in outputs]
  if cotangents is None:
    return values, None
  loss = sum((x * tensor(w)).sum() for x, w in zip(outputs, cotangents))
  gradients = torch.autograd.grad(loss, [*tensors.values(), poses])
  named = zip([*names, "world_from_camera"], gradients)
  return values, {name: g.numpy() for name, g in named}
