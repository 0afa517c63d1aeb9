"""CLIP-Score, aesthetics, consistency and served quality: oracles and behaviour."""

import http.server
import io
import json
import math
import pathlib
import socket
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from d4s_jax import captioning
from d4s_jax.evaluation import q_align, runner, seen, semantics, tools
from d4s_jax.evaluation.settings import Settings, Weights
from d4s_jax.models.clip import preprocess
from d4s_jax.weights import encoders

SIDE = 32


def words(folder):
  """A tokenizer of a few words, in the layout of CLIP's."""
  tokenizers = pytest.importorskip("tokenizers")
  names = ["<|startoftext|>", "a", "red", "blue", "ball", "rolls", "[UNK]", "<|endoftext|>"]
  model = tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="<|startoftext|> $A <|endoftext|>",
    special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 7)],
  )
  tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  """A small CLIP of random weights in the published layout."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(1)
  common = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
  config = transformers.CLIPConfig(
    text_config=common | dict(vocab_size=8, max_position_embeddings=6, eos_token_id=7),
    vision_config=common | dict(image_size=SIDE, patch_size=8),
    projection_dim=16,
  )
  folder = tmp_path_factory.mktemp("clip")
  transformers.CLIPModel(config).save_pretrained(folder)
  words(folder)
  return folder


@pytest.fixture(scope="module")
def video():
  """A gradient that slides."""
  columns = np.arange(SIDE + 12) / (SIDE + 12)
  frames = [np.tile(columns[t : t + SIDE, None], (SIDE, 1, 3)) for t in range(12)]
  return np.stack(frames).astype(np.float32)


def test_texts_become_tokens_of_one_length(clip):
  model = encoders.read_clip(clip)
  assert semantics.tokenize(model, "a red ball").tolist() == [0, 1, 2, 4, 7, 7]
  assert semantics.tokenize(model, "a red ball rolls a blue ball").tolist() == [0, 1, 2, 4, 5, 7]


def test_the_clip_score_is_the_mean_of_cosines_and_depends_on_the_words(clip, video):
  model = encoders.read_clip(clip)
  image, text = semantics.embed(model.vision, video), semantics.embed_text(model, "a red ball")
  cosines = image @ text / np.linalg.norm(image, axis=1) / np.linalg.norm(text)
  found = semantics.clip_score(model, video, "a red ball")
  np.testing.assert_allclose(found, 100 * np.maximum(cosines, 0).mean(), rtol=1e-5)
  assert found != semantics.clip_score(model, video, "a blue ball rolls")


@pytest.mark.parity
def test_the_clip_score_is_that_of_torchmetrics(clip, video):
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  theirs = pytest.importorskip("torchmetrics.functional.multimodal.clip_score")
  ours, network = encoders.read_clip(clip), transformers.CLIPModel.from_pretrained(clip).eval()

  class Model:
    """Features as arrays, as transformers returned them when torchmetrics was written."""

    config = network.config

    def to(self, _):
      return self

    def get_image_features(self, pixels):
      return network.visual_projection(network.vision_model(pixels).pooler_output)

    def get_text_features(self, ids, mask):
      return network.text_projection(network.text_model(ids, mask).pooler_output)

  def processor(images=None, text=None, **_):
    if images is not None:
      pixels = preprocess(jnp.stack([np.moveaxis(x.numpy(), 0, -1) for x in images]), SIDE)
      return {"pixel_values": torch.from_numpy(np.moveaxis(np.array(pixels), -1, 1).copy())}
    ids = torch.from_numpy(np.stack([semantics.tokenize(ours, x) for x in text])).long()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

  for text in ("a red ball", "blue", "a red ball rolls a blue ball"):
    with torch.no_grad():
      want = [
        theirs.clip_score(
          torch.from_numpy(np.moveaxis(x, -1, 0).copy()), text, lambda: (Model(), processor)
        )
        for x in video
      ]
    np.testing.assert_allclose(semantics.clip_score(ours, video, text), np.mean(want), atol=1e-3)


@pytest.mark.parity
def test_tokens_of_a_published_kind_of_tokenizer_are_those_of_transformers(tmp_path):
  """Byte pairs, lower case, cut to the length of the model, its end mark last."""
  transformers, tokenizers = (pytest.importorskip(x) for x in ("transformers", "tokenizers"))
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  merges = [("r", "e"), ("re", "d</w>"), ("a", "l"), ("al", "l</w>"), ("b", "all</w>")]
  names = [*letters, *(f"{x}</w>" for x in letters), *(a + b for a, b in merges)]
  names += ["<|startoftext|>", "<|endoftext|>"]
  theirs = transformers.CLIPTokenizer({name: i for i, name in enumerate(names)}, merges)
  theirs.save_pretrained(tmp_path)
  length = 12
  contents = (tmp_path / "tokenizer.json").read_bytes()
  nothing = encoders.Encoder(None, {})
  ours = encoders.CLIP(nothing, nothing, contents, length)
  for text in (
    "A RED   ball.",
    "it's a na\u00efve caf\u00e9, \u4f60\u597d",
    "",
    "red ball " * 20,
    "12 <|endoftext|> a",
  ):
    want = theirs(text, padding="max_length", max_length=length, truncation=True)["input_ids"]
    assert semantics.tokenize(ours, text).tolist() == want, text
  assert semantics.tokenize(ours, "Red ball").tolist()[1:3] == [
    names.index("red</w>"),
    names.index("ball</w>"),
  ]


def test_pictures_made_for_a_prompt_score_higher_with_it_than_with_a_wrong_one(clip, video):
  model = encoders.read_clip(clip)
  text = jnp.asarray(semantics.embed_text(model, "a red ball"))
  vision = model.vision

  @jax.jit
  def toward(images):
    def agreement(images):
      _, seen = vision.module.apply({"params": vision.params}, images)
      return jnp.sum(seen @ text / jnp.linalg.norm(seen, axis=1))

    return jnp.clip(images + 0.05 * jnp.sign(jax.grad(agreement)(images)), 0, 1)

  images = jnp.asarray(video[:2])
  for _ in range(20):
    images = toward(images)
  made = np.asarray(images)
  right, wrong = (semantics.clip_score(model, made, x) for x in ("a red ball", "blue"))
  assert right > wrong + 5 and right > semantics.clip_score(model, video, "a red ball")


def head(path, widths=(16, 12, 8, 6, 4, 1), seed=0):
  """A predictor of random weights in the published layout."""
  rng = np.random.default_rng(seed)
  tensors = {}
  for i, (a, b) in zip((0, 2, 4, 6, 7), zip(widths, widths[1:])):
    tensors[f"layers.{i}.weight"] = rng.normal(size=(b, a)).astype(np.float32)
    tensors[f"layers.{i}.bias"] = rng.normal(size=b).astype(np.float32)
  save_file(tensors, path)
  return tensors


def test_the_aesthetic_head_is_its_layers_one_after_another(clip, video, tmp_path):
  tensors = head(tmp_path / "head.safetensors")
  model = encoders.read_clip(clip)
  x = semantics.embed(model.vision, video)
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  for i in (0, 2, 4, 6, 7):
    x = x @ tensors[f"layers.{i}.weight"].T + tensors[f"layers.{i}.bias"]
  folded = semantics.read_aesthetic(tmp_path / "head.safetensors")
  np.testing.assert_allclose(semantics.aesthetic(model, folded, video), x.mean(), rtol=1e-4)
  head(tmp_path / "wide.safetensors", (20, 12, 8, 6, 4, 1))
  with pytest.raises(ValueError, match="takes 20 numbers and CLIP gives 16"):
    wide = semantics.read_aesthetic(tmp_path / "wide.safetensors")
    semantics.aesthetic(model, wide, video)
  save_file({"weight": np.zeros((1, 16), np.float32)}, tmp_path / "linear.safetensors")
  with pytest.raises(ValueError, match="no improved aesthetic predictor"):
    semantics.read_aesthetic(tmp_path / "linear.safetensors")


def test_consistency_has_its_closed_forms():
  one = np.ones((5, 4))
  np.testing.assert_allclose(semantics.consistency(one), 100)
  np.testing.assert_allclose(semantics.consistency(np.eye(4)), 0)
  # To the one before: 0, 1; to the first: 0, 0.
  pair = np.array([[1.0, 0], [0, 1], [0, 2]])
  np.testing.assert_allclose(semantics.consistency(pair), 100 * 0.25)
  assert semantics.consistency(np.array([[1.0, 0], [-1, 0]])) == 0
  with pytest.raises(ValueError, match="1 frame"):
    semantics.consistency(np.ones((1, 4)))


@pytest.mark.parity
def test_consistency_is_what_torch_makes_of_vbenchs_formula():
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(0)
  for frames, shared in ((2, 0.0), (7, 0.0), (16, 3.0)):
    # Those of little in common have negative cosines, which count as none.
    features = (rng.normal(size=(frames, 12)) + shared * rng.normal(size=12)).astype(np.float32)
    rows = torch.from_numpy(features).double()
    total = 0.0
    for number in range(1, frames):
      for other in (number - 1, 0):
        cosine = torch.nn.functional.cosine_similarity(rows[number], rows[other], dim=0)
        total += max(0.0, cosine.item()) / 2
    want = 100 * total / (frames - 1)
    np.testing.assert_allclose(semantics.consistency(features), want, rtol=1e-6)


def test_consistency_is_full_for_a_frozen_video_and_falls_with_shuffling_and_noise(clip, video):
  model = encoders.read_clip(clip).vision
  rng = np.random.default_rng(0)
  frozen = np.repeat(video[:1], len(video), axis=0)
  noise = rng.normal(size=video.shape)
  noisy = [np.clip(video + level * noise, 0, 1).astype(np.float32) for level in (0.1, 0.4)]
  shuffled = video[[0, 11, 1, 10, 2, 9, 3, 8, 4, 7, 5, 6]]
  found = [
    semantics.consistency(semantics.embed(model, x)) for x in (frozen, video, shuffled, *noisy)
  ]
  assert found[0] == pytest.approx(100) and found[0] > found[1] > found[2]
  assert found[1] > found[3] > found[4]


def test_segmentation_keeps_a_part_and_hides_what_the_rest_does():
  rng = np.random.default_rng(0)
  mask = np.zeros((3, 8, 8, 3), np.float32)
  mask[:, 2:5, 2:5] = 1
  one, other = (np.where(mask > 0.5, 0.7, rng.random((3, 8, 8, 3))) for _ in range(2))
  np.testing.assert_array_equal(seen.kept(one, mask, "subject"), seen.kept(other, mask, "subject"))
  assert not np.array_equal(
    seen.kept(one, mask, "background"), seen.kept(other, mask, "background")
  )
  with pytest.raises(ValueError, match="expected one size"):
    seen.kept(one[:2], mask, "subject")
  with pytest.raises(ValueError, match="nothing of the subject in 3 frames"):
    seen.kept(one, 0 * mask, "subject")


@pytest.mark.parametrize(
  "probabilities, want",
  [
    ({"excellent": 1.0}, 5.0),
    ({"bad": 1.0}, 0.0),
    ({" Good": 0.5, "poor": 0.5}, 2.5),
    # Other words don't count; parts of words do.
    ({"fair": 0.2, "exc": 0.2, "The": 0.6}, 3.75),
  ],
)
def test_the_quality_is_the_mean_level(probabilities, want):
  found = q_align.score({token: math.log(p) for token, p in probabilities.items()})
  np.testing.assert_allclose(found, want)


def test_an_answer_without_the_words_is_refused():
  with pytest.raises(ValueError, match="0.010 of its probability"):
    q_align.score({"The": math.log(0.9), "good": math.log(0.01)})


@pytest.fixture
def server():
  """A model that likes bright first frames; the test says how it answers."""

  class Handler(http.server.BaseHTTPRequestHandler):
    asked: list = []
    broken = refusing = False

    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
      self.asked.append((self.path, body, self.headers.get("Authorization")))
      good = 0.9 if len(body["messages"][0]["content"]) > 2 else 0.2
      top = [{"token": t, "logprob": math.log(p)} for t, p in (("good", good), ("bad", 1 - good))]
      if self.refusing:
        self.send_error(401, "no such key")
        return
      content = [] if self.broken else [{"top_logprobs": top}]
      answer = json.dumps({"choices": [{"logprobs": {"content": content}}]}).encode()
      self.send_response(200)
      self.end_headers()
      self.wfile.write(answer)

    def log_message(self, *_):
      pass

  found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=found.serve_forever)
  thread.start()
  yield found, Handler, f"http://127.0.0.1:{found.server_port}/v1"
  found.shutdown()
  thread.join()
  found.server_close()


def test_a_served_model_is_asked_about_one_frame_a_second(server, video, monkeypatch):
  _, handler, url = server
  monkeypatch.setenv(q_align.KEY, "secret")
  judge = q_align.Judge(url, "a-model")
  np.testing.assert_allclose(judge.quality(video, 8.0), 5 * 0.75 * 0.9)
  path, body, key = handler.asked[-1]
  assert path == "/v1/chat/completions" and key == "Bearer secret"
  content = body["messages"][0]["content"]
  assert body["model"] == "a-model" and body["logprobs"] and body["max_tokens"] == 1
  assert [part["type"] for part in content] == ["text", "image_url", "image_url"]
  assert content[0]["text"] == q_align.PROMPT
  handler.broken = True
  with pytest.raises(ValueError, match="expected a server that gives log-probabilities"):
    judge.quality(video, 8.0)
  with pytest.raises(ValueError, match="expected a server that gives log-probabilities"):
    q_align.Judge(url, "a-model")


def test_frames_are_shown_in_the_middle_of_a_square_of_clips_mean_colour():
  frame = np.full((4, 6, 3), 0.2, np.float32)
  shown = np.asarray(Image.open(io.BytesIO(q_align._png(frame))))
  assert shown.shape == (6, 6, 3)
  np.testing.assert_array_equal(shown[[0, 5]], np.tile([122, 116, 104], (2, 6, 1)))
  np.testing.assert_array_equal(shown[1:5], 51)


def test_a_server_that_goes_away_ends_the_evaluation(server, video, monkeypatch):
  found, _, url = server
  monkeypatch.setattr(captioning, "_PAUSE", 0)
  judge = q_align.Judge(url, "a-model")
  found.shutdown()
  found.server_close()
  with pytest.raises(ConnectionError, match="can't be reached"):
    judge.quality(video, 8.0)
  with pytest.raises(ValueError, match="expected http:// or https://"):
    q_align.Judge("file:///etc", "a-model")


def test_a_server_that_says_nothing_is_told_of_in_a_line_and_not_asked_again(
  video, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(captioning, "LISTED", 0.1)
  (tmp_path / "set").mkdir()
  for name in ("a", "b"):
    np.save(tmp_path / "set" / f"{name}.npy", video)
  with socket.create_server(("127.0.0.1", 0)) as silent:
    silent.settimeout(0.1)
    url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
    options = dict(samples=str(tmp_path / "set"), metrics="qa_quality", qa_url=url, qa_model="a")
    with pytest.raises(ConnectionError, match=r"/v1/models doesn't answer within 0\.1 s; is"):
      runner.evaluate(Settings(output=str(tmp_path / "out"), **options))
    silent.accept()[0].close()
    # Nobody else has come: not again, not for a picture, not for a video.
    with pytest.raises(TimeoutError):
      silent.accept()
  said = [line for line in capsys.readouterr().err.splitlines() if "doesn't answer" in line]
  assert len(said) == 1 and "within 0.1 s; is the server running? Only videos" in said[0]


def test_a_slow_model_is_waited_for_as_the_readme_says(video, monkeypatch):
  waits = []
  answer = {
    "choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "good", "logprob": 0.0}]}]}}]
  }
  monkeypatch.setattr(captioning, "ask", lambda *asked: waits.append(asked[3]) or answer)
  assert q_align.Judge("http://there/v1", "a").quality(video, 8.0) == 5 * 0.75
  listed, first, then = waits
  # Minutes, for a large model on a CPU, from the first picture on.
  assert listed < 60 <= 300 == first == then
  readme = " ".join(pathlib.Path(q_align.__file__).with_name("README.md").read_text().split())
  assert f"no models within {listed:g} s, or says nothing of a picture within" in readme
  assert f"within {first / 60:g} minutes, is told" in readme


def test_a_wrong_key_is_told_once_before_anything_is_measured(server, video, tmp_path):
  _, handler, url = server
  (tmp_path / "set").mkdir()
  for name in ("a", "b"):
    np.save(tmp_path / "set" / f"{name}.npy", video)
  options = dict(samples=str(tmp_path / "set"), metrics="qa_quality", qa_url=url, qa_model="a")
  settings = Settings(output=str(tmp_path / "out"), **options)
  handler.refusing, before = True, len(handler.asked)
  with pytest.raises(ValueError, match="refused: HTTP 401"):
    runner.evaluate(settings)
  assert len(handler.asked) == before + 1
  handler.refusing = False
  assert runner.evaluate(settings).rows[0].results["set"].count == 2


def test_what_was_kept_needs_no_server(server, video, tmp_path, monkeypatch):
  found, _, url = server
  monkeypatch.setattr(captioning, "_PAUSE", 0)
  (tmp_path / "set").mkdir()
  np.save(tmp_path / "set" / "a.npy", video)
  options = dict(samples=str(tmp_path / "set"), metrics="qa_quality", qa_url=url, qa_model="a")
  settings = Settings(output=str(tmp_path / "out"), **options)
  first = runner.evaluate(settings).rows[0].results["set"]
  found.shutdown()
  found.server_close()
  assert runner.evaluate(settings).rows[0].results["set"] == first


def test_all_of_them_in_one_evaluation(clip, video, server, tmp_path, monkeypatch):
  head(tmp_path / "head.safetensors")
  for name in ("samples", "masks"):
    (tmp_path / name).mkdir()
  np.save(tmp_path / "samples" / "a.npy", video)
  (tmp_path / "samples" / "a.txt").write_text("a red ball")
  mask = np.zeros_like(video)
  mask[:, :, :10] = 1
  np.save(tmp_path / "masks" / "a.npy", mask)
  names = "clip_score,clip_aesthetic,qa_quality,background_consistency"
  names += ",background_consistency_segmented,subject_consistency"
  settings = Settings(
    samples=str(tmp_path / "samples"),
    masks=str(tmp_path / "masks"),
    metrics=names,
    output=str(tmp_path / "out"),
    weights=Weights(
      clip=str(clip), clip_b32=str(clip), aesthetic=str(tmp_path / "head.safetensors")
    ),
    qa_url=server[2],
    qa_model="a-model",
  )
  with pytest.raises(ValueError, match=r"clip.* is of vision dim \d+; openai/clip-vit-.* is of"):
    runner.evaluate(settings)
  # The small ones of this test stand for the published ones.
  monkeypatch.setattr(tools, "PUBLISHED", {"clip": {}, "clip_b32": {}, "dino": {}})
  found = {row.name: row for row in runner.evaluate(settings).rows}
  assert found["subject_consistency"].missing == "facebook/dino-vitb16: config.weights.dino=FOLDER"
  for name in names.split(",")[:-1]:
    result = found[name].results["samples"]
    assert result.count == 1 and np.isfinite(result.value), name
    assert found[name].weights
  assert server[2] in found["qa_quality"].weights
  for name in ("clip_score", "clip_aesthetic"):
    assert found[name].protocol.startswith("clip-vit-l14-projected/")
  whole, part = (
    found[f"background_consistency{x}"].results["samples"].value for x in ("", "_segmented")
  )
  assert whole != part
