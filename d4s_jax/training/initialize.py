"""Where the parameters of a new run come from: random, shipped, published, or an earlier run."""

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import optax

from d4s_jax.config import Config
from d4s_jax.formats import parts as parts_on_disk
from d4s_jax.formats import shards
from d4s_jax.models import shipped
from d4s_jax.models.adapter import ADAPTER
from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, places, processes, run_folder, sharding, state
from d4s_jax.training.stages import stage


def abstract_state(
  system: System,
  patterns: tuple[str, ...],
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  frozen_dtype: str = "float32",
) -> state.TrainState:
  """Shapes, types and shardings of the state of a run, for instance to restore it to.

  Args:
    system: the models.
    patterns: paths to train.
    optimizer: over the trained paths.
    mesh: the devices.
    frozen_dtype: see `state.create`.
  """
  shapes = jax.eval_shape(
    lambda params: state.create(params, patterns, optimizer, frozen_dtype),
    system.abstract(),
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

  The `seed`, `preset`, `frozen_dtype` and `init` of `config` count; `init` holds for each part of
  the parameters "" (random), "shipped" (weights that come with the package), the folder of a run,
  or one that `d4s_jax.convert` made. What published weights lack, the conditioning on cameras, is
  random; an adapter that is "" changes nothing yet. What came from where is printed.
  """

  def initial(parts):
    params = {}
    if parts.keys() != layout.keys():  # else tracing it would take seconds for nothing
      # The default generator takes XLA minutes to compile for hundreds of parameters.
      params = state.flatten(system.init(jax.random.key(config.seed, impl="unsafe_rbg")))
    params = state.unflatten(params, parts)
    return state.create(params, patterns, optimizer, config.frozen_dtype)

  # This program runs once: on a CPU, optimising it takes longer than running it.
  options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
  abstract = state.averaged_params(like)
  layout = sharding.of(state.flatten(abstract))
  compiled = jax.jit(
    initial, out_shardings=sharding.of(like), compiler_options=options, donate_argnums=0
  )
  parts = state.flatten(_read_parts(system, config, abstract))
  if processes.writes():
    lines = *matched(config, parts, state.flatten(abstract)), *left_at_random(config, like)
    for line in lines:
      print(line, flush=True)
  # In place at once, and given away: large weights don't fit on one device, nor twice.
  return compiled({path: jax.device_put(x, layout[path]) for path, x in parts.items()})


def check_weights(system: System, config: Config) -> None:
  """Raises CheckpointError for an `init` that can't be; reads the headers of converted weights."""
  abstract = system.abstract()
  for name, origin in config.init.items():
    if origin and name not in abstract:
      raise checkpoint.CheckpointError(
        f'init.{name} is "{origin}", but this configuration has none; set model.lora.rank to the'
        " rank of that adapter."
      )
    if origin in ("", shipped.ORIGIN):
      continue
    folder = places.place(origin)
    if found := parts_on_disk.find(folder, name):
      check_same_model(found, name, system, *parts_on_disk.open_part(found, name))
    else:
      _check_run(folder, name)


def check_tokenizer(config: Config) -> None:
  """Raises CheckpointError for a text encoder that would be given bytes and learnt other tokens."""
  origin = config.init.text_encoder
  if config.model.backbone.get("tokenizer") or origin in ("", shipped.ORIGIN):
    return
  folder = places.place(origin)
  found = parts_on_disk.find(folder, "text_encoder")
  if found is None and not _reads_tokens(folder):
    return
  own = (found or folder / "text_encoder").parent / "tokenizer"
  raise checkpoint.CheckpointError(
    f'model.backbone.tokenizer is "", which reads prompts byte by byte, but init.text_encoder is'
    f' "{origin}", which learnt the tokens of a published tokenizer; expected that one, such as'
    f" --config.model.backbone.tokenizer={own}."
  )


def _reads_tokens(folder: places.Place) -> bool:
  """Whether this is a run with a published tokenizer."""
  if not checkpoint.is_run(folder):
    return False
  return bool(run_folder.read_config(folder)["model"]["backbone"].get("tokenizer"))


def matched(config: Config, found: Iterable[str], wanted: Iterable[str]) -> Iterator[str]:
  """Says of each part that doesn't start at random how many of its arrays came from where.

  Args:
    config: of the run.
    found: paths of the arrays that were read.
    wanted: paths of all that the models have.
  """
  found = set(found)
  for name, origin in config.init.items():
    ours = [path for path in wanted if path.startswith(f"{name}/")]
    rest = [path for path in ours if path not in found]
    if origin:
      shown = ", ".join(rest[:5]) + (", ..." if len(rest) > 5 else "")
      yield f"init.{name}: {len(ours) - len(rest)} of {len(ours)} arrays from {origin}" + (
        f"; at random: {shown}" if rest else ""
      )


def left_at_random(config: Config, like: state.TrainState) -> Iterator[str]:
  """Warns of each encoder that the stage reads and that starts at random and remains so.

  Args:
    config: of the run.
    like: its state, or an `abstract_state`.
  """
  diffuses = "diffusion" in stage(config.stage).objectives
  for name in ("autoencoder", *(("text_encoder", "image_encoder") if diffuses else ())):
    is_trained = any(path.startswith(f"{name}/") for path in like.trainable)
    is_random = name in config.init and not config.init[name]
    if is_random and not is_trained:
      yield f'WARNING: init.{name} is "", and this run does not train it: it stays at random.'


def _read_parts(system: System, config: Config, abstract: Any) -> dict[str, Any]:
  """The parts of the parameters that don't start at random, by name."""
  check_weights(system, config)
  parts = {}
  for name, origin in config.init.items():
    if origin == shipped.ORIGIN:
      parts[name] = shipped.load(config.preset, name, abstract[name])
    elif origin and (folder := parts_on_disk.find(places.place(origin), name)):
      parts[name] = _from_weights(folder, name, abstract[name])
      if name == "transformer" and folder != places.place(origin):
        parts[name] |= _cameras(places.place(origin), abstract[name])
    elif origin:
      parts[name] = _from_run(places.place(origin), name, system, abstract[name])
  return parts


def _from_weights(folder: pathlib.Path, name: str, like: Any) -> Any:
  """One part from published weights, without what they lack, in the types of `like`."""
  _, stored = parts_on_disk.open_part(folder, name)
  kinds = {path: x.dtype for path, x in state.flatten(like).items() if path in stored.specs}
  return state.unflatten(
    {path: parts_on_disk.as_float32(stored, path).astype(kind) for path, kind in kinds.items()}
  )


def _cameras(origin: pathlib.Path, like: Any) -> Any:
  """The conditioning on cameras that lies beside a transformer, if this was a run; else nothing."""
  folder = parts_on_disk.find(origin, parts_on_disk.LDRM)
  if folder is None:
    return {}
  _, stored = parts_on_disk.open_part(folder, parts_on_disk.LDRM)
  theirs = {x: spec.shape for x, spec in stored.specs.items() if _is_ours(x)}
  kinds = {path: x for path, x in state.flatten(like).items() if _is_ours(path)}
  wrong = [
    f"{path}: {theirs.get(path)} there, {kinds[path].shape if path in kinds else None} here"
    for path in sorted(theirs.keys() | kinds.keys())
    if path not in kinds or theirs.get(path) != kinds[path].shape
  ]
  if wrong:
    raise checkpoint.CheckpointError(
      f"The cameras in {folder} are of another model than the configuration says"
      f" ({'; '.join(wrong[:5])}); use the preset of the run that they are of."
    )
  return state.unflatten(
    {path: parts_on_disk.as_float32(stored, path).astype(x.dtype) for path, x in kinds.items()}
  )


def check_same_model(
  folder: pathlib.Path,
  name: str,
  system: System,
  description: parts_on_disk.Description,
  stored: shards.Shards,
  remedy: str = "choose the preset of its size, or convert it again",
) -> None:
  """Raises CheckpointError unless published weights are those of our model.

  Args:
    folder: where they lie, for the message.
    name: which part they are.
    system: the models.
    description: what their config.json says.
    stored: the tensors.
    remedy: what to do if they are not.
  """
  is_ldrm = name == parts_on_disk.LDRM
  module = system.ldrm if is_ldrm else getattr(system.backbone, name, None)
  kind = parts_on_disk.class_name(description.published)
  if not all(hasattr(module, key) for key in description.fields):
    raise checkpoint.CheckpointError(
      f"The {name} in {folder} is a {kind}, which is no {type(module).__name__} as the"
      " configuration has it; choose a preset of its family."
    )
  wrong = [
    f"{key} {value} there, {getattr(module, key)} here"
    for key, value in description.fields.items()
    if not _is_same(key, value, getattr(module, key))
  ]
  ours = {path: x.shape for path, x in state.flatten(system.abstract()[name]).items()}
  theirs = {
    path: spec.shape
    for path, spec in stored.specs.items()
    if not path.startswith(parts_on_disk.UNREAD) and not (is_ldrm and _is_ours(path))
  }
  wrong += [
    f"{path}: {theirs.get(path)} there, {ours.get(path)} here"
    for path in sorted(ours.keys() | theirs.keys())
    if theirs.get(path) != ours.get(path) and not (path not in theirs and _is_ours(path))
  ]
  if wrong and name == ADAPTER:
    layers = sorted({path.rpartition("/")[0] for path in theirs})
    remedy = (
      "set config.model.lora.rank and scale to its own, and config.model.lora.targets to patterns"
      f" of its layers: {', '.join(layers)}"
    )
  if wrong:
    raise checkpoint.CheckpointError(
      f"The {name} in {folder} is of another model than the configuration says"
      f" ({'; '.join(wrong[:5])}); {remedy}."
    )


# What an autoencoder means that has none of these.
_UNSAID = {"latents_mean": 0.0, "latents_std": 1.0}


def _is_same(key: str, there: Any, here: Any) -> bool:
  """Whether a field in a file, whose tuples are lists, is that of our module."""
  if key in _UNSAID and here == ():
    return all(x == _UNSAID[key] for x in there)
  return here == (tuple(there) if isinstance(there, list) else there)


def _is_ours(path: str) -> bool:
  """Whether a parameter is one that no published model has."""
  return path.startswith(parts_on_disk.CAMERA)


def _check_run(folder: places.Place, name: str) -> None:
  """Raises CheckpointError for a folder that can be no run."""
  if folder.is_dir() and parts_on_disk.is_published(folder):
    raise checkpoint.CheckpointError(f"init.{name}: {parts_on_disk.unconverted(folder)}")
  if not folder.is_dir():
    raise checkpoint.CheckpointError(
      f'init.{name} is "{folder}"; expected "", "{shipped.ORIGIN}" or the folder of a run or of'
      " converted weights."
    )


def _from_run(folder: places.Place, name: str, system: System, like: Any) -> Any:
  """One part of the model of another run, which must have the same shapes."""
  _, other = run_folder.read_system(folder)
  stored = other.abstract().get(name, {})
  ours = {path: x.shape for path, x in state.flatten(like).items()}
  theirs = {path: x.shape for path, x in state.flatten(stored).items()}
  wrong = [
    f"{path}: {theirs.get(path)} there, {ours.get(path)} here"
    for path in sorted(ours.keys() | theirs.keys())
    if theirs.get(path) != ours.get(path)
  ]
  scales = [x.backbone.adapter.scale for x in (other, system)]
  if name == ADAPTER and scales[0] != scales[1]:
    wrong.insert(0, f"model.lora.scale: {scales[0]} there, {scales[1]} here")
  if wrong:
    raise checkpoint.CheckpointError(
      f"init.{name}: the model in {folder} has other shapes than this configuration"
      f" ({'; '.join(wrong[:5])}); use the same preset for both."
    )
  # In the types that were written, in which sums are checked, and where ours will lie.
  wanted = jax.tree.map(
    lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y.sharding), stored, like
  )
  params, _ = checkpoint.read_model(folder, {name: wanted})
  return jax.tree.map(lambda x, y: x.astype(y.dtype), params[name], like)
