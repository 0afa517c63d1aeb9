"""The video transformers beside those of diffusers, and how long the published sizes compile.

python tests/benchmarks/transformer.py
python tests/benchmarks/transformer.py --profile
python tests/benchmarks/transformer.py --compile

Times are of two blocks of width 1024 over 1,920 video tokens, float32, on two threads of a CPU, on
the same random weights, forward and forward with the gradient of all weights; medians of runs taken
in turn. A ratio below 1 is in our favour. --compile prints the seconds that tracing and XLA take
for one pass of the published depths and widths at 480 x 720 (Wan: 480 x 832), computing nothing.
--profile prints where our time goes.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.config import PRESETS, base  # noqa: E402
from d4s_jax.models.system import System  # noqa: E402
from d4s_jax.weights.components import COMPONENTS  # noqa: E402
from tests.benchmarks.profiling import profile  # noqa: E402
from tests.models.cogvideox_oracle import rotary  # noqa: E402
from tests.support import from_torch  # noqa: E402

_ROUNDS = 5
_PASSES = "forward", "with gradients"
_FRAMES, _ROWS, _COLUMNS, _TEXT = 5, 32, 48, 226
_CONFIGS = {
  "WanTransformer3DModel": dict(
    num_attention_heads=8, attention_head_dim=128, ffn_dim=4096, num_layers=2, text_dim=1024
  ),
  "CogVideoXTransformer3DModel": dict(
    num_attention_heads=16,
    attention_head_dim=64,
    num_layers=2,
    text_embed_dim=1024,
    use_rotary_positional_embeddings=True,
  ),
}


def _models(name: str):
  """Theirs, ours, and our parameters with the same weights."""
  torch.manual_seed(0)
  model = getattr(diffusers, name)(**_CONFIGS[name])
  component = COMPONENTS[name]
  settings = json.loads(model.to_json_string())
  fields = component.fields(settings)
  module = component.module(**fields)
  inputs = component.inputs(settings, fields)
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  values = {key: x.numpy() for key, x in model.state_dict().items()}
  return model, module, from_torch(component.rules, shapes, values)


def _inputs():
  random = np.random.default_rng(0)
  latents = random.standard_normal((1, _FRAMES, _ROWS, _COLUMNS, 16), np.float32)
  return latents, random.standard_normal((1, _TEXT, 1024), np.float32)


def _theirs(name: str, model):
  latents, text = _inputs()
  axis = 2 if name.startswith("CogVideoX") else 1
  given = {"hidden_states": torch.from_numpy(np.moveaxis(latents, -1, axis).copy())}
  given |= {"encoder_hidden_states": torch.from_numpy(text), "timestep": torch.tensor([500.0])}
  if name.startswith("CogVideoX"):
    grid = dict(head_dim=64, grid=(_FRAMES, _ROWS // 2, _COLUMNS // 2))
    given["image_rotary_emb"] = rotary(grid, _FRAMES, _ROWS // 2, _COLUMNS // 2)

  def forward():
    with torch.no_grad():
      model(**given)

  def both():
    model.zero_grad()
    model(**given).sample.square().sum().backward()

  return forward, both


def _ours(module, params):
  latents, text = (jnp.asarray(x) for x in _inputs())

  def apply(params):
    return module.apply({"params": params}, latents, jnp.array([500.0]), text)

  return jax.jit(apply), jax.jit(jax.grad(lambda params: jnp.sum(jnp.square(apply(params)))))


def _run(function, params):
  jax.block_until_ready(function(params))


def _seconds(function) -> float:
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def times() -> None:
  """Prints seconds of diffusers and of ours, and their ratio."""
  torch.set_num_threads(2)
  for name in _CONFIGS:
    model, module, params = _models(name)
    ours_ready = [functools.partial(_run, function, params) for function in _ours(module, params)]
    for what, *pair in zip(_PASSES, _theirs(name, model), ours_ready):
      for function in pair:
        function()
      rounds = [[_seconds(function) for function in pair] for _ in range(_ROUNDS)]
      theirs, ours = (statistics.median(column) for column in zip(*rounds))
      print(
        f"{name} {what}: diffusers {theirs:.2f} s, ours {ours:.2f} s, ratio {ours / theirs:.2f}"
      )


def profiles() -> None:
  """Prints where the time of ours goes."""
  for name in _CONFIGS:
    _, module, params = _models(name)
    for what, function in zip(_PASSES, _ours(module, params)):
      print(f"{name} {what}", flush=True)
      profile(function, params)


def compilation() -> None:
  """Prints the seconds that each preset's pass compiles in."""
  for preset in PRESETS:
    if preset == "tiny":
      continue
    config = base(preset)
    config.model.dtype = "bfloat16"
    backbone = System.build(config.model.to_dict()).backbone
    video = dict(frames=config.clip.frames, height=480, width=832 if "wan" in preset else 720)
    if preset == "paper":
      video["width"] = 720
    params = jax.eval_shape(backbone.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, video["height"], video["width"], 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, backbone.tokenizer.max_length), jnp.int32)
    text = jax.eval_shape(backbone.encode_text, params, tokens)
    condition = jax.eval_shape(
      functools.partial(backbone.condition, frames=video["frames"]), params, image
    )
    batch, frames, *rest = backbone.latent_shape(1, **video)
    shape = (batch, backbone.padding(frames) + frames, *rest)
    latents = jax.ShapeDtypeStruct(shape, jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.float32)
    start = time.perf_counter()
    jax.jit(backbone.denoise).lower(params, latents, level, text, None, condition).compile()
    print(f"{preset}: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  kind = parser.add_mutually_exclusive_group()
  kind.add_argument("--compile", action="store_const", const=compilation, dest="measure")
  kind.add_argument("--profile", action="store_const", const=profiles, dest="measure")
  (parser.parse_args().measure or times)()
