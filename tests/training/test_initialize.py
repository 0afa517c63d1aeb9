"""Where the parameters of a new run come from."""

import json
import types

import jax
import numpy as np
import optax
import pytest

from d4s_jax.formats import parts
from d4s_jax.models.system import System
from d4s_jax.training import initialize, loop, sharding, state
from d4s_jax.training.checkpoint import CheckpointError
from tests.models.cogvideox_oracle import torch_autoencoder, torch_transformer
from tests.published_pipelines import wan_transformer
from tests.support import (
  lora_config,
  random_params,
  run_command,
  small_cogvideox,
  small_config,
  write_run,
)


def create(config):
  system = System.build(config.model.to_dict())
  mesh = sharding.make_mesh()
  with jax.set_mesh(mesh):
    patterns, optimizer = ("^ldrm/",), optax.sgd(1.0)
    like = initialize.abstract_state(system, patterns, optimizer, mesh)
    now = initialize.create_state(system, config, patterns, optimizer, like)
  return state.averaged_params(now)


def test_what_matched_is_listed():
  config = small_config()
  config.init.ldrm, config.init.transformer = "runs/a", ""
  wanted = [f"ldrm/{name}" for name in "abcdefgh"] + ["transformer/x"]
  assert list(initialize.matched(config, wanted[:2], wanted)) == [
    "init.ldrm: 2 of 8 arrays from runs/a; at random: ldrm/c, ldrm/d, ldrm/e, ldrm/f, ldrm/g, ..."
  ]


def test_only_what_the_stage_reads_and_nothing_gives_or_trains_is_told_to_be_random():
  config, now = small_config(), types.SimpleNamespace(trainable=["text_encoder/norm/scale"])

  def told(stage):
    config.stage = stage
    return [line.split()[1] for line in initialize.left_at_random(config, now)]

  assert told("joint") == ["init.autoencoder"]
  now.trainable = ["ldrm/x"]
  assert told("diffusion") == ["init.autoencoder", "init.text_encoder"]
  assert told("static") == ["init.autoencoder"]
  config.init.autoencoder = "runs/a"
  assert told("static") == []


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
  folder = tmp_path_factory.mktemp("earlier")
  config = small_config()
  params = random_params(System.build(config.model.to_dict()), seed=3)
  write_run(folder, config, params)
  return folder, params


def test_a_part_comes_from_an_earlier_run_and_the_rest_from_the_seed(earlier, capsys):
  folder, params = earlier
  config = small_config()
  config.init.transformer = str(folder)
  ours = create(config)
  count = len(jax.tree.leaves(ours["transformer"]))
  assert capsys.readouterr().out.splitlines() == [
    f"init.transformer: {count} of {count} arrays from {folder}",
    *(
      f'WARNING: init.{name} is "", and this run does not train it: it stays at random.'
      for name in ("autoencoder", "text_encoder")
    ),
  ]
  jax.tree.map(np.testing.assert_array_equal, ours["transformer"], params["transformer"])
  config.init.transformer = ""
  again = create(config)
  jax.tree.map(np.testing.assert_array_equal, ours["ldrm"], again["ldrm"])
  config.seed = 1
  pairs = zip(jax.tree.leaves(create(config)["ldrm"]), jax.tree.leaves(ours["ldrm"]))
  assert not all(np.array_equal(*pair) for pair in pairs)


def test_nothing_is_made_at_random_where_all_parts_are_given(earlier, monkeypatch):
  folder, params = earlier
  config = small_config()
  monkeypatch.setattr(System, "init", lambda *_: pytest.fail("traced for nothing"))
  config.init.update({name: str(folder) for name in params})
  jax.tree.map(np.testing.assert_array_equal, create(config), params)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """A transformer of diffusers in bfloat16 that fits `small_config`, converted."""
  torch = pytest.importorskip("torch")
  folder = tmp_path_factory.mktemp("published")
  model = wan_transformer().to(torch.bfloat16)
  model.save_pretrained(folder / "theirs" / "transformer")
  index = {"transformer": ["diffusers", "WanTransformer3DModel"]}
  (folder / "theirs" / "model_index.json").write_text(json.dumps(index))
  run_command("convert", f"--from={folder}/theirs", f"--to={folder}/ours", "--format=flax")
  return folder / "ours", {name: x.float().numpy() for name, x in model.state_dict().items()}


def test_a_part_comes_from_published_weights_and_its_cameras_from_the_seed(published):
  folder, theirs = published
  config = small_config()
  random = create(config)["transformer"]
  config.init.transformer = str(folder)
  ours = create(config)["transformer"]
  np.testing.assert_array_equal(ours["head"]["kernel"], theirs["proj_out.weight"].T)
  wanted = np.stack([theirs[f"blocks.{i}.attn2.to_k.weight"].T for i in range(2)])
  np.testing.assert_array_equal(ours["blocks"]["cross_attention"]["key"]["kernel"], wanted)
  assert {x.dtype for x in jax.tree.leaves(ours)} == {np.dtype(np.float32)}
  jax.tree.map(np.testing.assert_array_equal, ours["camera"], random["camera"])
  assert jax.tree.structure(ours) == jax.tree.structure(random)


@pytest.mark.parity
def test_a_run_starts_from_a_cogvideox_that_was_published(tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  fields = dict(positions="learned", grid=(2, 2, 3), takes_image=True)
  config = small_cogvideox(**fields)
  sizes = config.model.backbone
  transformer = torch_transformer(
    dict(sizes.transformer) | {"out_channels": 4, "text_length": sizes.text_length},
    sizes.text_encoder.dim,
  )
  torch.nn.init.normal_(transformer.patch_embed.pos_embedding)
  models = {
    "transformer": transformer.to(torch.bfloat16),
    "vae": torch_autoencoder(sizes.autoencoder),
    "text_encoder": transformers.T5EncoderModel(
      transformers.T5Config(
        vocab_size=sizes.text_encoder.vocabulary,
        **dict(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
        feed_forward_proj="gated-gelu",
      )
    ),
  }
  for name, model in models.items():
    model.save_pretrained(tmp_path / "theirs" / name)
  index = {name: ["a library", type(model).__name__] for name, model in models.items()}
  (tmp_path / "theirs" / "model_index.json").write_text(json.dumps(index))
  run_command("convert", f"--from={tmp_path}/theirs", f"--to={tmp_path}/ours", "--format=flax")
  for part in ("transformer", "autoencoder", "text_encoder"):
    config.init[part] = str(tmp_path / "ours")
  ours = create(config)
  theirs = {name: model.float().state_dict() for name, model in models.items()}
  for got, name, tensor in (
    (ours["transformer"]["positions"]["table"], "transformer", "patch_embed.pos_embedding"),
    (ours["transformer"]["head"]["kernel"], "transformer", "proj_out.weight"),
    (ours["autoencoder"]["decoder"]["norm_out"]["norm"]["scale"],)
    + ("vae", "decoder.norm_out.norm_layer.weight"),
    (ours["text_encoder"]["embedding"], "text_encoder", "shared.weight"),
  ):
    want = theirs[name][tensor].numpy()
    np.testing.assert_array_equal(got, want.T if "proj" in tensor else want.reshape(got.shape))
  assert "camera" in ours["transformer"]

  # Tensors of the same shapes, another model.
  config.model.backbone.transformer.grid = (2, 3, 2)
  config.init.autoencoder = ""
  with pytest.raises(CheckpointError, match=r"\(grid \[2, 2, 3\] there, \(2, 3, 2\) here\)"):
    create(config)


def test_published_weights_of_another_model_are_refused_with_the_difference(published):
  folder, _ = published
  config = small_config()
  config.init.transformer = str(folder)
  config.model.backbone.transformer.heads = 4  # Other heads leave all shapes the same.
  with pytest.raises(CheckpointError, match=r"The transformer in.*\(heads 2 there, 4 here\)"):
    create(config)
  config.model.backbone.transformer.heads = 2
  config.model.backbone.transformer.depth = 3
  with pytest.raises(CheckpointError, match=r"depth 2 there, 3 here; blocks/cross_attention/key"):
    create(config)
  config = small_config()
  config.init.text_encoder = str(folder / "transformer")
  with pytest.raises(ValueError, match="holds the transformer; expected the text_encoder"):
    create(config)
  config.init.text_encoder = str(folder)
  with pytest.raises(CheckpointError, match="holds no trained model"):
    create(config)


@pytest.mark.parametrize("named", ["weights", "weights/text_encoder"])
def test_a_published_text_encoder_is_given_no_bytes(named, tmp_path):
  place = tmp_path / "weights" / "text_encoder"
  place.mkdir(parents=True)
  description = parts.Description("text_encoder", {}, {"_class_name": "UMT5EncoderModel"}, {})
  parts.write_json(place / parts.CONFIG, description.encode())
  config = small_config()
  config.init.text_encoder = str(tmp_path / named)
  wanted = f"tokenizer={tmp_path}/weights/tokenizer"
  with pytest.raises(CheckpointError, match=f"byte by byte, but init.text_encoder.*{wanted}"):
    loop.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
  config.model.backbone.tokenizer = wanted
  initialize.check_tokenizer(config)


def test_the_text_encoder_of_a_run_with_a_tokenizer_is_given_no_bytes(earlier, tmp_path):
  config = small_config()
  config.init.text_encoder = str(earlier[0])
  initialize.check_tokenizer(config)
  (tmp_path / "checkpoints").mkdir()
  theirs = json.loads((earlier[0] / "config.json").read_text())
  theirs["model"]["backbone"]["tokenizer"] = "gone"
  (tmp_path / "config.json").write_text(json.dumps(theirs))
  config.init.text_encoder = str(tmp_path)
  with pytest.raises(CheckpointError, match=f"expected that one.*tokenizer={tmp_path}/tokenizer"):
    loop.run(config, tmp_path / "run")


def test_weights_of_another_family_are_refused_by_name(published):
  folder, _ = published
  config = small_cogvideox()
  config.init.transformer = str(folder)
  message = "is a WanTransformer3DModel, which is no CogVideoXTransformer"
  with pytest.raises(CheckpointError, match=message):
    create(config)


def test_weights_that_were_not_converted_are_told_how(published):
  theirs = published[0].parent / "theirs"
  for place in (theirs, theirs / "transformer"):
    config = small_config()
    config.init.transformer = str(place)
    with pytest.raises(CheckpointError, match=f"d4s_jax.convert --from={place} --to=NEW"):
      create(config)


def test_a_part_that_the_models_lack_is_refused():
  config = small_config()
  config.init.adapter = "runs/lora"
  with pytest.raises(CheckpointError, match="init.adapter is .*has none; set model.lora.rank"):
    create(config)


def test_an_adapter_of_other_layers_is_told_which(tmp_path):
  config = lora_config()
  config.model.lora.targets = ("^blocks/mlp_in$",)
  write_run(tmp_path / "run", config, random_params(System.build(config.model.to_dict())))
  run_command("convert", f"--from={tmp_path}/run", f"--to={tmp_path}/torch", "--format=torch")
  adapter = f"{tmp_path}/torch/adapter"
  run_command("convert", f"--from={adapter}", f"--to={tmp_path}/ours", "--format=flax")
  config = lora_config()
  config.init.adapter = str(tmp_path / "ours")
  with pytest.raises(
    CheckpointError, match="lora.targets to patterns of its layers: blocks/mlp_in"
  ):
    create(config)


def test_another_shape_is_refused_with_the_difference(earlier):
  folder, _ = earlier
  config = small_config()
  config.init.ldrm = str(folder)
  config.model.ldrm.width = 64
  with pytest.raises(CheckpointError, match=r"init.ldrm.*32.* there.*64.* here.*same preset"):
    create(config)


def test_no_weights_are_shipped_for_it():
  config = small_config()
  config.preset, config.init.ldrm = "wan1.3b", "shipped"
  with pytest.raises(ValueError, match="No weights are shipped for the ldrm.*config.init.ldrm"):
    create(config)


def test_shipped_weights_of_another_shape_are_refused():
  config = small_config()
  config.init.ldrm = "shipped"
  with pytest.raises(ValueError, match="shipped ldrm of 'tiny' does not fit.*config.init.ldrm=''"):
    create(config)


@pytest.mark.parametrize(
  "key",
  ["steps", "batch_size", "accumulate", "checkpoint.keep", "checkpoint.every", "heldout.every"],
)
def test_counts_below_their_least_are_refused_before_anything_is_written(key, tmp_path):
  config = small_config()
  config.update_from_flattened_dict({key: 0})
  with pytest.raises(ValueError, match=rf"^{key} is 0; expected at least 1"):
    loop.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
