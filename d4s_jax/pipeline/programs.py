"""The programs that a generated scene takes, to be compiled and counted without running them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from d4s_jax.diffusion.guidance import guidance as guidance_weights
from d4s_jax.diffusion.sampler import unconditional_passes
from d4s_jax.layers.partitioning import BRANCH, laid_out
from d4s_jax.models.system import System
from d4s_jax.pipeline import reconstruct
from d4s_jax.pipeline.passes import Denoiser
from d4s_jax.pipeline.spread import beside, mesh_of, shares, tiles
from d4s_jax.types import Cameras


class Program(NamedTuple):
  """One of them.

  Attributes:
    name: what it does.
    calls: how often, for one scene.
    function: what is compiled.
    arguments: its shapes and types, and where they lie; parameters are the first.
    within: makes the context in which it is traced.
  """

  name: str
  calls: int
  function: Any
  arguments: tuple[Any, ...]
  within: Callable[[], AbstractContextManager[None]]


def programs(
  system: System,
  params: Mapping[str, Any],
  size: tuple[int, int, int],
  *,
  steps: int,
  guidance: str,
  scale: float,
  reuse: Sequence[int] = (),
) -> list[Program]:
  """What `Pipeline` runs for one scene, in order.

  Of steps that reuse features, whose cost is small, nothing is listed.

  Args:
    system: the models.
    params: shapes, types and shardings of their parameters by part, on one mesh or on one device.
    size: frames, height and width of the video.
    steps: of denoising.
    guidance: its schedule.
    scale: of the guidance.
    reuse: steps that reuse features.
  """
  frames, height, width = size
  backbone = system.backbone
  shape = backbone.latent_shape(1, *size)
  weights = guidance_weights(guidance, steps, scale)
  guided, all_steps = unconditional_passes(weights, reuse), steps - len(reuse)

  def part(*names: str) -> dict[str, Any]:
    return {name: params[name] for name in names if name in params}

  def tiled(array: Any, among: Any) -> Any:
    mesh = mesh_of(among)
    return array if mesh is None else _laid(array, tiles(mesh, array.ndim, shape[2:4]))

  writing = part("text_encoder")
  tokens = _like(writing, (1, backbone.tokenizer.max_length), jnp.int32)
  embed = jax.jit(backbone.encode_text)
  text = jax.eval_shape(embed, writing, tokens)
  seeing = part("autoencoder", "image_encoder")
  picture = tiled(_like(seeing, (1, height, width, 3)), seeing)
  see = jax.jit(lambda params, image: backbone.condition(params, image, frames))
  condition = jax.eval_shape(see, seeing, picture)
  found = [
    Program("embed a prompt", 2, embed, (writing, tokens), functools.partial(beside, writing)),
    Program("see the photograph", 1, see, (seeing, picture), functools.partial(beside, seeing)),
  ]

  denoising = part("transformer", "adapter")
  poses: Any = jax.ShapeDtypeStruct((1, frames, 4, 4), jnp.float32)
  lenses: Any = jax.ShapeDtypeStruct((1, frames, 3, 3), jnp.float32)
  cameras = Cameras(world_from_camera=poses, intrinsics=lenses, height=height, width=width)
  maps = jax.eval_shape(system.camera_maps, cameras)
  noisy = (1, backbone.padding(shape[1]) + shape[1], *shape[2:])
  latents, level = (jax.ShapeDtypeStruct(x, jnp.float32) for x in (noisy, (1,)))
  found += _passes(
    Denoiser(backbone), denoising, (latents, level, text, maps, condition), all_steps, guided
  )

  building = part("ldrm", *(("autoencoder",) if system.ldrm.stem else ()))
  among = _like(building, shape)
  function = jax.jit(functools.partial(reconstruct, system))
  arguments = (building, tiled(among, building), _everywhere(building, cameras))
  within = functools.partial(beside, building)
  return [*found, Program("reconstruct the scene", 1, function, arguments, within)]


def _passes(
  denoiser: Denoiser, params: Any, told: tuple[Any, ...], steps: int, guided: int
) -> list[Program]:
  """As `passes` makes them: both of a guided step at once, where each half has a copy, or one."""
  mesh = mesh_of(params)
  one = (params, *_everywhere(params, told))
  if mesh is None or mesh.shape.get(BRANCH, 1) != 2:
    within = functools.partial(beside, params)
    return [Program("denoise, one pass", steps + guided, denoiser.whole, one, within)]
  cut = shares(mesh)
  apart = NamedSharding(mesh, PartitionSpec(BRANCH))
  both = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((2 * x.shape[0], *x.shape[1:]), x.dtype, sharding=apart), told
  )
  fits = denoiser.can_halve(mesh.size, *one)
  rules = {"tokens": BRANCH, "spread_heads": (*cut, BRANCH)} if fits else {}
  laid = functools.partial(laid_out, mesh, heads=cut, mlp=cut)
  pair = functools.partial(laid, batch=BRANCH)
  found = [
    Program("denoise, both passes", guided, denoiser.whole, (params, *both), pair),
    Program(
      *("denoise, one pass", steps - guided, denoiser.whole, one),
      functools.partial(laid, **rules),
    ),
  ]
  return [x for x in found if x.calls]


def _like(params: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
  """An array that lies whole where parameters do."""
  return _everywhere(params, jax.ShapeDtypeStruct(shape, dtype))


def _everywhere(params: Any, tree: Any) -> Any:
  found = jax.tree.leaves(params)[0].sharding
  if isinstance(found, NamedSharding):
    found = NamedSharding(found.mesh, PartitionSpec())
  return jax.tree.map(lambda x: _laid(x, found), tree)


def _laid(array: Any, sharding: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
