"""Where the parameters of a new run come from: random, shipped weights, or an earlier run."""

import pathlib
from typing import Any

import jax
import optax

from d4s_jax.config import Config
from d4s_jax.models import shipped
from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, sharding, state


def abstract_state(
  system: System,
  patterns: tuple[str, ...],
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
) -> state.TrainState:
  """Shapes, types and shardings of the state of a run, for instance to restore it to.

  Args:
    system: the models.
    patterns: paths to train.
    optimizer: over the trained paths.
    mesh: the devices.
  """
  shapes = jax.eval_shape(
    lambda params: state.create(params, patterns, optimizer), system.abstract()
  )
  layout = sharding.state_shardings(mesh, system.boxed(), shapes)
  return jax.tree.map(
    lambda x, cut: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cut), shapes, layout
  )


def create_state(
  system: System,
  config: Config,
  patterns: tuple[str, ...],
  optimizer: optax.GradientTransformation,
  like: state.TrainState,
) -> state.TrainState:
  """The state at step 0, laid out as `like`, an `abstract_state`.

  The `seed`, `preset` and `init` of `config` count; `init` holds for each part of the parameters ""
  (random), "shipped" (weights that come with the package) or the folder of a run.
  """

  def initial(parts):
    # The default generator takes XLA minutes to compile for hundreds of parameters.
    params = system.init(jax.random.key(config.seed, impl="unsafe_rbg"))
    return state.create(params | parts, patterns, optimizer)

  # This program runs once: on a CPU, optimising it takes longer than running it.
  options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
  compiled = jax.jit(initial, out_shardings=sharding.of(like), compiler_options=options)
  return compiled(_read_parts(system, config))


def _read_parts(system: System, config: Config) -> dict[str, Any]:
  """The parts of the parameters that don't start at random, by name."""
  abstract = system.abstract()
  parts = {}
  for name, origin in config.init.items():
    if origin == shipped.ORIGIN:
      parts[name] = shipped.load(config.preset, name, abstract[name])
    elif origin:
      parts[name] = _from_run(pathlib.Path(origin), name, abstract[name])
  return parts


def _from_run(folder: pathlib.Path, name: str, like: Any) -> Any:
  """One part of the model of another run, which must have the same shapes."""
  if not folder.is_dir():
    raise checkpoint.CheckpointError(
      f'init.{name} is "{folder}"; expected "", "{shipped.ORIGIN}" or the folder of a run.'
    )
  _, system = checkpoint.read_system(folder)
  params, _ = checkpoint.read_model(folder, system.abstract())
  ours, theirs = state.flatten(like), state.flatten(params[name])
  wrong = [
    f"{path}: {getattr(theirs.get(path), 'shape', None)} there, "
    f"{getattr(ours.get(path), 'shape', None)} here"
    for path in sorted(ours.keys() | theirs.keys())
    if getattr(theirs.get(path), "shape", None) != getattr(ours.get(path), "shape", None)
  ]
  if wrong:
    raise checkpoint.CheckpointError(
      f"init.{name}: the model in {folder} has other shapes than this configuration"
      f" ({'; '.join(wrong[:5])}); use the same preset for both."
    )
  return params[name]
