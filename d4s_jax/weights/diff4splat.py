"""Diff4Splat's own modules in PyTorch: video latents and cameras to Gaussians that move.

`python -m d4s_jax.convert --format=torch` writes this file beside the weights of a training run. It
needs nothing but torch. From the folder that this file is in, or with it on sys.path:

  from diff4splat import at, load
  ldrm, camera = load(".")
  scene = ldrm(latents, world_from_camera, intrinsics, (height, width), times, video=video)
  means, quaternions, scales = at(scene, 0)

`ldrm` is the reconstruction model with its heads; `video`, what the latents decode to, is for
models whose config.json has a `stem` above 0. `camera` is what cameras add to the patch
embedding of the video transformer, a WanTransformer3DModel or CogVideoXTransformer3DModel of
diffusers; `condition` hooks it in.

Conventions: channel-last tensors [batch, frames, rows, columns, channels]; latents normalised;
poses are world_from_camera, 4x4, OpenCV axes, metres, the first one the identity; intrinsics are
3x3 in pixels of the whole image, pixel centres at +0.5; quaternions wxyz; time is 0 to 1 over the
clip. Parameters are stored as d4s_jax has them: a kernel is [..., in, out], blocks are stacked.
"""

import contextlib
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

LOG_SCALE_RANGE = (-3.0, 4.0)
_MATCHED_FRAMES = (-4, -1, 1, 4)
_NEAREST = 1e-6
# Of config.json.
_NEEDED = (
  *("gaussians", "depth", "heads", "stem", "strides", "pixels_per_cell", "encoding", "canonical"),
  *("scene_scale", "initial_depth", "opacity_bias", "patch_embedding", "parameters"),
)
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Scene(NamedTuple):
  """Canonical Gaussians, and how they are deformed at each of `times`.

  Colour is 0.5 + 0.2821 * harmonics[..., 0, :], plus the degrees above, as in 3DGS. `deformation`
  is an offset in metres (3), a turn (4, a quaternion) and an offset of the raw scale (3).
  """

  means: Tensor
  quaternions: Tensor
  raw_scales: Tensor
  footprints: Tensor
  opacities: Tensor
  harmonics: Tensor
  times: Tensor
  deformation: Tensor


def at(scene: Scene, index: int) -> tuple[Tensor, Tensor, Tensor]:
  """Means, quaternions and scales of the Gaussians at time number `index`; the rest stays."""
  move, turn, grow = scene.deformation[:, index].split((3, 4, 3), dim=-1)
  a, b, c, d = scene.quaternions.unbind(-1)
  w, x, y, z = turn.unbind(-1)
  product = (
    a * w - b * x - c * y - d * z,
    a * x + b * w + c * z - d * y,
    a * y - b * z + c * w + d * x,
    a * z + b * y - c * x + d * w,
  )
  scales = scene.footprints[..., None] * (scene.raw_scales + grow).clamp(*LOG_SCALE_RANGE).exp()
  return scene.means + move, torch.stack(product, -1), scales


def load(folder: str) -> tuple["LDRM", "CameraEmbedding"]:
  """The two models of a folder that d4s_jax.convert wrote.

  Raises:
    ValueError: the tensors are not those that config.json lists, which names every wrong one; or
      an older version wrote the folder.
  """
  place = pathlib.Path(folder)
  config = json.loads((place / "config.json").read_text())
  missing = [name for name in _NEEDED if name not in config]
  if missing:
    raise ValueError(
      f"{place / 'config.json'} says nothing of {', '.join(missing)}: an older version of"
      " d4s_jax.convert wrote it. Convert the run once more, with the version this file is of."
    )
  path = place / "diff4splat.safetensors"
  tensors = _read(path)
  _check(path, config["parameters"], {name: list(x.shape) for name, x in tensors.items()})

  def part(name):
    start = f"{name}/"
    return {key[len(start) :]: x for key, x in tensors.items() if key.startswith(start)}

  return LDRM(part("ldrm"), config), CameraEmbedding(part("camera"), config)


def camera_map(
  world_from_camera: Tensor, intrinsics: Tensor, size: tuple[int, int], encoding: str = "plucker"
) -> Tensor:
  """What tells a network where each pixel of an image of `size` (height, width) looks."""
  height, width = size
  if encoding == "flat":
    rows = world_from_camera[:, :, None, None, :3, :].flatten(-2)
    return rows.expand(-1, -1, height, width, -1)
  local = _plane(intrinsics, height, width, 1.0)
  directions = _rotate(world_from_camera, local) / local.norm(dim=-1, keepdim=True)
  origins = world_from_camera[:, :, None, None, :3, 3].expand_as(directions)
  return torch.cat([torch.linalg.cross(origins, directions), directions], -1)


@contextlib.contextmanager
def condition(transformer: Any, camera: "CameraEmbedding", maps: Tensor) -> Iterator[None]:
  """Within this context a video transformer of diffusers follows the cameras of `maps`.

  Args:
    transformer: a WanTransformer3DModel or a CogVideoXTransformer3DModel.
    camera: of `load`.
    maps: of `camera_map`, of every frame that the latents stand for; a single sample goes for all.
  """
  added = camera(maps)
  patches = transformer.get_submodule(camera.patch_embedding)
  hook = patches.register_forward_hook(lambda module, args, out: out + _laid_out(added, out))
  try:
    yield
  finally:
    hook.remove()


class Part(torch.nn.Module):
  """A model whose parameters have paths for names, and the layers that look them up."""

  def __init__(self, tensors: dict[str, Tensor]):
    super().__init__()
    for path, value in tensors.items():
      self.register_parameter(path, torch.nn.Parameter(value))

  def get(self, path: str) -> Tensor:
    """A parameter by its path."""
    return getattr(self, path)

  def dense(self, x: Tensor, path: str, block: int | None = None) -> Tensor:
    """A linear layer, that of one block of a stack if `block` is given."""
    kernel, bias = self.get(f"{path}/kernel"), self.get(f"{path}/bias")
    return x @ kernel + bias if block is None else x @ kernel[block] + bias[block]

  def norm(self, x: Tensor, path: str, block: int | None = None) -> Tensor:
    """Layer normalisation with a learnt scale and bias."""
    scale, bias = self.get(f"{path}/scale"), self.get(f"{path}/bias")
    if block is not None:
      scale, bias = scale[block], bias[block]
    return _layer_norm(x) * scale + bias

  def patches(self, x: Tensor, path: str, bias: bool = True) -> Tensor:
    """A convolution whose stride is its kernel."""
    kernel = self.get(f"{path}/kernel")
    time, rows, columns, channels, features = kernel.shape
    batch, frames, height, width, _ = x.shape
    x = x.reshape(
      *(batch, frames // time, time, height // rows, rows, width // columns, columns, channels)
    )
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)
    x = x @ kernel.reshape(-1, features)
    return x + self.get(f"{path}/bias") if bias else x

  def convolve(self, x: Tensor, path: str) -> Tensor:
    """The same 3x3 convolution in every frame."""
    kernel = self.get(f"{path}/kernel")
    kernel = kernel.reshape(kernel.shape[-4:]).permute(3, 2, 0, 1)
    y = functional.conv2d(x.flatten(0, 1).movedim(-1, 1), kernel, padding=1)
    return y.movedim(1, -1).unflatten(0, x.shape[:2]) + self.get(f"{path}/bias")

  def deconvolve(self, x: Tensor, path: str) -> Tensor:
    """Tokens to a map of all frames; neighbours in time share the frame where they meet."""
    kernel = self.get(f"{path}/kernel")
    taps, rows, columns, _, features = kernel.shape
    batch, tokens, height, width, _ = x.shape
    time = taps - 1
    y = torch.einsum("bfhwc,trscd->bfthrwsd", x, kernel)
    y = y.reshape(batch, tokens, taps, height * rows, width * columns, features)
    whole = y.new_zeros(batch, tokens + 1, time, *y.shape[3:])
    whole[:, :-1] = y[:, :, :time]
    whole[:, 1:, 0] += y[:, :, time]
    start = time // 2
    return whole.flatten(1, 2)[:, start : start + (tokens - 1) * time + 1] + self.get(
      f"{path}/bias"
    )


class CameraEmbedding(Part):
  """Camera maps of all 1 + 4k frames to what they add to the patch embedding of the latents.

  A model with two latents a token (CogVideoX 1.5) takes an even number of them: where a video has
  an odd one, the first camera goes for the one that is padded in front.
  """

  def __init__(self, tensors: dict[str, Tensor], config: dict[str, Any]):
    super().__init__(tensors)
    # The transformer's layer whose output they are added to, before positions are.
    self.patch_embedding: str = config["patch_embedding"]

  def forward(self, maps: Tensor) -> Tensor:
    """Embeds [b F H W 6] (or 12); a sample of zeros has no camera and adds nothing."""
    time, token = (self.get(f"{path}/kernel").shape[0] for path in ("adapter/conv", "projection"))
    padding = -(1 + (maps.shape[1] - 1) // time) % token
    x = self.patches(_with_past(maps, time * (1 + padding)), "adapter/conv")
    # A group normalisation with a single group.
    centred = x - x.mean((1, 2, 3, 4), keepdim=True)
    x = centred * (centred.square().mean((1, 2, 3, 4), keepdim=True) + 1e-5).rsqrt()
    x = x * self.get("adapter/norm/scale") + self.get("adapter/norm/bias")
    x = self.patches(x, "projection", bias=False)
    return x * (maps != 0).flatten(1).any(1).reshape(-1, 1, 1, 1, 1)


class LDRM(Part):
  """The reconstruction model."""

  def __init__(self, tensors: dict[str, Tensor], config: dict[str, Any]):
    super().__init__(tensors)
    self.config = config

  def forward(
    self,
    latents: Tensor,
    world_from_camera: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    times: Tensor,
    sigma: Tensor | None = None,
    video: Tensor | None = None,
  ) -> Scene:
    """Reconstructs scenes.

    Args:
      latents: normalised latents [b f h w c] of a video of 1 + 4k frames.
      world_from_camera: a pose [b F 4 4] for each frame of the video.
      intrinsics: [b F 3 3], of pinhole cameras.
      size: height and width of the video.
      times: [b q] in [0, 1], rising: where the deformation is wanted.
      sigma: noise level [b] of the latents; None for clean ones.
      video: what the latents decode to [b F H W 3], 0.5 (x + 1) of the autoencoder's output, not
        clipped; needed by a model with a stem.

    Raises:
      ValueError: something is of another video than the latents.
    """
    config = self.config
    given = {"world_from_camera": world_from_camera, "intrinsics": intrinsics, "size": size}
    self._check(latents, times, {**given, "sigma": sigma, "video": video})
    if sigma is None:
      sigma = latents.new_zeros(latents.shape[0])
    near = world_from_camera.clone()
    near[..., :3, 3] /= config["scene_scale"]
    maps = camera_map(near, intrinsics, size, config["encoding"])
    seen = None if video is None else self._stem(video, near, intrinsics)
    tokens, taps = self._trunk(latents, maps, sigma, seen)
    if config["canonical"] == "first":
      tokens, latents, taps = tokens[:, :1], latents[:, :1], [tap[:, :1] for tap in taps]
      world_from_camera, intrinsics = world_from_camera[:, :1], intrinsics[:, :1]
      if seen is not None and video is not None:
        seen, video = seen[:, :1], video[:, :1]
    raw, detail = self._raw(tokens, latents, seen, video)
    canonical = self._gaussians(raw, world_from_camera, intrinsics, size)
    canonical = [x.flatten(1, 3) for x in canonical]
    kept = canonical[4].topk(config["gaussians"], dim=1).indices
    chosen = [
      x.gather(1, kept.reshape(*kept.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:]))
      for x in canonical
    ]
    chosen[4] = torch.where(chosen[4] < 0.005, 0.0, chosen[4])
    return Scene(*chosen, times=times, deformation=self._deformation(taps, kept, times, detail))

  def _check(self, latents: Tensor, times: Tensor, given: dict[str, Any]) -> None:
    """Raises ValueError unless all are of the video that the latents are of."""
    strides, stem = self.config["strides"], self.config["stem"]
    channels = self.get("trunk/latents_patch/kernel").shape[-2]
    if stem:  # Whose features come with the latents.
      channels -= strides[0] * self.get("stem/norm/scale").shape[0]
    if latents.ndim != 5 or latents.shape[-1] != channels:
      raise ValueError(
        f"latents are {tuple(latents.shape)}, expected [batch, frames, rows, columns, {channels}]."
      )
    batch, *grid, _ = latents.shape
    patch = self.get("trunk/latents_patch/kernel").shape[:3]
    if any(n % size for n, size in zip(grid, patch)):
      raise ValueError(
        f"latents are {grid[0]} x {grid[1]} x {grid[2]}, expected multiples of {tuple(patch)}."
      )
    sides = [n * stride for n, stride in zip(grid, strides)]
    frames, height, width = 1 + sides[0] - strides[0], *sides[1:]
    if times.ndim != 2 or len(times) != batch:
      raise ValueError(f"times are {tuple(times.shape)}, expected [{batch}, any number].")
    wanted = {
      "world_from_camera": (batch, frames, 4, 4),
      "intrinsics": (batch, frames, 3, 3),
      "size": (height, width),
      "sigma": (batch,),
      "video": (batch, frames, height, width, 3),
    }
    found = {
      name: tuple(x.shape if isinstance(x, Tensor) else x)
      for name, x in given.items()
      if x is not None
    }
    wrong = [f"{k} is {v}, expected {wanted[k]}" for k, v in found.items() if v != wanted[k]]
    if wrong:
      raise ValueError(f"With latents of {tuple(latents.shape)}: {'; '.join(wrong)}.")
    if (given["video"] is None) == bool(stem):
      raise ValueError(f"A model with a stem of {stem}: video must be given if above 0.")

  def _trunk(
    self, latents: Tensor, maps: Tensor, sigma: Tensor, seen: Tensor | None
  ) -> tuple[Tensor, list[Tensor]]:
    time = self.get("trunk/cameras_patch/kernel").shape[0]
    if seen is not None:
      frames = _with_past(seen, time).unflatten(1, (-1, time))
      latents = torch.cat([latents, frames.permute(0, 1, 3, 4, 2, 5).flatten(4)], -1)
    video = self.norm(self.patches(latents, "trunk/latents_patch"), "trunk/latents_norm")
    maps = _with_past(maps, time)
    camera = self.norm(self.patches(maps, "trunk/cameras_patch"), "trunk/cameras_norm")
    grid = video.shape[1:4]
    x = self.dense(torch.cat([video, camera], -1), "trunk/merge")
    axes = [(torch.arange(n, dtype=x.dtype, device=x.device) + 0.5) / n for n in grid]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    place = _sinusoidal(100 * place, 64, 1000.0).flatten(-2)
    x = x + self.dense(place, "trunk/position")
    noise = functional.silu(self.dense(_sinusoidal(1000 * sigma, 256), "trunk/noise_in"))
    x = x + self.dense(noise, "trunk/noise_out")[:, None, None, None]
    x = x.flatten(1, 3)
    hidden = []
    depth = self.config["depth"]
    for block in range(depth):
      x = self._block(x, "trunk/transformer/blocks", block)
      hidden.append(x.unflatten(1, grid))
    taps = [hidden[-(-depth * tap // 4) - 1] for tap in range(1, 5)]
    return self.norm(x, "trunk/transformer/norm").unflatten(1, grid), taps

  def _stem(self, video: Tensor, pose: Tensor, intrinsics: Tensor) -> Tensor:
    """Features [b F y x c] of what is seen, how it moves and how it would if it stood still."""
    height, width = video.shape[2:4]
    cell = self.config["strides"][1:]
    rows, columns = height // cell[0], width // cell[1]
    intrinsics = intrinsics * intrinsics.new_tensor([columns / width, rows / height, 1.0])[:, None]
    near = self.config["initial_depth"] / self.config["scene_scale"]
    still = _still_offsets(pose, intrinsics, (rows, columns), near)
    cells = _cells(video, cell)
    x = self.dense(torch.cat([cells, self._matches(cells), still], -1), "stem/in")
    for level in range(self.config["stem"]):
      kernel = self.get(f"stem/refine_{level}/kernel").permute(4, 3, 0, 1, 2)
      y = functional.conv3d(_gelu(x).movedim(-1, 1), kernel, padding=1).movedim(1, -1)
      x = x + y + self.get(f"stem/refine_{level}/bias")
    return self.norm(x, "stem/norm")

  def _matches(self, cells: Tensor) -> Tensor:
    """Offset in units of 4 cells, and certainty, of matches in frames before and after."""
    path = "stem/matching"
    frames, rows, columns = cells.shape[1:4]
    x = self.convolve(cells, f"{path}/features").flatten(2, 3)
    x = x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
    grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    place = torch.stack(grid[::-1], -1).flatten(0, 1).to(x)
    distance = (place[:, None] - place).square().sum(-1) * self.get(f"{path}/locality") / 18
    found = []
    for shift in _MATCHED_FRAMES:
      others = x[:, _shifted(frames, shift)]
      logits = 20 * self.get(f"{path}/sharpness") * (x @ others.transpose(-1, -2))
      chances = (logits - distance).softmax(-1)
      found += [(chances @ place - place) / 4, chances.square().sum(-1, keepdim=True)]
    return torch.cat(found, -1).unflatten(2, (rows, columns))

  def _detail(self, tokens: Tensor, seen: Tensor, video: Tensor) -> Tensor:
    """Tokens with the stem's features and the pixels, at each cell of the map."""
    x = self.deconvolve(tokens, "detail/tokens")
    rows, columns = (there // here for there, here in zip(x.shape[2:4], seen.shape[2:4]))
    fine = self.dense(seen, "detail/seen").unflatten(-1, (rows, columns, -1))
    x = x + fine.permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(2, 3)
    side = self.config["pixels_per_cell"]
    x = x + self.dense(_cells(video, (side, side)), "detail/pixels")
    for level in range(2):
      x = x + self.convolve(_gelu(x), f"detail/refine_{level}")
    return self.norm(x, "detail/norm")

  def _block(self, x: Tensor, path: str, block: int) -> Tensor:
    y = self.dense(self.norm(x, f"{path}/attention_norm", block), f"{path}/query_key_value", block)
    # [b n (t h d)] to t tensors [b h n d].
    q, k, v = y.unflatten(-1, (3, self.config["heads"], -1)).permute(2, 0, 3, 1, 4)
    q = _rms_norm(q) * self.get(f"{path}/query_norm/scale")[block]
    k = _rms_norm(k) * self.get(f"{path}/key_norm/scale")[block]
    y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + self.dense(y, f"{path}/attention_out", block)
    y = _gelu(self.dense(self.norm(x, f"{path}/mlp_norm", block), f"{path}/mlp_in", block))
    return x + self.dense(y, f"{path}/mlp_out", block)

  def _raw(
    self, tokens: Tensor, latents: Tensor, seen: Tensor | None, video: Tensor | None
  ) -> tuple[Tensor, Tensor | None]:
    """Raw channels of all cells, and the features beside them that the deformation sees, too."""
    raw, detail = self.deconvolve(tokens, "gaussian/map"), None
    if seen is None or video is None:
      colour = self._colour(latents)
    else:
      detail = self._detail(tokens, seen, video)
      raw = raw + self.dense(detail, "gaussian/detail")
      side = self.config["pixels_per_cell"]
      cells = _cells(video, (side, side)).unflatten(-1, (-1, 3)).mean(-2)
      colour = cells.clamp(-0.98, 0.98).atanh()
    return torch.cat([raw[..., :1], raw[..., 1:4] + colour, raw[..., 4:]], -1), detail

  def _gaussians(
    self, raw: Tensor, world_from_camera: Tensor, intrinsics: Tensor, size: tuple[int, int]
  ) -> list[Tensor]:
    """The canonical Gaussians of all cells, in the order of `Scene`."""
    config = self.config
    depth, rgb, scale, quaternion, opacity, rest = raw.split(
      (1, 3, 3, 4, 1, raw.shape[-1] - 12), dim=-1
    )
    low, high = (
      math.log(bound * config["scene_scale"] / config["initial_depth"]) for bound in (0.01, 100.0)
    )
    depth = config["initial_depth"] * depth.clamp(low, high).exp()
    height, width = raw.shape[2:4]
    resized = intrinsics * intrinsics.new_tensor([[width / size[1]], [height / size[0]], [1.0]])
    focal = (resized[..., 0, 0] * resized[..., 1, 1]).sqrt()
    local = _plane(resized, height, width, depth)
    means = _rotate(world_from_camera, local) + world_from_camera[:, :, None, None, :3, 3]
    identity = raw.new_tensor([1.0, 0.0, 0.0, 0.0])
    # sqrt(1 / (4 pi)) is the constant harmonic.
    constant = 0.5 * rgb.tanh() / math.sqrt(1 / (4 * math.pi))
    rest = 0.025 * rest.unflatten(-1, (-1, 3)) if rest.shape[-1] else rest.unflatten(-1, (0, 3))
    return [
      means,
      _normalize(quaternion + identity),
      scale + math.log(0.37),
      depth[..., 0].detach() / focal[..., None, None],
      torch.sigmoid(opacity[..., 0] + config["opacity_bias"]),
      torch.cat([constant[..., None, :], rest], -2),
    ]

  def _colour(self, latents: Tensor) -> Tensor:
    """The skip from latents to raw colour, for models that see no video."""
    time, *space = self.config["strides"]
    rows, columns = (stride // self.config["pixels_per_cell"] for stride in space)
    colour = self.convolve(latents, "gaussian/colour")
    colour = colour.unflatten(-1, (time, rows, columns, 3)).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return colour.flatten(5, 6).flatten(3, 4).flatten(1, 2)[:, time - 1 :]

  def _deformation(
    self, taps: list[Tensor], cells: Tensor, times: Tensor, detail: Tensor | None
  ) -> Tensor:
    fine, coarse = self._pyramid(taps)
    _, frames, rows, columns, _ = fine.shape
    frame = cells // (rows * columns)
    row, column = cells // columns % rows, cells % columns
    run = max((frames - 1) // max(coarse.shape[1] - 1, 1), 1)
    above = (frame + run - 1) // run * coarse.shape[2] + row * coarse.shape[2] // rows
    above = above * coarse.shape[3] + column * coarse.shape[3] // columns
    x = self.dense(_gather(fine, cells), "deformation/fine") + _gather(coarse, above)
    if detail is not None:
      x = x + self.dense(_gather(detail, cells), "deformation/detail")

    clock = torch.linspace(0.0, 1.0, frames, dtype=x.dtype, device=x.device)
    scale, shift = self._modulation(clock, "deformation/source_time")[frame].chunk(2, -1)
    x = self.dense(_gelu(_layer_norm(x) * (1 + scale) + shift), "deformation/mix")
    scale, shift = self._modulation(times, "deformation/target_time")[:, :, None].chunk(2, -1)
    x = self.dense(_layer_norm(x)[:, None] * (1 + scale) + shift, "deformation/out")
    turn = _normalize(x[..., 3:7] + x.new_tensor([1.0, 0.0, 0.0, 0.0]))
    return torch.cat([x[..., :3], turn, x[..., 7:]], -1)

  def _modulation(self, times: Tensor, path: str) -> Tensor:
    x = self.dense(_sinusoidal(16 * math.pi * times, 20, 100.0), f"{path}/in")
    return self.dense(functional.silu(x), f"{path}/out")

  def _pyramid(self, taps: list[Tensor]) -> tuple[Tensor, Tensor]:
    path = "deformation/pyramid"
    early, second, third, late = (self.norm(x, f"{path}/norm_{i}") for i, x in enumerate(taps))
    rows, columns = late.shape[2:4]

    def refine(x, name):
      return x + self.convolve(_gelu(x), f"{path}/{name}")

    x = functional.avg_pool2d(
      late.flatten(0, 1).movedim(-1, 1), 2, ceil_mode=True, count_include_pad=False
    )
    x = x.movedim(1, -1).unflatten(0, late.shape[:2])
    x = _enlarge(self.dense(x, f"{path}/level_3"))[:, :, :rows, :columns]
    x = refine(x + self.dense(third, f"{path}/level_2"), "refine_2")
    parts = self.dense(second, f"{path}/level_1").unflatten(-1, (2, 2, -1))
    parts = parts.permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(2, 3)
    x = refine(_enlarge(x) + parts, "refine_1")
    return self.deconvolve(early, f"{path}/level_0"), x


def _read(path: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of a safetensors file: eight bytes of length, JSON, then the numbers."""
  contents = bytearray(path.read_bytes())
  begin = 8 + int.from_bytes(contents[:8], "little")
  header = json.loads(contents[8:begin])
  header.pop("__metadata__", None)
  tensors = {}
  for name, entry in header.items():
    start, stop = entry["data_offsets"]
    numbers = torch.frombuffer(contents[begin + start : begin + stop], dtype=_TYPES[entry["dtype"]])
    tensors[name] = numbers.reshape(entry["shape"])
  return tensors


def _check(path: pathlib.Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
  """Raises ValueError, naming all that are wrong, unless all tensors have the names and shapes."""
  wrong = [f"{name} is missing" for name in wanted if name not in found]
  wrong += [f"{name} is unexpected" for name in found if name not in wanted]
  wrong += [
    f"{name} is {found[name]}, expected {shape}"
    for name, shape in wanted.items()
    if name in found and found[name] != shape
  ]
  if wrong:
    raise ValueError(f"{path} is not of its config.json ({'; '.join(wrong)}); convert again.")


def _laid_out(x: Tensor, like: Tensor) -> Tensor:
  """Maps [b f h w d] in the layout of what a patch embedding returns."""
  if like.ndim == 3:  # Tokens [b n d], of CogVideoX 1.5.
    return x.flatten(1, 3)
  if like.ndim == 4:  # Images [(b f) d h w], of CogVideoX.
    samples = like.shape[0] // x.shape[1]
    return x.expand(samples, -1, -1, -1, -1).flatten(0, 1).movedim(-1, 1)
  return x.movedim(-1, 1)  # Video [b d f h w], of Wan.


def _cells(video: Tensor, cell: tuple[int, int]) -> Tensor:
  """The pixels of each cell side by side, in [-1, 1]."""
  rows, columns = cell
  batch, frames, height, width, _ = video.shape
  x = (2 * video - 1).reshape(batch, frames, height // rows, rows, width // columns, columns, 3)
  return x.permute(0, 1, 2, 4, 3, 5, 6).flatten(4)


def _with_past(maps: Tensor, time: int) -> Tensor:
  """The first frame repeated in front, so that it falls on the first latent frame alone."""
  return torch.cat([maps[:, :1].expand(-1, time - 1, -1, -1, -1), maps], 1)


def _plane(intrinsics: Tensor, height: int, width: int, depth: Tensor | float) -> Tensor:
  """Points in camera axes behind all pixel centres, at a z-depth."""
  x = torch.arange(width, dtype=intrinsics.dtype, device=intrinsics.device) + 0.5
  y = torch.arange(height, dtype=intrinsics.dtype, device=intrinsics.device) + 0.5
  per_camera = intrinsics[:, :, None, None]
  x = (x[None, :] - per_camera[..., 0, 2]) / per_camera[..., 0, 0]
  y = (y[:, None] - per_camera[..., 1, 2]) / per_camera[..., 1, 1]
  x, y = torch.broadcast_tensors(x, y)
  return torch.stack([x, y, torch.ones_like(x)], -1) * depth


def _shifted(frames: int, shift: int) -> Tensor:
  """Numbers of the frames so many later, the first or last where there is none."""
  return (torch.arange(frames) + shift).clamp(0, frames - 1)


def _still_offsets(pose: Tensor, intrinsics: Tensor, size: tuple[int, int], near: float) -> Tensor:
  """How far each latent would go in other frames were it a still point far away, or `near`."""
  height, width = size
  most = max(size)
  grid = _plane(torch.eye(3).to(intrinsics).expand_as(intrinsics), height, width, 1.0)[..., :2]
  found = []
  for shift in _MATCHED_FRAMES:
    others = _shifted(pose.shape[1], shift)
    for depth in (1000 * near, near):
      points = (
        _rotate(pose, _plane(intrinsics, height, width, depth)) + pose[:, :, None, None, :3, 3]
      )
      local = points - pose[:, others, None, None, :3, 3]
      local = torch.einsum("bfji,bfhwj->bfhwi", pose[:, others, :3, :3], local)
      z = local[..., 2:]
      z = torch.where(z.abs() < _NEAREST, _NEAREST, z)
      lens = intrinsics[:, others]
      focal = torch.stack([lens[..., 0, 0], lens[..., 1, 1]], -1)[:, :, None, None]
      pixels = focal * local[..., :2] / z + lens[:, :, None, None, :2, 2]
      found.append((pixels - grid).clamp(-most, most) / 4)
  return torch.cat(found, -1)


def _rotate(world_from_camera: Tensor, local: Tensor) -> Tensor:
  return torch.einsum("bfij,bfhwj->bfhwi", world_from_camera[..., :3, :3], local)


def _sinusoidal(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
  """Cosines, then sines, at dim / 2 frequencies that fall from 1 to 1 / max_period."""
  half = torch.arange(dim // 2, dtype=torch.float64, device=t.device) / (dim // 2)
  angles = t[..., None] * torch.exp(-math.log(max_period) * half).to(t.dtype)
  return torch.cat([angles.cos(), angles.sin()], -1)


def _layer_norm(x: Tensor) -> Tensor:
  return functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def _rms_norm(x: Tensor) -> Tensor:
  return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def _gelu(x: Tensor) -> Tensor:
  return functional.gelu(x, approximate="tanh")


def _normalize(quaternions: Tensor) -> Tensor:
  return quaternions / quaternions.square().sum(-1, keepdim=True).clamp_min(1e-20).sqrt()


def _enlarge(x: Tensor) -> Tensor:
  return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def _gather(grid: Tensor, cells: Tensor) -> Tensor:
  flat = grid.flatten(1, 3)
  return flat.gather(1, cells[..., None].expand(-1, -1, flat.shape[-1]))
