"""The step of a run as one program, for the loop and for planning."""

from typing import Any

import jax
import optax

from d4s_jax.config import Config
from d4s_jax.models.system import System
from d4s_jax.training import objectives, sharding, state
from d4s_jax.training.stages import Stage
from d4s_jax.training.step import make_step
from d4s_jax.types import Clip


def make_update(
  config: Config,
  system: System,
  chosen: Stage,
  settings: objectives.Settings,
  optimizer: optax.GradientTransformation,
  like: state.TrainState,
) -> Any:
  """The step, jitted: (state, which it overwrites; batch; LPIPS) -> (state, metrics).

  Args:
    config: of the run.
    system: the models.
    chosen: the stage.
    settings: of the objectives.
    optimizer: over the trained parameters.
    like: the state, or its shapes and shardings.
  """
  update = make_function(config, system, chosen, settings, optimizer)
  return jax.jit(update, donate_argnums=0, out_shardings=(sharding.of(like), sharding.whole()))


def make_function(
  config: Config,
  system: System,
  chosen: Stage,
  settings: objectives.Settings,
  optimizer: optax.GradientTransformation,
) -> Any:
  """What `make_update` compiles; it knows no mesh."""

  def update(now: state.TrainState, batch: Clip, lpips: Any):
    # LPIPS is an argument: XLA makes copies of a constant of this size while it compiles, and keeps
    # them in the program.
    step = make_step(
      objectives.make_objective(system, chosen, settings, lpips),
      optimizer,
      seed=config.seed,
      average_decay=config.average_decay,
      accumulate=config.accumulate,
      spike=config.spike,
    )
    return step(now, batch)

  return update
