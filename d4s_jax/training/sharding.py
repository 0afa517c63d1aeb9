"""The mesh: which devices there are, and which logical axis goes along which mesh axis."""

from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# data: copies of the model; fsdp: parameters and optimizer state cut into pieces.
MESH_AXES = ("data", "fsdp")

RULES = (
  ("batch", ("data", "fsdp")),
  ("frames", None),
  ("tokens", None),
  ("text", None),
  ("embed", "fsdp"),
  ("mlp", None),
  ("heads", None),
  ("channels", None),
  ("layers", None),
)

# In generation there is one sample and no gradient: heads and inner widths of layers are cut, so
# that every device computes its own share and only sums travel.
GENERATION_RULES = tuple((axis, "fsdp" if axis in ("heads", "mlp") else None) for axis, _ in RULES)


def make_mesh(fsdp: int = 1) -> Mesh:
  """All devices as a (data, fsdp) mesh.

  Args:
    fsdp: devices that share one copy of the parameters; it divides the number of devices.
  """
  devices = jax.device_count()
  if fsdp < 1 or devices % fsdp:
    raise ValueError(f"mesh.fsdp is {fsdp}; expected a divisor of the {devices} devices present.")
  # make_mesh defaults to explicit axes, which Linen's logical constraints don't accept.
  return jax.make_mesh((devices // fsdp, fsdp), MESH_AXES, axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Batches are cut along their first axis over all devices."""
  return NamedSharding(mesh, PartitionSpec(MESH_AXES))


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
      axis if axis and size % mesh.shape[axis] == 0 else None
      for axis, size in zip(spec, value.shape)
    ]
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree.map(sharding, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def to_device(batch: Any, mesh: Mesh) -> Any:
  """Places this process's part of a batch on its devices, as one global array for each leaf."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


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
