"""The mesh: which devices there are, and which logical axis goes along which mesh axes."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from d4s_jax.layers.partitioning import BRANCH

# data: copies of the model, the axis that may lie over slices of a pod; fsdp: copies whose
# parameters and optimizer state are cut into pieces; ring, ulysses: parts of each sample's tokens
# (layers.sequence_parallel); tensor: parts of the heads and inner widths of layers.
MESH_AXES = ("data", "fsdp", "ring", "ulysses", "tensor")

RULES = (
  ("batch", ("data", "fsdp")),
  # Pictures that are drawn have no tokens: every device can take some.
  ("views", MESH_AXES),
  ("frames", None),
  ("tokens", ("ring", "ulysses")),
  ("gathered", "ring"),
  ("text", None),
  ("embed", "fsdp"),
  ("mlp", "tensor"),
  ("heads", "tensor"),
  ("spread_heads", ("tensor", "ulysses")),
  ("channels", None),
  ("layers", None),
)


def make_mesh(
  fsdp: int = 1,
  ring: int = 1,
  ulysses: int = 1,
  tensor: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """All devices as a mesh of MESH_AXES; what the other axes leave is "data".

  Args:
    fsdp: devices that share one copy of the parameters.
    ring: parts of each sample's tokens between which keys and values go round.
    ulysses: parts of each sample's tokens which become parts of its heads in attention.
    tensor: parts of heads and inner widths.
    devices: instead of all that are present. Those of several slices are joined along "data".

  Raises:
    ValueError: the sizes don't divide the devices, or those of a slice.
  """
  devices = jax.devices() if devices is None else list(devices)
  # Hosts of GPUs have numbers of that name too, but no torus of their own.
  tpus = devices[0].platform == "tpu"
  slices = len({getattr(device, "slice_index", 0) for device in devices}) if tpus else 1
  inner = (fsdp, ring, ulysses, tensor)
  size = math.prod(inner)
  if min(inner) < 1 or len(devices) % (size * slices):
    wanted = ", ".join(f"mesh.{axis} {n}" for axis, n in zip(MESH_AXES[1:], inner))
    each = f"{slices} slices of {len(devices) // slices}" if slices > 1 else f"the {len(devices)}"
    raise ValueError(f"{wanted}; expected a product that divides {each} devices present.")
  shape = (len(devices) // (size * slices), *inner)
  if slices > 1:
    arranged = mesh_utils.create_hybrid_device_mesh(
      shape, (slices, *len(inner) * (1,)), devices, allow_split_physical_axes=True
    )
  else:
    arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  # Explicit axes, JAX's default, are not what Linen's logical constraints accept.
  return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def generation_mesh(devices: Sequence[Any], passes: int = 1) -> Mesh:
  """Devices that make one sample together.

  They lie along `BRANCH`, if there are two passes, and along axes of prime sizes, so that rows and
  columns of a picture can each have some of them.

  Args:
    devices: all of them.
    passes: of guidance that lie side by side: 1 or 2, which divides the devices.
  """
  sizes = {BRANCH: 2} if passes == 2 else {}
  left, factor = len(devices) // passes, 2
  while left > 1:
    while left % factor:
      factor += 1
    sizes[f"cut{len(sizes)}"] = factor
    left //= factor
  # One device is a mesh, too.
  sizes = sizes or {"cut0": 1}
  arranged = make_mesh(len(devices), devices=devices).devices.reshape(*sizes.values())
  return Mesh(arranged, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def generation_rules(mesh: Mesh) -> tuple[tuple[str, Any], ...]:
  """Where logical axes lie on a `generation_mesh`.

  There is one sample and no gradient: heads and inner widths of layers are cut, so that every
  device computes its own share and only sums travel.
  """
  cuts = tuple(axis for axis in mesh.axis_names if axis != BRANCH)
  return tuple((axis, cuts if axis in ("heads", "mlp") else None) for axis, _ in RULES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Batches are cut along their first axis; devices that share samples have all of them."""
  return NamedSharding(mesh, PartitionSpec(dict(RULES)["batch"]))


def copies(mesh: Mesh) -> int:
  """Parts that a batch is cut into."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def rows(mesh: Mesh, size: int) -> list[int]:
  """The samples of a batch of `size` that this process has to bring, in order.

  Several processes bring the same ones if a sample lies on devices of them all.
  """
  places = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
  return sorted({row for part in places if part for row in range(*part[0].indices(size))})


def whole() -> PartitionSpec | None:
  """The sharding of results that every process reads: a copy on each device of the mesh in use."""
  return None if jax.sharding.get_abstract_mesh().empty else PartitionSpec()


def parameter_shardings(mesh: Mesh, boxed: Any, rules: Any = RULES) -> Any:
  """The sharding of each parameter, from the logical axis names in its box.

  A dimension that the mesh axis does not divide stays whole.

  Args:
    mesh: the devices.
    boxed: abstract parameters as the models initialise them, in boxes that name their axes.
    rules: which logical axis goes along which mesh axis.
  """

  def sharding(box: Any) -> NamedSharding:
    value, names = (box.value, box.names) if isinstance(box, nn.LogicallyPartitioned) else (box, ())
    spec = nn.spmd.logical_to_mesh_axes(names, rules) or PartitionSpec()
    axes = [
      axis if axis and size % _size(mesh, axis) == 0 else None
      for axis, size in zip(spec, value.shape)
    ]
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree.map(sharding, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def _size(mesh: Mesh, axes: str | tuple[str, ...]) -> int:
  return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))


def to_device(batch: Any, mesh: Mesh, batch_size: int) -> Any:
  """Places this process's part of a batch (`rows`) as one global array for each leaf."""
  sharding = batch_sharding(mesh)

  def place(x):
    return jax.make_array_from_process_local_data(sharding, x, (batch_size, *x.shape[1:]))

  return jax.tree.map(place, batch)


def state_shardings(mesh: Mesh, boxed: Any, abstract_state: Any) -> Any:
  """The sharding of every array of a training state.

  Moments and averages lie as the parameter whose path they are filed under; all else is copied to
  every device.
  """
  by_path = traverse_util.flatten_dict(parameter_shardings(mesh, boxed), sep="/")
  everywhere = NamedSharding(mesh, PartitionSpec())

  def of_leaf(path, leaf):
    names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    found = by_path.get(names[-1]) if names else None
    return found if found is not None and leaf.ndim else everywhere

  return jax.tree_util.tree_map_with_path(of_leaf, abstract_state)


def of(tree: Any) -> Any:
  """The shardings that the arrays of a tree have."""
  return jax.tree.map(lambda x: x.sharding, tree)
