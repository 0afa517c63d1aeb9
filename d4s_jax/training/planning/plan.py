"""The real step of training, compiled for accelerators that aren't here, and what it would take."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from d4s_jax.config import Config
from d4s_jax.losses import perceptual
from d4s_jax.losses.lpips import load_weights
from d4s_jax.models.backbone import Embedded
from d4s_jax.models.system import System
from d4s_jax.training import initialize, objectives, sharding, state
from d4s_jax.training.optimizer import make_optimizer
from d4s_jax.training.planning import flops
from d4s_jax.training.planning.chips import Chip, open_topology
from d4s_jax.training.planning.hlo import Collective, Program
from d4s_jax.training.stages import Stage, stage, trained
from d4s_jax.training.update import make_function, make_update
from d4s_jax.types import Cameras, Clip, Tracks, Views

# Point tracks of a clip, as of the embedded scenes.
_TRACKS = 256


@dataclasses.dataclass(frozen=True)
class Plan:
  """What one program takes. Bytes and seconds are of one device, operations of all together.

  Attributes:
    mesh: sizes of the mesh's axes.
    samples: of a global batch.
    chip: the accelerator.
    memory: bytes by part, and their "peak" as the compiler laid them out; empty if it found no way.
    refusal: what the compiler said if the program does not fit; else empty.
    executed: operations, those that are done again for the gradient included.
    useful: operations without these, by which utilisation is measured; never more.
    moved: bytes between memory and the chip.
    collectives: what devices exchange.
    far: mesh axes whose devices are not all in one slice, or on one host of GPUs.
    unknown_loops: loops whose length depends on data; counted once in all of the above.
    turn: bytes between memory and the chip in one turn of these.
    seconds: of compiling.
  """

  mesh: dict[str, int]
  samples: int
  chip: Chip
  memory: dict[str, float]
  refusal: str
  executed: float
  useful: float
  moved: float
  collectives: list[Collective]
  far: frozenset[str]
  unknown_loops: int
  turn: float
  seconds: float

  @property
  def devices(self) -> int:
    """JAX devices."""
    return math.prod(self.mesh.values())

  @property
  def terms(self) -> dict[str, float]:
    """Seconds of a step that computing, memory and network would take alone, at their peaks."""
    return {
      "compute": self.executed / self.devices / self.chip.flops,
      "memory": self.moved / self.chip.bandwidth,
      "network": sum(x.received / self._speed(x) for x in self.collectives),
    }

  @property
  def limit(self) -> str:
    """The longest of `terms`."""
    return max(self.terms, key=self.terms.__getitem__)

  @property
  def bound(self) -> float:
    """Roofline: the share of peak that `useful` can reach if everything overlaps."""
    return self.useful / self.devices / self.chip.flops / max(self.terms.values())

  def _speed(self, exchange: Collective) -> float:
    """Bytes per second that a device gets."""
    return self.chip.outside if self.far.intersection(exchange.axes) else self.chip.link


def plan_training(config: Config, topology: str, samples: int | None = None) -> Plan:
  """Compiles the update of a run and counts what it takes.

  Args:
    config: as of `d4s_jax.train`; `mesh` counts, and `accumulate`.
    topology: see `chips.open_topology`.
    samples: of a batch on each part of the devices that shares samples, instead of `batch_size`.

  Raises:
    ValueError: the configuration can't be built, or the topology is unknown.
  """
  chip, devices = open_topology(topology)
  mesh = sharding.make_mesh(**config.mesh, devices=devices)
  batch_size = config.batch_size if samples is None else samples * sharding.copies(mesh)
  if batch_size % (sharding.copies(mesh) * config.accumulate):
    raise ValueError(
      f"batch_size is {batch_size}; expected a multiple of {sharding.copies(mesh)} devices that"
      f" don't share samples x accumulate {config.accumulate}; --samples=1 gives each of them one."
    )
  system = System.build(config.model.to_dict())
  system.check_size(config.clip.frames, config.clip.height, config.clip.width)
  chosen = stage(config.stage)
  patterns = trained(
    tuple(config.trainable) or chosen.trainable, adapted=system.backbone.adapter.rank > 0
  )
  optimizer = make_optimizer(steps=config.steps, **config.optimizer.to_dict())
  settings = objectives.Settings(**config.loss.to_dict())
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
    like = initialize.abstract_state(system, patterns, optimizer, mesh, config.frozen_dtype)
    clip = abstract_clip(config, system, batch_size, sharding.batch_sharding(mesh))
    everywhere = jax.NamedSharding(mesh, jax.P())
    lpips = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
      load_weights(settings.lpips),
    )
    update = make_update(config, system, chosen, settings, optimizer, like)
    memory = {
      "parameters": bytes_of(like.trainable),
      "optimizer": bytes_of(like.optimizer),
      "moving average": bytes_of(like.average),
      "frozen parameters": bytes_of(like.frozen),
      "batch": bytes_of(clip),
    }
    plan = measure(chip, mesh, batch_size, lambda: update.lower(like, clip, lpips), memory)
  like, clip, lpips = plain((like, clip, lpips))
  # On no mesh, so that attention has the form of a CPU.
  function = make_function(config, system, chosen, settings, optimizer)
  executed = flops.count(function, like, clip, lpips)
  useful = _useful(system, chosen, settings, like, clip, lpips)
  # A stem's decoder has half a gradient, too, which `_useful` does not know.
  return dataclasses.replace(plan, executed=executed, useful=min(useful, executed))


def measure(
  chip: Chip, mesh: Mesh, samples: int, lower: Callable[[], Any], memory: Mapping[str, float]
) -> Plan:
  """Compiles a program and reads it; its operations are left for others to count.

  Args:
    chip: what `mesh` is made of.
    mesh: the devices.
    samples: that the program computes.
    lower: traces it.
    memory: bytes of its arguments, by part.
  """
  began = time.perf_counter()
  lowered = lower()
  refusal, compiled = "", None
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    refusal = str(error).splitlines()[0][:300]
  seconds = time.perf_counter() - began
  memory, program = dict(memory), None
  if compiled is not None:
    found: Any = compiled.memory_analysis()
    memory["activations and temporaries"] = found.temp_size_in_bytes
    memory["peak"] = found.peak_memory_in_bytes
    program = Program(compiled.as_text())
    if memory["peak"] > chip.memory:  # A GPU's compiler does not refuse.
      refusal = f"needs {memory['peak'] / 2**30:.1f} GiB"
  moved, turn = program.moved() if program else (math.nan, math.nan)
  return Plan(
    mesh=dict(mesh.shape),
    samples=samples,
    chip=chip,
    memory=memory,
    refusal=refusal,
    executed=math.nan,
    useful=math.nan,
    moved=moved,
    collectives=program.collectives(mesh.shape) if program else [],
    far=_far(chip, mesh),
    unknown_loops=program.unknown if program else 0,
    turn=turn,
    seconds=seconds,
  )


def _far(chip: Chip, mesh: Mesh) -> frozenset[str]:
  """Mesh axes along which data leave a slice of TPUs, or a host of GPUs."""
  devices = list(mesh.devices.flat)
  slices = {getattr(device, "slice_index", None) for device in devices}
  near = chip.near or len(devices) // len(slices)
  far, extent = set(), 1
  for axis in reversed(mesh.axis_names):
    extent *= mesh.shape[axis]
    if extent > near and mesh.shape[axis] > 1:
      far.add(axis)
  return frozenset(far)


def abstract_clip(config: Config, system: System, batch: int, cut: Any) -> Clip:
  """Shapes and types of a batch of clips, as the loader and a text cache would bring it."""
  frames, height, width = (config.clip[name] for name in ("frames", "height", "width"))

  def array(*shape, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=cut)

  def views(count):
    cameras = Cameras(
      world_from_camera=array(count, 4, 4),
      intrinsics=array(count, 3, 3),
      height=height,
      width=width,
    )
    images, depth = array(count, height, width, 3), array(count, height, width)
    return Views(images=images, depth=depth, cameras=cameras, times=array(count))

  def prompts() -> Any:
    tokens = array(system.backbone.tokenizer.max_length, dtype=jnp.int32)
    if not config.text_cache:
      return tokens
    text = jax.eval_shape(system.backbone.encode_text, system.abstract(), tokens)
    return jax.tree.map(lambda x: array(*x.shape[1:], dtype=x.dtype), Embedded(text, text))

  known = array(_TRACKS, frames, dtype=bool)
  return Clip(
    source=views(frames),
    target=views(config.clip.targets),
    tracks=Tracks(points=array(_TRACKS, frames, 3), visible=known, valid=known),
    instances=array(frames, height, width, dtype=jnp.int32),
    dynamic=array(dtype=bool),
    scale=array(),
    text=prompts(),
  )


def tokens(config: Config) -> int:
  """Tokens that the video transformer makes of a sample."""
  backbone = System.build(config.model.to_dict()).backbone
  clip = config.clip
  shape = backbone.latent_shape(1, clip.frames, clip.height, clip.width)[1:4]
  return math.prod(math.ceil(size / part) for size, part in zip(shape, backbone.patch))


def plain(tree: Any) -> Any:
  """Shapes and types without their layout: for counting, on no mesh."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def bytes_of(tree: Any) -> float:
  """Of one device's part of arrays that are laid out."""
  return float(
    sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
  )


def _useful(
  system: System, chosen: Stage, settings: objectives.Settings, like: Any, clip: Clip, lpips: Any
) -> float:
  """Operations of a loss and its gradient if nothing is computed twice.

  A gradient takes twice what the loss does, but what is not trained has none: the encoders, and the
  network of the perceptual loss, which has one by its input, for half of what it sees.
  """
  params = state.unflatten(like.frozen, like.trainable)
  images, target = clip.source.images, clip.target.images
  key = jax.eval_shape(lambda: jax.random.key(0))

  def objective(params, clip, key, lpips):
    return objectives.make_objective(system, chosen, settings, lpips)(params, clip, key)

  total = 3 * flops.count(objective, params, clip, key, lpips)
  if chosen.objectives != ("autoencoding",):
    total -= 2 * flops.count(system.backbone.encode, params, images)
  if "diffusion" in chosen.objectives:

    def condition(params, images):
      return system.backbone.condition(params, images[:, 0], images.shape[1])

    total -= 2 * flops.count(condition, params, images)
    total -= 2 * flops.count(system.backbone.encode_text, params, clip.text)
  if "reconstruction" in chosen.objectives:

    def compared(drawn, seen, lpips):
      return perceptual(drawn, seen, lpips, net=settings.lpips)

    total -= 1.5 * flops.count(compared, target, target, lpips)
  return total
