"""`python -m d4s_jax.convert` both ways: every bit, the same outputs, and nothing in silence."""

import functools
import json
import re
import shutil
import subprocess
import types

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from d4s_jax.formats import parts
from d4s_jax.models.wan.autoencoder import WanAutoencoder
from d4s_jax.weights import wan
from d4s_jax.weights.components import COMPONENTS
from tests.published_pipelines import wan22_autoencoder, wan_transformer
from tests.published_tokenizers import write_umt5
from tests.support import full_disk, run_command

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

T5 = dict(
  vocab_size=50,
  d_model=24,
  d_kv=8,
  d_ff=40,
  num_layers=2,
  num_heads=3,
  feed_forward_proj="gated-gelu",
)
MODELS = {
  "transformer": lambda: wan_transformer(
    **dict(attention_head_dim=12, text_dim=24, freq_dim=16, ffn_dim=40)
  ),
  "vae": lambda: diffusers.AutoencoderKLWan(
    base_dim=4,
    z_dim=4,
    num_res_blocks=1,
    latents_mean=[0.5, -0.25, 0.0, 0.125],
    latents_std=[2.0, 1.0, 4.0, 0.5],
  ),
  "vae22": lambda: wan22_autoencoder((0.5, -0.25), (2.0, 4.0)),
  "text_encoder": lambda: transformers.UMT5EncoderModel(transformers.UMT5Config(**T5)),
  "t5": lambda: transformers.T5EncoderModel(transformers.T5Config(**T5)),
}


def make(name, seed=0):
  """A small published model in which no tensor is constant."""
  torch.manual_seed(seed)
  model = MODELS[name]().eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model


def convert(source, target, format):
  run_command("convert", f"--from={source}", f"--to={target}", f"--format={format}")


def tensors(folder):
  """Type, shape and bytes of every tensor in a folder, by name."""
  found = {}
  for path in folder.glob("*.safetensors"):
    contents = path.read_bytes()
    size = int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8 : 8 + size])
    header.pop("__metadata__", None)
    for name, x in header.items():
      start, stop = (8 + size + offset for offset in x["data_offsets"])
      found[name] = x["dtype"], x["shape"], contents[start:stop]
  return found


def refused(capsys, *arguments):
  """The one line that the command leaves."""
  with pytest.raises(SystemExit) as stop:
    convert(*arguments)
  assert stop.value.code == 1
  lines = capsys.readouterr().err.strip().splitlines()
  assert lines[-1].startswith("error: ")
  return lines[-1]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
  """A pipeline as diffusers saves one, the transformer in many files."""
  folder = tmp_path_factory.mktemp("published") / "pipeline"
  make("transformer").save_pretrained(folder / "transformer", max_shard_size="20KB")
  make("vae").save_pretrained(folder / "vae")
  make("text_encoder").save_pretrained(folder / "text_encoder")
  write_umt5(folder / "tokenizer")
  (folder / "scheduler").mkdir()
  (folder / "scheduler" / "scheduler_config.json").write_bytes(b"\x00 as it is")
  index = {
    "_class_name": "WanPipeline",
    "boundary_ratio": None,
    "transformer_2": [None, None],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
  }
  (folder / "model_index.json").write_text(json.dumps(index))
  return folder


@pytest.fixture(scope="module")
def converted(pipeline):
  folder = pipeline.parent / "ours"
  convert(pipeline, folder, "flax")
  return folder


@pytest.fixture(scope="module")
def back(converted):
  folder = converted.parent / "back"
  convert(converted, folder, "torch")
  return folder


@pytest.mark.parity
def test_a_pipeline_comes_back_bit_for_bit(pipeline, back):
  for name in ("transformer", "vae", "text_encoder"):
    assert tensors(back / name) == tensors(pipeline / name)
    configs = [json.loads((x / name / "config.json").read_text()) for x in (pipeline, back)]
    assert configs[0] == configs[1]
  for name in ("model_index.json", "scheduler/scheduler_config.json"):
    assert (back / name).read_bytes() == (pipeline / name).read_bytes()


def test_a_tokenizer_travels_both_ways_as_it_is(pipeline, converted, back):
  files = {path.name: path.read_bytes() for path in (pipeline / "tokenizer").iterdir()}
  assert {"tokenizer.json", "spiece.model", "tokenizer_config.json"} <= files.keys()
  for folder in (converted, back):
    assert {x.name: x.read_bytes() for x in (folder / "tokenizer").iterdir()} == files


def test_a_tokenizer_that_git_did_not_fetch_is_refused(pipeline, tmp_path, capsys):
  shutil.copytree(pipeline, tmp_path / "pipeline")
  pointer = "version https://git-lfs.github.com/spec/v1\n"
  (tmp_path / "pipeline" / "tokenizer" / "spiece.model").write_text(pointer)
  line = refused(capsys, tmp_path / "pipeline", tmp_path / "new", "flax")
  assert "spiece.model is a pointer of git LFS" in line


def outputs(name, model):
  """What a PyTorch model makes of fixed inputs, and these inputs as ours takes them."""
  torch.manual_seed(1)
  with torch.no_grad():
    if name == "transformer":
      latents, text = torch.randn(2, 4, 3, 4, 6), torch.randn(2, 5, 24)
      time = torch.tensor([900.0, 17.0])
      out = model(latents, time, text).sample.movedim(1, -1)
      return out, (latents.movedim(1, -1), time, text)
    if name.startswith("vae"):
      video = 2 * torch.rand(1, 3, 5, 16, 32) - 1
      out = model.encode(video).latent_dist.mean.movedim(1, -1)
      mean, std = (torch.tensor(model.config[x]) for x in ("latents_mean", "latents_std"))
      return (out - mean) / std, (video.movedim(1, -1),)
    tokens = torch.randint(2, 50, (2, 11))
    mask = torch.ones_like(tokens)
    return model(tokens, mask).last_hidden_state, (tokens, mask.bool())


@pytest.mark.parity
@pytest.mark.parametrize("name", ["transformer", "vae", "text_encoder"])
def test_ours_and_what_goes_back_compute_what_the_original_does(
  name, pipeline, converted, back, monkeypatch
):
  # With it, loading needs the accelerate package; all is float32 here anyway.
  monkeypatch.setattr(diffusers.WanTransformer3DModel, "_keep_in_fp32_modules", None)
  original = make(name)
  assert_same_outputs(name, original, pipeline / name, converted / name, back / name)


@pytest.mark.parity
def test_the_autoencoder_of_wan22_comes_back_bit_for_bit(tmp_path):
  original = make("vae22")
  original.save_pretrained(tmp_path / "published")
  convert(tmp_path / "published", tmp_path / "ours", "flax")
  convert(tmp_path / "ours", tmp_path / "back", "torch")
  assert tensors(tmp_path / "back") == tensors(tmp_path / "published")
  folders = (tmp_path / name for name in ("published", "ours", "back"))
  assert_same_outputs("vae22", original, *folders)
  fields = json.loads((tmp_path / "ours" / "config.json").read_text())["fields"]
  # What a run of ours is exported with says the same.
  config = wan.autoencoder_config(WanAutoencoder(**fields), {})
  again = diffusers.AutoencoderKLWan.from_config(config).state_dict()
  shapes = {key: x.shape for key, x in original.state_dict().items()}
  assert {key: x.shape for key, x in again.items()} == shapes


def assert_same_outputs(name, original, published, converted, back):
  want, inputs = outputs(name, original)
  again = type(original).from_pretrained(back).eval()
  assert torch.equal(outputs(name, again)[0], want)

  config = json.loads((converted / "config.json").read_text())
  component = COMPONENTS[type(original).__name__]
  description, stored = parts.open_part(converted, component.part)
  fields = {k: tuple(x) if isinstance(x, list) else x for k, x in config["fields"].items()}
  module = component.module(**fields)
  flat = {path: parts.as_float32(stored, path) for path in stored.specs}
  params = traverse_util.unflatten_dict(flat, sep="/")
  is_autoencoder = name.startswith("vae")
  apply = functools.partial(module.apply, method="encode" if is_autoencoder else None)
  got = jax.jit(apply)({"params": params}, *(x.numpy() for x in inputs))
  assert description.published == json.loads((published / "config.json").read_text())
  # 2e-5: float32 sums in another order.
  got = got[0] if is_autoencoder else got
  np.testing.assert_allclose(got, want.numpy(), atol=2e-5 * float(want.abs().max()))


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "float8_e4m3fn"])
@pytest.mark.parametrize("name", ["transformer", "t5"])
def test_every_type_comes_back_bit_for_bit(name, dtype, tmp_path):
  model = make(name)
  for key, parameter in model.named_parameters():
    # Mixed, as some are published.
    if "norm" not in key:
      parameter.data = parameter.data.to(getattr(torch, dtype))
  model.save_pretrained(tmp_path / "a")
  convert(tmp_path / "a", tmp_path / "b", "flax")
  convert(tmp_path / "b", tmp_path / "c", "torch")
  found = tensors(tmp_path / "a")
  assert {x[0] for x in found.values()} > {"F32"}
  assert tensors(tmp_path / "c") == found
  part = "transformer" if name == "transformer" else "text_encoder"
  _, stored = parts.open_part(tmp_path / "b", part)
  value = parts.as_float32(stored, "norm/scale" if name == "t5" else "head/bias")
  key = "encoder.final_layer_norm.weight" if name == "t5" else "proj_out.bias"
  np.testing.assert_array_equal(value, model.state_dict()[key].float().numpy())


def test_weights_that_no_model_of_ours_takes_are_refused(transformer, tmp_path, capsys):
  def quantise(values):
    values["proj_out.bias"] = values["proj_out.bias"].astype(np.int8)

  _rewrite(transformer, quantise)
  line = refused(capsys, transformer, tmp_path / "new", "flax")
  assert "'proj_out.bias' is I8; expected F64, F32" in line
  make("vae").save_pretrained(tmp_path / "vae")
  path = tmp_path / "vae" / "config.json"
  path.write_text(path.read_text().replace("4.0,", "0.0,"))
  line = refused(capsys, tmp_path / "vae", tmp_path / "new", "flax")
  assert "latents_std has 0; expected numbers above 0" in line
  assert not (tmp_path / "new").exists()


def test_variants_of_the_weights_are_told_how_to_be_named(tmp_path, capsys):
  stem = "diffusion_pytorch_model"
  make("transformer").save_pretrained(tmp_path / "one", variant="fp16")
  line = refused(capsys, tmp_path / "one", tmp_path / "new", "flax")
  assert f"'{stem}.fp16.safetensors'); rename that file to {stem}.safetensors." in line
  (tmp_path / "one" / f"{stem}.fp16.safetensors").rename(tmp_path / "one" / f"{stem}.safetensors")
  convert(tmp_path / "one", tmp_path / "new", "flax")
  many = tmp_path / "many"
  make("transformer").save_pretrained(many, variant="fp16", max_shard_size="20KB")
  line = refused(capsys, many, tmp_path / "more", "flax")
  assert f"'{stem}.safetensors.index.fp16.json'); rename that file to {stem}.safetens" in line
  (many / f"{stem}.safetensors.index.fp16.json").rename(many / f"{stem}.safetensors.index.json")
  convert(many, tmp_path / "more", "flax")
  assert tensors(tmp_path / "more") == tensors(tmp_path / "new")


def test_a_cache_of_the_hub_is_told_how_to_be_copied(transformer, tmp_path, capsys):
  cache = tmp_path / "models--org--name"
  snapshot = cache / "snapshots" / "0123"
  snapshot.mkdir(parents=True)
  (cache / "blobs").mkdir()
  for path in transformer.iterdir():
    path.rename(cache / "blobs" / path.name)
    (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
  line = refused(capsys, cache, tmp_path / "new", "flax")
  assert "is a cache of the Hugging Face hub. Its files are links" in line
  assert f"cp -rL {snapshot} NEW makes a folder" in line
  assert "cp -rL FOLDER NEW makes files of links" in refused(
    capsys, snapshot, tmp_path / "new", "flax"
  )
  subprocess.run(["cp", "-rL", snapshot, tmp_path / "copy"], check=True)
  convert(tmp_path / "copy", tmp_path / "new", "flax")


def test_what_can_t_be_merged_is_told(transformer, tmp_path, capsys):
  for place, message in (
    ("nope", "nope, which is to be merged, is no folder; expected what d4s_jax.convert --form"),
    (transformer, "which is to be merged, holds no adapter; expected"),
  ):
    with pytest.raises(SystemExit):
      arguments = f"--from={transformer}", f"--to={tmp_path}/new", "--format=flax"
      run_command("convert", *arguments, f"--merge={place}")
    assert message in capsys.readouterr().err


def _rewrite(folder, change):
  """Changes the tensors of a folder of one file of weights."""
  path = next(folder.glob("*.safetensors"))
  values = load_file(path)
  change(values)
  save_file(values, path, {"format": "pt"})


def _damage(values):
  del values["proj_out.bias"]
  values["blocks.7.attn1.to_q.bias"] = np.zeros(3, np.float32)
  values["patch_embedding.weight"] = values["patch_embedding.weight"][:, :, :, :1]
  values["blocks.0.ffn.net.2.weight"] = values["blocks.0.ffn.net.2.weight"].T.copy()


@pytest.fixture
def transformer(tmp_path):
  make("transformer").save_pretrained(tmp_path / "published")
  return tmp_path / "published"


def test_all_that_is_wrong_is_listed_at_once_and_nothing_is_written(transformer, tmp_path, capsys):
  _rewrite(transformer, _damage)
  line = refused(capsys, transformer, tmp_path / "new", "flax")
  for text in (
    "4 tensors don't fit",
    "proj_out.bias is missing",
    "'blocks.7.attn1.to_q.bias' is unexpected",
    "patch_embedding.weight has shape [24, 4, 1, 1, 2], not [24, 4, 1, 2, 2]",
    "blocks.0.ffn.net.2.weight has shape [40, 24], not [24, 40]",
  ):
    assert text in line
  assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_all_that_is_wrong_on_the_way_back_is_listed_too(transformer, tmp_path, capsys):
  convert(transformer, tmp_path / "ours", "flax")
  capsys.readouterr()

  def damage(values):
    del values["head/bias"]
    values["camera/kernel"] = np.zeros(3, np.float32)
    values["blocks/modulation"] = values["blocks/modulation"][:1]

  _rewrite(tmp_path / "ours", damage)
  line = refused(capsys, tmp_path / "ours", tmp_path / "new", "torch")
  for text in (
    "head/bias is missing",
    "'camera/kernel' is unexpected",
    "[1, 6, 24], not [2, 6, 24]",
  ):
    assert text in line
  assert not (tmp_path / "new").exists()


def test_blocks_of_different_types_are_refused(transformer, tmp_path, capsys):
  def change(values):
    name = "blocks.1.attn1.to_q.bias"
    values[name] = values[name].astype(np.float16)

  _rewrite(transformer, change)
  line = refused(capsys, transformer, tmp_path / "new", "flax")
  assert "blocks/self_attention/query/bias is F16 and F32; expected one type" in line


@pytest.mark.parametrize("both", [True, False], ids=["beside", "instead"])
def test_the_other_name_of_the_embedding_comes_back(both, tmp_path, capsys):
  make("text_encoder").save_pretrained(tmp_path / "a")

  def add(values):
    values["encoder.embed_tokens.weight"] = values["shared.weight"].copy()
    if not both:
      del values["shared.weight"]

  _rewrite(tmp_path / "a", add)
  convert(tmp_path / "a", tmp_path / "b", "flax")
  convert(tmp_path / "b", tmp_path / "c", "torch")
  assert tensors(tmp_path / "c") == tensors(tmp_path / "a")
  if both:
    _rewrite(tmp_path / "a", lambda values: values["shared.weight"].fill(0))
    capsys.readouterr()
    line = refused(capsys, tmp_path / "a", tmp_path / "d", "flax")
    assert "encoder.embed_tokens.weight differs from shared.weight" in line


def _configure(**changes):
  def damage(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

  return damage


def _index(change):
  """Cuts the transformer into two files and changes their index."""

  def damage(folder):
    path = next(folder.glob("*.safetensors"))
    values = load_file(path)
    names = sorted(values)
    places = {}
    for name, half in (("a.safetensors", names[:9]), ("b.safetensors", names[9:])):
      save_file({key: values[key] for key in half}, folder / name, {"format": "pt"})
      places |= dict.fromkeys(half, name)
    path.unlink()
    change(folder, places)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 10**30}, "weight_map": places}))

  return damage


def _everywhere(name):
  def change(folder, places):
    shutil.copy(folder / "a.safetensors", folder.parent / "outside.safetensors")
    places |= {key: name.format(folder) for key, x in places.items() if x == "a.safetensors"}

  return _index(change)


def _link(folder, places):
  (folder / "a.safetensors").rename(folder.parent / "outside.safetensors")
  (folder / "a.safetensors").symlink_to("../outside.safetensors")


def _header(folder):
  path = next(folder.glob("*.safetensors"))
  path.write_bytes((2**40).to_bytes(8, "little") + path.read_bytes()[8:])


def _pointer(folder):
  path = next(folder.glob("*.safetensors"))
  path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n")


def _pickle(folder):
  next(folder.glob("*.safetensors")).rename(folder / "diffusion_pytorch_model.bin")


HOSTILE = {
  "no model": (
    _configure(_class_name="os.system"),
    "'os.system', none of WanTransformer3D",
  ),
  "other class": (_configure(_class_name=["a"]), r"\['a'\], none of WanTransformer3D"),
  "image branch": (
    _configure(image_dim=1280, added_kv_proj_dim=5120),
    "added_kv_proj_dim is 5120, and our model has only 24",
  ),
  "text as size": (_configure(num_layers="__import__('os')"), "num_layers.*whole number"),
  "a million blocks": (_configure(num_layers=10**6), "num_layers: 1000000; expected .* 1024"),
  "wide": (_configure(ffn_dim=10**30), "ffn_dim: a huge integer"),
  "huge patch": (_configure(patch_size=[10**9] * 3), "patch_size: 1000000000"),
  "no machine's numbers": (
    _configure(
      num_layers=2**10, ffn_dim=2**20, num_attention_heads=2**14, attention_head_dim=2**14
    ),
    r"published/config.json: blocks/.* expected at most 17179869184; expected the file of a publis",
  ),
  "beyond NumPy": (
    _configure(patch_size=[2**10] * 3, in_channels=2**20, out_channels=2**20),
    "published/config.json: .* would have .* expected at most 17179869184; expected the file of a",
  ),
  "odd heads": (_configure(attention_head_dim=1), "describes no model"),
  "no object": (lambda x: (x / "config.json").write_text("[]"), "expected an object"),
  "NaN": (lambda x: (x / "config.json").write_text('{"a": NaN}'), "not valid JSON"),
  "header": (_header, "header of 1099511627776"),
  "pointer of git": (
    _pointer,
    "is a pointer of git LFS.*fetch it with git lfs pull or hf download",
  ),
  "no description": (
    lambda x: [path.unlink() for path in x.iterdir()],
    "has neither model_index.json nor config.json; expected a pipeline or a model of diffusers",
  ),
  "pickle": (_pickle, r"diffusion_pytorch_model.bin may run code when read"),
  "absolute path": (_everywhere("{}/a.safetensors"), "no plain name in it"),
  "path upwards": (_everywhere("../outside.safetensors"), "no plain name in it"),
  "link out": (_index(_link), "'a.safetensors', which is no plain name in it; links"),
  "missing file": (_everywhere("c.safetensors"), "No safetensors file at .*c.safetensors"),
  "wrong file": (
    _index(lambda _, places: places.update({"proj_out.bias": "a.safetensors"})),
    "differ in 'proj_out.bias'",
  ),
  "unnamed tensor": (_index(lambda _, places: places.pop("proj_out.bias")), "'proj_out.bias'"),
  "weight map": (_index(lambda _, places: places.update({"proj_out.bias": 3})), "weight_map"),
}


@pytest.mark.parametrize("damage, message", HOSTILE.values(), ids=HOSTILE)
def test_hostile_models_are_refused_in_one_line(damage, message, transformer, tmp_path, capsys):
  damage(transformer)
  line = refused(capsys, transformer, tmp_path / "new", "flax")
  assert re.search(message, line), line
  assert not [path for path in tmp_path.iterdir() if "new" in path.name]


def test_nothing_is_written_into_what_is_read(transformer, capsys):
  before = sorted(transformer.iterdir())
  line = refused(capsys, transformer, transformer / "new", "flax")
  assert f"--to is {transformer}/new, inside --from" in line
  assert sorted(transformer.iterdir()) == before


def test_the_halves_themselves_are_fine(transformer, tmp_path):
  before = tensors(transformer)
  _index(lambda folder, places: None)(transformer)
  convert(transformer, tmp_path / "ours", "flax")
  convert(tmp_path / "ours", tmp_path / "back", "torch")
  assert tensors(tmp_path / "back") == before


PIPELINES = {
  "path upwards": ({"../vae": ["diffusers", "AutoencoderKLWan"]}, "no plain name in it"),
  "code": ({"code": ["me", "Mine"]}, r"code \('Mine'\) holds 'run.py'"),
  "unknown model": ({"eye": ["a", "SiglipModel"]}, r"eye \('SiglipModel'\) holds"),
  "missing": ({"none": ["diffusers", "AutoencoderKLWan"]}, "No configuration at .*none"),
  "no class": ({"vae": "AutoencoderKLWan"}, "names none of"),
  "no pair": ({"vae": ["AutoencoderKLWan"]}, "'vae'; expected a library and a class"),
}


@pytest.mark.parametrize("index, message", PIPELINES.values(), ids=PIPELINES)
def test_hostile_pipelines_are_refused_in_one_line(index, message, tmp_path, capsys):
  folder = tmp_path / "pipeline"
  for name, file in (("code", "run.py"), ("eye", "model.safetensors")):
    (folder / name).mkdir(parents=True)
    (folder / name / file).write_text("x")
  (folder / "model_index.json").write_text(json.dumps(index))
  line = refused(capsys, folder, tmp_path / "new", "flax")
  assert re.search(message, line), line
  assert not (tmp_path / "new").exists()


def _sparse(path, size):
  """A file of zeros that takes no place on the disk."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("wb") as file:
    file.truncate(size)


def test_small_files_may_not_be_large_together(tmp_path, capsys):
  folder = tmp_path / "pipeline"
  index = folder / "model_index.json"
  for name in ("a", "b", "c"):
    _sparse(folder / name / "x.json", 45 * 2**20)
  index.write_text(json.dumps({name: ["a", "Tokenizer"] for name in ("a", "b", "c")}))
  line = refused(capsys, folder, tmp_path / "new", "flax")
  assert "c/x.json is larger than 398" in line
  assert f"whose files without weights may have {128 * 2**20} bytes together" in line
  index.write_text(json.dumps({f"x{i}": ["a", "Tokenizer"] for i in range(33)}))
  line = refused(capsys, folder, tmp_path / "new", "flax")
  assert "names 33 components; expected at most 32" in line
  _sparse(index, 2**20 + 1)
  line = refused(capsys, folder, tmp_path / "new", "flax")
  assert f"model_index.json is larger than {2**20} bytes" in line


def test_a_model_of_another_class_than_the_index_says_is_refused(pipeline, tmp_path, capsys):
  shutil.copytree(pipeline, tmp_path / "copy")
  index = json.loads((tmp_path / "copy" / "model_index.json").read_text())
  index["vae"] = ["transformers", "UMT5EncoderModel"]
  (tmp_path / "copy" / "model_index.json").write_text(json.dumps(index))
  line = refused(capsys, tmp_path / "copy", tmp_path / "new", "flax")
  assert "vae is a UMT5EncoderModel in model_index.json and a AutoencoderKLWan in its" in line
  assert not (tmp_path / "new").exists()


def test_errors_of_all_models_of_a_pipeline_come_at_once(pipeline, tmp_path, capsys):
  shutil.copytree(pipeline, tmp_path / "copy")
  for name in ("vae", "text_encoder"):
    _rewrite(tmp_path / "copy" / name, lambda values: values.pop(sorted(values)[0]))
  line = refused(capsys, tmp_path / "copy", tmp_path / "new", "flax")
  assert "decoder.conv_in.bias is missing" in line
  assert "encoder.block.0.layer.0.SelfAttention.k.weight is missing" in line


def test_the_wrong_way_and_a_place_that_is_taken_are_refused(pipeline, converted, tmp_path, capsys):
  line = refused(capsys, converted / "vae", tmp_path / "new", "flax")
  assert "is in our layout already; --format=torch takes it back" in line
  line = refused(capsys, pipeline / "vae", tmp_path / "new", "torch")
  assert "is not in our layout; --format=flax makes it so" in line
  (tmp_path / "mine").write_text("mine")
  assert "exists; expected a new name" in refused(capsys, pipeline, tmp_path, "flax")
  assert "No folder at" in refused(capsys, tmp_path / "none", tmp_path / "new", "flax")
  assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_edited_descriptions_are_refused(converted, tmp_path, capsys):
  shutil.copytree(converted / "vae", tmp_path / "ours")
  path = tmp_path / "ours" / "config.json"
  good = json.loads(path.read_text())
  for change, message in (
    ({"version": 2}, "version 2; expected 1"),
    ({"part": "head"}, "part 'head'"),
    ({"fields": {}}, "part and fields are not those of"),
    ({"names": {"a": ["b"]}}, "names; expected nothing"),
    ({"published": {}}, "the model is a None"),
    ({"code": "x"}, "unknown 'code'"),
  ):
    path.write_text(json.dumps(good | change))
    assert message in refused(capsys, tmp_path / "ours", tmp_path / "new", "torch")


def test_a_missing_part_of_a_pipeline_is_named(pipeline, tmp_path, capsys):
  broken = tmp_path / "pipeline"
  shutil.copytree(pipeline, broken)
  shutil.rmtree(broken / "tokenizer")
  line = refused(capsys, broken, tmp_path / "new", "flax")
  assert f"No folder at {broken / 'tokenizer'} ('T5Tokenizer" in line


def test_a_full_disk_leaves_nothing(pipeline, tmp_path, capsys):
  with full_disk(10_000):
    line = refused(capsys, pipeline, tmp_path / "new", "flax")
  assert "File too large" in line and "Make room" in line
  assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_told_before_anything_is_written(
  pipeline, tmp_path, capsys, monkeypatch
):
  usage = types.SimpleNamespace(free=10)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
  line = refused(capsys, pipeline, tmp_path / "new", "flax")
  assert f"bytes, and its disk has 10: '{tmp_path / 'new'}'. Make room" in line
  assert not list(tmp_path.iterdir())
