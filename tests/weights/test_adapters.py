"""LoRA adapters through `python -m d4s_jax.convert`: every bit, the same outputs, merged or not."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors

from d4s_jax.formats import parts
from d4s_jax.models.backbone import Text
from d4s_jax.models.system import System
from d4s_jax.weights import merging
from d4s_jax.weights.components import COMPONENTS
from tests.models.cogvideox_oracle import rotary
from tests.published_pipelines import wan_transformer
from tests.support import lora_config, random_params, run_command, small_cogvideox, write_run

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

RANK, ALPHA = 3, 6
ENDS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
ENDS_OF_COGVIDEOX = [name.replace("ffn", "ff") for name in ENDS]
COGVIDEOX = "CogVideoXTransformer3DModel"
HEADER = "lora_adapter_metadata"


def base():
  """The transformer of `small_config`, as diffusers has it, the same at every call."""
  torch.manual_seed(0)
  return wan_transformer().eval()


def cogvideox():
  """Another family's, whose feed-forward network has another name."""
  torch.manual_seed(0)
  model = getattr(diffusers, COGVIDEOX)(
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=4,
    out_channels=4,
    time_embed_dim=16,
    text_embed_dim=16,
    num_layers=2,
    use_rotary_positional_embeddings=True,
  )
  return model.eval()


def adapt(model, dtype=torch.float32):
  """Gives a model a random adapter."""
  ends = ENDS_OF_COGVIDEOX if model.__class__.__name__ == COGVIDEOX else ENDS
  config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=ends)
  model.add_adapter(config)
  for name, parameter in model.named_parameters():
    if "lora_" in name:
      parameter.data = torch.randn_like(parameter).mul(0.2).to(dtype)
  return model


def matrices(model, prefix=""):
  return {f"{prefix}{name}": x for name, x in peft.get_peft_model_state_dict(model).items()}


def in_pipeline_layout(folder):
  layers = matrices(adapt(base(), torch.bfloat16))
  config = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ENDS}
  diffusers.WanPipeline.save_lora_weights(
    folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=config
  )


def in_model_layout(folder):
  adapt(base()).save_lora_adapter(folder)


def in_peft_layout(folder):
  config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=ENDS)
  model = peft.get_peft_model(base(), config)
  for name, parameter in model.named_parameters():
    if "lora_" in name:
      parameter.data = torch.randn_like(parameter)
  model.save_pretrained(folder)
  (folder / "README.md").unlink()


def in_layout_of_cogvideox(folder):
  config = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ENDS_OF_COGVIDEOX}
  diffusers.CogVideoXPipeline.save_lora_weights(
    folder,
    transformer_lora_layers=matrices(adapt(cogvideox())),
    transformer_lora_adapter_metadata=config,
  )


def with_alphas(folder):
  rename = {"lora_A": "lora_down", "lora_B": "lora_up"}
  values = {
    re.sub("lora_[AB]", lambda x: rename[x[0]], name): x.numpy()
    for name, x in matrices(adapt(base()), "transformer.").items()
  }
  layers = {name.removesuffix(".lora_up.weight") for name in values if "lora_up" in name}
  values |= {f"{layer}.alpha": np.array(ALPHA, np.float16) for layer in layers}
  folder.mkdir()
  save_file(values, folder / "pytorch_lora_weights.safetensors")


def without_scale(folder):
  values = {name: x.numpy() for name, x in matrices(adapt(base()), "transformer.").items()}
  folder.mkdir()
  save_file(values, folder / "pytorch_lora_weights.safetensors", {"format": "pt"})


LAYOUTS = {
  "pipeline": (in_pipeline_layout, 2.0),
  "model": (in_model_layout, 2.0),
  "peft": (in_peft_layout, 2.0),
  "cogvideox": (in_layout_of_cogvideox, 2.0),
  "alphas": (with_alphas, 2.0),
  "no scale": (without_scale, 1.0),
}


def convert(source, target, format, *more):
  run_command("convert", f"--from={source}", f"--to={target}", f"--format={format}", *more)


def refused(capsys, *arguments):
  """The one line that the command leaves."""
  with pytest.raises(SystemExit):
    convert(*arguments)
  return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parity
@pytest.mark.parametrize("save, scale", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_comes_in_and_back_bit_for_bit(save, scale, tmp_path):
  save(tmp_path / "a")
  convert(tmp_path / "a", tmp_path / "b", "flax")
  convert(tmp_path / "b", tmp_path / "c", "torch")
  paths = [next((tmp_path / x).glob("*.safetensors")) for x in "ac"]
  assert paths[0].name == paths[1].name
  heads, bodies = zip(*map(_split, paths))
  assert heads[0] == heads[1]
  for name, entry in heads[0].items():
    if name != "__metadata__":
      start, stop = entry["data_offsets"]
      assert bodies[0][start:stop] == bodies[1][start:stop]
  extra = [path.name for path in (tmp_path / "c").iterdir() if path != paths[1]]
  assert extra == [path.name for path in (tmp_path / "a").iterdir() if path != paths[0]]
  for name in extra:
    assert json.loads((tmp_path / "a" / name).read_text()) == json.loads(
      (tmp_path / "c" / name).read_text()
    )

  description, stored = parts.open_part(tmp_path / "b", "adapter")
  assert description.fields == {"rank": RANK, "scale": scale}
  want = load_file(paths[0]) if scale == 1.0 else None
  if want:
    down = parts.as_float32(stored, "blocks/self_attention/key/down")
    name = "transformer.blocks.1.attn1.to_k.lora_A.weight"
    np.testing.assert_array_equal(down[1], want[name].T)


def _split(path):
  contents = path.read_bytes()
  size = int.from_bytes(contents[:8], "little")
  return json.loads(contents[8 : 8 + size]), contents[8 + size :]


def velocity(model):
  torch.manual_seed(2)
  latents, text = torch.randn(1, 4, 3, 4, 4), torch.randn(1, 5, 16)
  with torch.no_grad():
    return model(latents, torch.tensor([500.0]), text).sample


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """A run with an adapter, exported beside its base and merged into it."""
  folder = tmp_path_factory.mktemp("lora")
  config = lora_config()
  system = System.build(config.model.to_dict())
  params = random_params(system, seed=4)
  write_run(folder / "run", config, params)
  convert(folder / "run", folder / "beside", "torch")
  convert(folder / "run", folder / "merged", "torch", f"--merge={folder}/run")
  return folder, system, params


@pytest.mark.parity
def test_the_adapter_of_a_run_loads_in_diffusers_and_computes_what_ours_does(exported):
  folder, system, params = exported
  load = diffusers.WanTransformer3DModel.from_pretrained
  model = load(folder / "beside" / "transformer").eval()
  alone = velocity(model)
  weights, metadata = diffusers.WanPipeline.lora_state_dict(
    folder / "beside" / "adapter", return_lora_metadata=True
  )
  diffusers.WanPipeline.load_lora_into_transformer(weights, model, metadata=metadata)
  got = velocity(model)
  want = _ours(system, params)
  scale = want.abs().max()
  # 1e-4: float32 sums in another order, through two blocks.
  torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * float(scale))
  assert (got - alone).abs().max() > 0.05 * scale
  merged = velocity(load(folder / "merged" / "transformer").eval())
  torch.testing.assert_close(merged, want, rtol=0, atol=1e-4 * float(scale))
  assert not (folder / "merged" / "adapter").exists()


@pytest.mark.parity
def test_the_adapter_of_a_run_of_cogvideox_loads_in_diffusers(tmp_path):
  config = small_cogvideox()
  with config.ignore_type():
    config.model.lora.update(rank=2, scale=0.5)
  system = System.build(config.model.to_dict())
  params = random_params(system, seed=4)
  write_run(tmp_path / "run", config, params)
  convert(tmp_path / "run", tmp_path / "out", "torch")
  model = getattr(diffusers, COGVIDEOX).from_pretrained(tmp_path / "out" / "transformer").eval()

  def theirs():
    torch.manual_seed(2)
    latents, text = torch.randn(1, 3, 4, 4, 4), torch.randn(1, 24, 16)
    turned = rotary(dict(head_dim=16), 3, 2, 2)
    with torch.no_grad():
      return model(latents, text, torch.tensor([499.0]), image_rotary_emb=turned).sample

  alone = theirs()
  weights, metadata = diffusers.CogVideoXPipeline.lora_state_dict(
    tmp_path / "out" / "adapter", return_lora_metadata=True
  )
  diffusers.CogVideoXPipeline.load_lora_into_transformer(weights, model, metadata=metadata)
  got = theirs().movedim(2, -1)
  torch.manual_seed(2)
  latents, text = torch.randn(1, 3, 4, 4, 4), torch.randn(1, 24, 16)
  words = Text(jnp.asarray(text.numpy()), jnp.ones((1, 24), bool))
  inputs = jnp.asarray(latents.movedim(2, -1).numpy()), jnp.array([0.5]), words
  want = torch.from_numpy(np.array(jax.jit(system.backbone.denoise)(params, *inputs)))
  # 1e-4: float32 sums in another order, through two blocks.
  torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * float(want.abs().max()))
  assert (got - alone.movedim(2, -1)).abs().max() > 0.05 * want.abs().max()


def _ours(system, params):
  """What our transformer makes of the inputs of `velocity`."""
  torch.manual_seed(2)
  latents, text = torch.randn(1, 4, 3, 4, 4), torch.randn(1, 5, 16)
  text = Text(jnp.asarray(text.numpy()), jnp.ones((1, 5), bool))
  latents = jnp.asarray(latents.movedim(1, -1).numpy())
  out = jax.jit(system.backbone.denoise)(params, latents, jnp.array([0.5]), text)
  return torch.from_numpy(np.array(out)).movedim(-1, 1)


@pytest.mark.parity
@pytest.mark.parametrize(
  "make, format, dtype, layers",
  [
    (base, "torch", torch.float32, 2 * 4 + 2),
    (base, "flax", torch.bfloat16, 2 * 4 + 2),
    pytest.param(
      *(cogvideox, "torch", torch.bfloat16, 4 + 2),
      marks=pytest.mark.skipif(COGVIDEOX not in COMPONENTS, reason="it can't be converted yet"),
    ),
  ],
  ids=["wan-torch", "wan-flax", "cogvideox"],
)
def test_merging_adds_the_product_and_rounds_once(make, format, dtype, layers, tmp_path):
  model = make().to(dtype)
  model.save_pretrained(tmp_path / "base")
  adapt(model, dtype).save_lora_adapter(tmp_path / "lora")
  for name in ("base", "lora"):
    convert(tmp_path / name, tmp_path / f"{name}-flax", "flax")
  source = tmp_path / ("base" if format == "flax" else "base-flax")
  merge = f"--merge={tmp_path}/lora-flax"
  convert(source, tmp_path / "merged", format, merge)
  if format == "flax":
    convert(tmp_path / "merged", tmp_path / "back", "torch")
    # Of what is in our layout already comes the same.
    convert(tmp_path / "base-flax", tmp_path / "again", "flax", merge)
    for path in (tmp_path / "merged").iterdir():
      assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
  found = {}
  for path in (tmp_path / ("back" if format == "flax" else "merged")).glob("*.safetensors"):
    found |= load_tensors(path)
  adapter, plain = matrices(model), make().to(dtype).state_dict()
  touched = 0
  for name, value in found.items():
    layer = name.removesuffix(".weight")
    down, up = (adapter.get(f"{layer}.lora_{x}.weight") for x in "AB")
    want = plain[name]
    if down is not None:
      want = (want.float() + ALPHA / RANK * up.float() @ down.float()).to(dtype)
      touched += 1
    # Sums in another order, which in bfloat16 may round to the neighbour.
    tolerance = 1e-6 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(value, want, rtol=tolerance, atol=1e-6)
  assert touched == 2 * layers
  assert found.keys() == plain.keys()


@pytest.fixture
def lora(tmp_path):
  without_scale(tmp_path / "published")
  return tmp_path / "published"


FILE = "pytorch_lora_weights.safetensors"
LAYER = "transformer.blocks.1.attn1.to_q"


def rewrite(change, metadata=None):
  def damage(folder):
    values = load_file(folder / FILE)
    change(values)
    save_file(values, folder / FILE, metadata)

  return damage


def _everything(values):
  del values[f"{LAYER}.lora_B.weight"]
  values["transformer.blocks.0.attn1.to_q.lora_B.bias"] = np.zeros(32, np.float32)
  values["transformer.blocks.0.ffn.net.2.lora_A.weight"] = np.zeros((3, 31), np.float32)
  values["text_encoder.q.lora_A.weight"] = np.zeros((3, 16), np.float32)


def _alpha(value, dtype=np.float32, layers=None):
  def change(values):
    names = [x.removesuffix(".lora_A.weight") for x in values if x.endswith("A.weight")]
    for name in names[:layers]:
      values[f"{name}.alpha"] = np.array(value, dtype)

  return rewrite(change)


def _one_alpha(values):
  names = [x.removesuffix(".lora_A.weight") for x in values if x.endswith("A.weight")]
  values |= {f"{x}.alpha": np.array(i, np.float32) for i, x in enumerate(names, 1)}


def _peft(**changes):
  def damage(folder):
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA} | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))

  return damage


def _replace(values, **changes):
  values.clear()
  values |= changes


def _rank(values):
  for name in (f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"):
    values[name] = np.zeros([32 if x == 32 else 5 for x in values[name].shape], np.float32)


def _far(values):
  values[LAYER.replace("1", "9999", 1) + ".lora_A.weight"] = np.zeros((3, 32), np.float32)


HOSTILE = {
  "wrong tensors": (
    rewrite(_everything),
    r"4 tensors don't fit an adapter of rank 3 of a WanTransformer3DModel: transformer.blocks.1"
    r".attn1.to_q.lora_B.weight is missing.*'text_encoder.q.lora_A.weight' is unexpected.*"
    r"net.2.lora_A.weight has shape \[3, 31\], not \[3, 32\]",
  ),
  "other rank": (rewrite(_rank), r"to_q.lora_A.weight has shape \[5, 32\], not \[3, 32\]"),
  "block 9999": (rewrite(_far), r"'transformer.blocks.9999.*' is unexpected"),
  "no adapter": (rewrite(lambda x: _replace(x, a=np.zeros(3))), "holds 'a'; expected the tensors"),
  "other model": (
    rewrite(lambda x: _replace(x, **{"transformer.h.lora_A.weight": np.zeros((1, 1))})),
    "layers like 'h', which are of none of",
  ),
  "mixed types": (
    rewrite(lambda x: x.update({f"{LAYER}.lora_A.weight": np.zeros((3, 32), np.float16)})),
    "self_attention/query/down is F16 and F32; expected one type",
  ),
  "alpha of some": (_alpha(3.0, layers=4), "attn2.to_v.alpha is missing"),
  "many alphas": (rewrite(_one_alpha), "several values of alpha"),
  "alpha of integers": (_alpha(3, np.int32), "to_k.alpha' is I32; expected F64"),
  "infinite alpha": (_alpha(np.inf), "alpha / rank is inf"),
  "two scales": (
    lambda folder: (_alpha(3.0)(folder), _peft()(folder)),
    "alpha / rank is 2.0 and 1.0; expected one",
  ),
  "dora": (_peft(use_dora=True, bias="all"), "bias is 'all'; use_dora is True; expected plain"),
  "other rank in words": (_peft(r=7), "r is 7, and the tensors have rank 3"),
  "alpha of words": (_peft(lora_alpha="six"), "lora_alpha: 'six'; expected a finite number"),
  "no object": (lambda x: (x / "adapter_config.json").write_text("[]"), "expected an object"),
  "bad header": (rewrite(lambda x: None, {HEADER: "[" * 10**5}), f"{HEADER}: JSON nested too deep"),
  "link": (
    lambda x: ((x / FILE).rename(x.parent / "b"), (x / FILE).symlink_to("../b")),
    "which is no plain name in it",
  ),
  "pickle": (
    lambda x: (x / FILE).rename(x / "pytorch_lora_weights.bin"),
    r"has 'pytorch_lora_weights.bin' and no config.json.*save them as safetensors",
  ),
  "other name": (
    lambda x: (x / FILE).rename(x / "cats.safetensors"),
    r"has 'cats.safetensors' and no config.json.*must be named pytorch_lora_weights.safetensors",
  ),
  "integers": (
    rewrite(lambda x: x.update({f"{LAYER}.lora_A.weight": np.zeros((3, 32), np.int8)})),
    f"'{LAYER}.lora_A.weight' is I8; expected F64",
  ),
  "no layer": (
    rewrite(lambda x: _replace(x, **{"transformer..lora_A.weight": np.zeros((1, 1))})),
    "has no tensor of a layer",
  ),
}


@pytest.mark.parametrize("damage, message", HOSTILE.values(), ids=HOSTILE)
def test_hostile_adapters_are_refused_in_one_line(damage, message, lora, tmp_path, capsys):
  damage(lora)
  line = refused(capsys, lora, tmp_path / "new", "flax")
  assert re.search(message, line), line
  assert not (tmp_path / "new").exists()


def test_damage_in_our_layout_is_refused_too(lora, tmp_path, capsys):
  convert(lora, tmp_path / "ours", "flax")
  path = tmp_path / "ours" / "config.json"
  good = json.loads(path.read_text())
  published = good["published"]
  for change, message in (
    ({"fields": {"rank": 3, "scale": 2.0}}, "scale is not that of"),
    ({"fields": {"rank": 4, "scale": 1.0}}, "don't fit an adapter of rank 4"),
    ({"published": published | {"_class_name": "os.system"}}, "an adapter of 'os.system'"),
    ({"published": published | {"stem": "../up"}}, "published; expected what"),
    ({"published": published | {"metadata": {"a": 1}}}, "published; expected what"),
    ({"published": published | {"code": 1}}, "unknown 'code'"),
  ):
    path.write_text(json.dumps(good | change))
    assert message in refused(capsys, tmp_path / "ours", tmp_path / "new", "torch")
  path.write_text(json.dumps(good))

  def damage(values):
    del values["blocks/mlp_in/up"]
    values["blocks/mlp_gate/up"] = np.zeros(3, np.float32)
    values["blocks/mlp_out/up"] = values["blocks/mlp_out/up"][:1]

  values = load_file(tmp_path / "ours" / "model.safetensors")
  damage(values)
  save_file(values, tmp_path / "ours" / "model.safetensors")
  line = refused(capsys, tmp_path / "ours", tmp_path / "new", "torch")
  for text in ("mlp_in/up is missing", "'blocks/mlp_gate/up' is unexpected", "not [2, 3, 32]"):
    assert text in line
  assert not (tmp_path / "new").exists()


def test_merging_what_does_not_fit_is_refused(lora, exported, tmp_path, capsys):
  folder = exported[0]
  convert(lora, tmp_path / "lora", "flax")
  merge = f"--merge={tmp_path}/lora"
  new = tmp_path / "new"
  line = refused(capsys, folder / "beside" / "vae", new, "flax", merge)
  assert "merged into one transformer, and there are 0" in line
  line = refused(capsys, folder / "run", new, "torch", merge)
  assert "into a run only its own adapter goes" in line
  line = refused(capsys, tmp_path / "published", new, "flax", merge)
  assert "merged into one transformer, and there are 0" in line
  cogvideox().save_pretrained(tmp_path / "cogvideox")
  line = refused(capsys, tmp_path / "cogvideox", new, "flax", merge)
  assert f"The adapter is for a WanTransformer3DModel, the transformer is a {COGVIDEOX}" in line
  line = refused(capsys, folder / "beside" / "transformer", new, "flax", f"--merge={folder}/run")
  assert "holds no adapter" in line
  shutil.copytree(tmp_path / "lora", tmp_path / "short")
  path = tmp_path / "short" / "model.safetensors"
  values = {name: np.ascontiguousarray(x[:1]) for name, x in load_file(path).items()}
  save_file(values, path)
  source, merge = folder / "beside" / "transformer", f"--merge={tmp_path}/short"
  line = refused(capsys, source, new, "flax", merge)
  assert "The adapter has 1 blocks, the transformer 2" in line
  shutil.copytree(tmp_path / "lora", tmp_path / "broken")
  path = tmp_path / "broken" / "model.safetensors"
  values = load_file(path)
  values["blocks/mlp_in/up"][0, 0] = np.nan
  save_file(values, path)
  line = refused(capsys, source, new, "flax", f"--merge={tmp_path}/broken")
  assert "not finite, in blocks/mlp_in/up" in line
  assert not new.exists()
  assert merging.read(tmp_path / "lora").scale == 1.0
