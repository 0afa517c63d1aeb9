"""Every configuration loads, and its whole training step traces at full size without computing."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from d4s_jax.config import PRESETS, base
from d4s_jax.models.system import System
from d4s_jax.training import objectives, state
from d4s_jax.training.optimizer import check_groups, make_optimizer
from d4s_jax.training.stages import stage, trained
from d4s_jax.training.step import make_step
from d4s_jax.types import Cameras, Clip, Tracks, Views

# Of training; what d4s_jax.evaluate is told has other keys.
FILES = sorted(
  path
  for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py")
  if path.stem != "evaluate"
)
# One full size goes through every stage; the others differ only in widths.
CASES = [
  *((file.stem, "tiny") for file in FILES),
  *((file.stem, "wan1.3b") for file in FILES),
  ("joint", "wan14b"),
  ("joint", "wan14b-i2v-480p"),
  ("joint", "wan2.2-5b-ti2v"),
  ("joint", "paper"),
  *(("joint", preset) for preset in PRESETS if preset.startswith("cogvideox")),
  ("static", "paper,256"),
]


def load(name, argument):
  file = next(file for file in FILES if file.stem == name)
  spec = importlib.util.spec_from_file_location(name, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(argument)


def abstract_clip(config, length):
  b, f, v = config.batch_size, config.clip.frames, config.clip.targets
  h, w = config.clip.height, config.clip.width
  array = jax.ShapeDtypeStruct

  def views(count):
    return Views(
      images=array((b, count, h, w, 3), jnp.float32),
      depth=array((b, count, h, w), jnp.float32),
      cameras=Cameras(
        world_from_camera=array((b, count, 4, 4), jnp.float32),
        intrinsics=array((b, count, 3, 3), jnp.float32),
        height=h,
        width=w,
      ),
      times=array((b, count), jnp.float32),
    )

  return Clip(
    source=views(f),
    target=views(v),
    tracks=Tracks(
      points=array((b, 64, f, 3), jnp.float32),
      visible=array((b, 64, f), bool),
      valid=array((b, 64, f), bool),
    ),
    instances=array((b, f, h, w), jnp.int32),
    dynamic=array((b,), bool),
    scale=array((b,), jnp.float32),
    text=array((b, length), jnp.int32),
  )


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_training_step_traces(name, argument):
  config = load(name, argument)
  chosen = stage(config.stage)
  assert config.stage == name
  system = System.build(config.model.to_dict())
  system.check_size(config.clip.frames, config.clip.height, config.clip.width)
  optimizer = make_optimizer(steps=config.steps, **config.optimizer.to_dict())
  settings = objectives.Settings(**config.loss.to_dict())
  objective = objectives.make_objective(system, chosen, settings)
  step = make_step(objective, optimizer, seed=0, average_decay=config.average_decay)
  create = functools.partial(state.create, patterns=chosen.trainable, optimizer=optimizer)
  now = jax.eval_shape(create, system.abstract())
  check_groups(sorted(now.trainable | now.frozen), config.optimizer.groups)
  following, metrics = jax.eval_shape(
    step, now, abstract_clip(config, system.backbone.tokenizer.max_length)
  )
  assert jax.tree.map(lambda x: x.shape, following) == jax.tree.map(lambda x: x.shape, now)
  expected = {
    "autoencoder": {"photometric", "perceptual", "moments"},
    "diffusion": {"flow_matching"},
    "geometry": {"depth", "motion", "motion_error"},
    "static": {"photometric", "perceptual", "geometric"},
    "dynamic": {"photometric", "perceptual", "geometric", "motion"},
    "joint": {"flow_matching", "photometric", "perceptual", "geometric", "motion"},
  }[name]
  assert expected <= metrics.keys()


def test_adapters_of_the_largest_size():
  """What is trained of 14 billion parameters, and that the whole step traces."""
  config = load("diffusion", "wan14b")
  config.model.lora.rank, config.frozen_dtype = 32, "bfloat16"
  system = System.build(config.model.to_dict())
  optimizer = make_optimizer(steps=config.steps, **config.optimizer.to_dict())
  settings = objectives.Settings(**config.loss.to_dict())
  objective = objectives.make_objective(system, stage("diffusion"), settings)
  step = make_step(objective, optimizer, seed=0, average_decay=config.average_decay)
  patterns = trained(stage("diffusion").trainable, adapted=True)
  now = jax.eval_shape(
    lambda params: state.create(params, patterns, optimizer, config.frozen_dtype),
    system.abstract(),
  )
  adapters = {path: x for path, x in now.trainable.items() if path.startswith("adapter/")}
  # 40 blocks: eight matrices 5120 x 5120 and two 5120 x 13824, each of rank 32.
  count = 40 * 32 * (8 * (5120 + 5120) + 2 * (5120 + 13824))
  assert sum(x.size for x in adapters.values()) == count == 153_354_240
  base = [x for path, x in now.frozen.items() if path.startswith("transformer/")]
  assert sum(x.size * x.dtype.itemsize for x in base) < 28.6e9
  following, _ = jax.eval_shape(step, now, abstract_clip(config, 512))
  assert following.trainable.keys() == now.trainable.keys()


def test_static_stage_leaves_the_deformation_alone():
  config = load("static", "tiny")
  paths = sorted(state.flatten(System.build(config.model.to_dict()).abstract()))
  trained, kept = state.split_by_path(paths, stage("static").trainable)
  assert any(path.startswith("ldrm/deformation/") for path in kept)
  assert not any("deformation" in path for path in trained)
  assert all(path.startswith("ldrm/") for path in trained)


def test_published_sizes():
  """Parameters of the transformers without cameras, as diffusers counts them."""
  sizes = {"wan1.3b": 1_418_996_800, "wan14b": 14_288_491_584}
  sizes |= {"cogvideox-2b": 1_693_783_872, "cogvideox-5b": 5_570_283_072}
  sizes |= {"cogvideox-1.5-5b-i2v": 5_571_594_880}
  for preset, published in sizes.items():
    params = System.build(base(preset).model.to_dict()).abstract()
    count = sum(x.size for x in jax.tree.leaves(params["transformer"]))
    camera = sum(x.size for x in jax.tree.leaves(params["transformer"]["camera"]))
    assert count - camera == published


def test_size_after_the_preset_is_the_stage_2_resolution():
  config = load("static", "wan1.3b,512")
  assert (config.clip.height, config.clip.width) == (512, 512)


def test_unknown_preset_names_the_known_ones():
  with pytest.raises(ValueError, match="'small'.*tiny"):
    base("small")
  assert "tiny" in PRESETS
