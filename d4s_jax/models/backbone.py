"""The video model as the rest of the system sees it, whichever family it is of."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from d4s_jax.diffusion.schedule import FlowMatching, Schedule
from d4s_jax.diffusion.v_prediction import VPrediction
from d4s_jax.layers.reuse import FEATURES
from d4s_jax.models.adapter import ADAPTER, LoRA, add_adapter
from d4s_jax.models.clip import CLIPVision
from d4s_jax.models.cogvideox.autoencoder import CogVideoXAutoencoder
from d4s_jax.models.cogvideox.transformer import CogVideoXTransformer
from d4s_jax.models.condition import Condition
from d4s_jax.models.t5 import T5Encoder
from d4s_jax.models.tokenizer import PAD, Tokenizer, make_tokenizer
from d4s_jax.models.wan import prompts
from d4s_jax.models.wan.autoencoder import WanAutoencoder
from d4s_jax.models.wan.transformer import WanTransformer

Params = Mapping[str, Any]


class Text(NamedTuple):
  """A prompt as the transformer takes it.

  Attributes:
    embeddings: zero beyond the end of the prompt.
    mask: True up to the end of the prompt; all True where padding is read as text.
  """

  embeddings: Float[Array, "b l d"]
  mask: Bool[Array, "b l"]


class Embedded(NamedTuple):
  """Prompts of a batch that were embedded before.

  Attributes:
    text: of `encode_text`.
    empty: the empty prompt, for each sample.
  """

  text: Text
  empty: Text


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A pre-trainable image-to-video model: autoencoder, text encoder, transformer, schedule.

  It holds no parameters: every method takes the tree {"autoencoder": .., "text_encoder": ..,
  "transformer": ..} of `init`, which has an "image_encoder" too where the model has one, and an
  "adapter" if the transformer has one.

  A condition is dropped, for classifier-free guidance, as follows: text becomes the empty prompt
  (`drop` of `encode_text`), cameras become None or, for single samples of a batch, maps of zeros;
  both contribute exactly nothing.

  Attributes:
    autoencoder: has methods `encode` and `decode` over video in [-1, 1] and normalised latents.
    text_encoder: maps tokens and their mask to embeddings.
    transformer: has a method `denoise`.
    schedule: the path between noise and data that the transformer was trained on.
    tokenizer: prompt to token ids; the empty prompt is the unconditional one.
    latent_channels: channels of a latent.
    strides: frames, rows, columns of video a latent.
    patch: frames, rows, columns of latents a token of the transformer.
    camera_channels: channels of the camera maps: 6 for Plücker, 12 for flat poses.
    reads_padding: whether padding of the prompt is embedded and attended to like text, as the
      published CogVideoX models were trained.
    image_encoder: maps images in [0, 1] to tokens, which the transformer attends to, and to one
      embedding; None for models that read the photograph from latents alone.
    adapter: low-rank adapters of the transformer.
    most_frames: of a video, for a model that learnt a position for each; None for any number.
  """

  autoencoder: nn.Module
  text_encoder: nn.Module
  transformer: nn.Module
  schedule: Schedule
  tokenizer: Tokenizer
  latent_channels: int
  strides: tuple[int, int, int]
  patch: tuple[int, int, int]
  camera_channels: int
  reads_padding: bool = False
  image_encoder: nn.Module | None = None
  adapter: LoRA = LoRA()
  most_frames: int | None = None

  def boxed(self, key: PRNGKeyArray) -> dict[str, Any]:
    """New parameters in boxes that name their logical axes; use under `jax.eval_shape`."""
    keys = jax.random.split(key, 3)
    # The parameters don't depend on the size of the video: the smallest one is enough.
    frames = 1 + self.strides[0] * max(1, self.patch[0] - 1)
    rows, columns = self.strides[1] * self.patch[1], self.strides[2] * self.patch[2]
    video = jnp.zeros((1, frames, rows, columns, 3))
    maps = jnp.zeros((1, frames, rows, columns, self.camera_channels))
    latents = jnp.zeros(self.latent_shape(1, frames, rows, columns))
    tokens = jnp.zeros((1, self.tokenizer.max_length), jnp.int32)
    text_encoder = self.text_encoder.init(keys[1], tokens, tokens == PAD)
    text = jax.eval_shape(self.text_encoder.apply, text_encoder, tokens, tokens == PAD)
    text = jnp.zeros(text.shape)
    parts = {"autoencoder": self.autoencoder.init(keys[0], video), "text_encoder": text_encoder}
    if self.image_encoder is not None:
      parts["image_encoder"] = self.image_encoder.init(jax.random.fold_in(key, 3), video[:, 0])
    params = {name: part["params"] for name, part in parts.items()}
    condition = jax.eval_shape(
      lambda params: self.condition(params, video[:, 0], frames), nn.unbox(params)
    )
    condition = jax.tree.map(lambda x: jnp.zeros(x.shape), condition)
    inputs = (latents, jnp.zeros(1), text, maps, condition)
    params["transformer"] = self.transformer.init(keys[2], *inputs, method="denoise")["params"]
    if self.adapter.rank:
      params[ADAPTER] = self.adapter.boxed(jax.random.fold_in(key, 4), params["transformer"])
    return params

  def init(self, key: PRNGKeyArray) -> dict[str, Any]:
    """New parameters, float32, as plain nested dictionaries."""
    return nn.unbox(self.boxed(key))

  def latent_shape(self, batch: int, frames: int, height: int, width: int) -> tuple[int, ...]:
    """Shape of the latents of a video of legal size."""
    time, rows, columns = self.strides
    latents = (1 + (frames - 1) // time, height // rows, width // columns)
    return (batch, *latents, self.latent_channels)

  def padding(self, latents: int) -> int:
    """Latent frames in front of so many of a video, which make whole tokens of them.

    The transformer takes them like the others, as it was published: in sampling they begin as noise
    and are thrown away at the end (diffusers' pipelines of CogVideoX 1.5), in training they repeat
    the first one (its authors' fine-tuning; `padded`).
    """
    return -latents % self.patch[0]

  def padded(self, latents: Float[Array, "b f h w c"]) -> Float[Array, "b F h w c"]:
    """Clean latents of a video as `denoise` takes them, the first one repeated in front."""
    return _in_front(latents, self.padding(latents.shape[1]))

  def check_size(self, frames: int, height: int, width: int) -> None:
    """Raises ValueError, naming the nearest legal sizes, unless the video has a legal size."""
    (time, *space), (_, *patch) = self.strides, self.patch
    steps = [time, *(stride * size for stride, size in zip(space, patch))]
    # The first latent frame is one frame of video, each further one is `time` frames.
    offsets = (1 % time, 0, 0)
    wrong = []
    for name, value, step, offset in zip(
      ("frames", "height", "width"), (frames, height, width), steps, offsets
    ):
      below = value - (value - offset) % step
      if below == value and value > 0:
        continue
      nearest = " or ".join(str(size) for size in (below, below + step) if size > 0)
      rule = f"{offset} + {step}k" if offset else f"{step}k"
      wrong.append(f"{name} {value} (legal is {rule}, nearest {nearest or step})")
    if self.most_frames is not None and frames > self.most_frames:
      wrong.append(f"frames {frames} (this model knows at most {self.most_frames})")
    if wrong:
      raise ValueError("Illegal video size: " + ", ".join(wrong) + ".")

  def posterior(
    self, params: Params, video: Float[Array, "b F H W 3"]
  ) -> tuple[Float[Array, "b f h w c"], Float[Array, "b f h w c"]]:
    """Mean and log variance of the normalised latents of a video in [0, 1]."""
    return _apply(self.autoencoder, params["autoencoder"], 2.0 * video - 1.0, method="encode")

  def encode(self, params: Params, video: Float[Array, "b F H W 3"]) -> Float[Array, "b f h w c"]:
    """Normalised latents (the mean of the posterior) of a video in [0, 1]."""
    return self.posterior(params, video)[0]

  def decode(self, params: Params, latents: Float[Array, "b f h w c"]) -> Float[Array, "b F H W 3"]:
    """Video, nominally in [0, 1]; not clipped, so that losses see and correct what is beyond."""
    video = _apply(self.autoencoder, params["autoencoder"], latents, method="decode")
    return 0.5 * (video + 1.0)

  def encode_text(
    self,
    params: Params,
    tokens: Int[Array, "b l"] | Embedded,
    drop: Bool[Array, "b"] | None = None,
  ) -> Text:
    """Embeds prompts.

    Args:
      params: the parameters.
      tokens: token ids as the tokenizer makes them, or prompts that were embedded before.
      drop: samples whose prompt is replaced by the empty one.
    """
    if isinstance(tokens, Embedded):
      return tokens.text if drop is None else _pick(drop, tokens.empty, tokens.text)
    if drop is not None:
      empty = jnp.asarray(self.tokenizer(""))[None]
      tokens = jnp.where(drop[:, None], empty, tokens)
    mask = (tokens != PAD) | self.reads_padding
    embeddings = _apply(self.text_encoder, params["text_encoder"], tokens, mask)
    return Text(embeddings * mask[:, :, None], mask)

  def condition(self, params: Params, image: Float[Array, "b h w 3"], frames: int) -> Condition:
    """What `denoise` is told of a photograph.

    Args:
      params: the parameters.
      image: the first frame of the video, in [0, 1].
      frames: of the video.
    """
    if self.image_encoder is None:
      first = self.encode(params, image[:, None])
      return Condition(_in_front(first, self.padding(1 + (frames - 1) // self.strides[0])))
    # Mid-grey stands for the frames that are not known.
    video = jnp.pad(image[:, None], ((0, 0), (0, frames - 1), *3 * ((0, 0),)), constant_values=0.5)
    latents = self.encode(params, video)
    tokens, _ = _apply(self.image_encoder, params["image_encoder"], image)
    return Condition(latents[:, :1], latents, tokens)

  def denoise(
    self,
    params: Params,
    latents: Float[Array, "b f h w c"],
    sigma: Float[Array, "b"],
    text: Text,
    camera_maps: Float[Array, "b F H W m"] | None = None,
    condition: Condition | None = None,
  ) -> Float[Array, "b f h w c"]:
    """Predicts the velocity of noisy latents.

    Args:
      params: the parameters.
      latents: normalised latents at noise level `sigma`, with `padding` in front.
      sigma: noise level in [0, 1] of each sample.
      text: of `encode_text`.
      camera_maps: Plücker or flat maps of every frame of the video; None, or zeros for a sample,
        for no camera.
      condition: of `condition`, on the photograph that the video starts with; None for
        text-to-video, which not every model can do.

    Returns:
      The velocity, float32. With a condition, that of the first frame, and of padding before it,
      need not mean anything.
    """
    args = latents, sigma, text, camera_maps, condition
    return self._denoise(params, *args)

  def denoise_keeping(
    self,
    params: Params,
    latents: Float[Array, "b f h w c"],
    sigma: Float[Array, "b"],
    text: Text,
    camera_maps: Float[Array, "b F H W m"] | None = None,
    condition: Condition | None = None,
  ) -> tuple[Float[Array, "b f h w c"], Any]:
    """As `denoise`; also returns features for `denoise_reusing`, whose arrays have an axis "b"."""
    args = latents, sigma, text, camera_maps, condition
    return self._denoise(params, *args, mutable=[FEATURES])

  def denoise_reusing(
    self,
    params: Params,
    features: Any,
    latents: Float[Array, "b f h w c"],
    sigma: Float[Array, "b"],
    text: Text,
    camera_maps: Float[Array, "b F H W m"] | None = None,
    condition: Condition | None = None,
  ) -> Float[Array, "b f h w c"]:
    """As `denoise`, but all blocks together add what they added in the pass that `features` are of.

    What is left to compute are the embeddings and the head.
    """
    args = latents, sigma, text, camera_maps, condition
    return self._denoise(params, *args, **features)

  def _denoise(
    self,
    params: Params,
    latents: Float[Array, "b f h w c"],
    sigma: Float[Array, "b"],
    text: Text,
    camera_maps: Float[Array, "b F H W m"] | None,
    condition: Condition | None,
    mutable: Any = False,
    **collections: Any,
  ) -> Any:
    """The transformer with its adapter, whether features are kept, reused or neither."""
    if camera_maps is not None:
      time = self.strides[0]
      padding = self.padding(1 + (camera_maps.shape[1] - 1) // time)
      camera_maps = _in_front(camera_maps, time * padding)
    args = (latents, sigma, text.embeddings, camera_maps, condition)
    if self.adapter.rank:
      collections[ADAPTER] = self.adapter.scaled(params[ADAPTER])
    variables = {"params": params["transformer"], **collections}
    with nn.intercept_methods(add_adapter):
      return self.transformer.apply(variables, *args, method="denoise", mutable=mutable)


def _apply(module: nn.Module, params: Any, *args: Any, method: str | None = None) -> Any:
  return module.apply({"params": params}, *args, method=method)


def _in_front(x: Float[Array, "b f h w c"], count: int) -> Float[Array, "b F h w c"]:
  """The frames, with the first one `count` times more in front of them."""
  return jnp.concatenate([jnp.repeat(x[:, :1], count, axis=1), x], axis=1) if count else x


def _pick(choice: Bool[Array, "b"], first: Text, second: Text) -> Text:
  """For each sample the first or the second text."""
  rows = choice[:, None]
  return Text(
    jnp.where(rows[:, :, None], first.embeddings, second.embeddings),
    jnp.where(rows, first.mask, second.mask),
  )


def _tokenizer(config: Mapping[str, Any], clean: Callable[[str], str] = str) -> Tokenizer:
  """That of the given files, whose prompts the family's published pipeline cleans."""
  files, vocabulary = config.get("tokenizer_files", {}), config["text_encoder"]["vocabulary"]
  return make_tokenizer(config["text_length"], files, vocabulary, clean)


def _build_wan(config: Mapping[str, Any]) -> Backbone:
  autoencoder = WanAutoencoder(**config["autoencoder"])
  sizes = {"out_channels": autoencoder.z_dim, "strides": autoencoder.strides}
  sizes |= {"takes_image": "image_encoder" in config}
  transformer = WanTransformer(**dict(config["transformer"]) | sizes)
  return Backbone(
    autoencoder=autoencoder,
    text_encoder=T5Encoder(**config["text_encoder"]),
    transformer=transformer,
    schedule=FlowMatching(**config.get("schedule", {})),
    tokenizer=_tokenizer(config, prompts.clean),
    latent_channels=autoencoder.z_dim,
    strides=autoencoder.strides,
    patch=transformer.patch,
    camera_channels=config["camera_channels"],
    image_encoder=CLIPVision(**config["image_encoder"]) if "image_encoder" in config else None,
  )


def _build_cogvideox(config: Mapping[str, Any]) -> Backbone:
  autoencoder = CogVideoXAutoencoder(**config["autoencoder"])
  sizes = {"out_channels": autoencoder.z_dim, "strides": autoencoder.strides}
  sizes |= {"text_length": config["text_length"]}
  # `denoise` is given latents that are multiplied by the scale.
  sizes |= {"image_scale": autoencoder.scale**-2 if autoencoder.inverted else 1.0}
  transformer = CogVideoXTransformer(**dict(config["transformer"]) | sizes)
  most = None
  if transformer.positions == "learned" and transformer.grid is not None:
    most = 1 + autoencoder.strides[0] * (transformer.grid[0] * transformer.patch[0] - 1)
  return Backbone(
    autoencoder=autoencoder,
    text_encoder=T5Encoder(**config["text_encoder"]),
    transformer=transformer,
    schedule=VPrediction(**config.get("schedule", {})),
    tokenizer=_tokenizer(config),
    latent_channels=autoencoder.z_dim,
    strides=autoencoder.strides,
    patch=transformer.patch,
    camera_channels=config["camera_channels"],
    reads_padding=True,
    most_frames=most,
  )


BACKBONES: dict[str, Callable[[Mapping[str, Any]], Backbone]] = {
  "wan": _build_wan,
  "cogvideox": _build_cogvideox,
}


def build(config: Mapping[str, Any]) -> Backbone:
  """The backbone that a configuration describes.

  Args:
    config: `family` (a key of `BACKBONES`), `text_length` in tokens, `tokenizer_files` (`files` of
      `make_tokenizer`; may be missing), `camera_channels`, `lora` (fields of `LoRA`; no adapter
      without it), and the sections `autoencoder`, `text_encoder`, `transformer`, `schedule` and,
      for Wan2.1-I2V, `image_encoder`, whose keys are the fields of the classes they build.

  Raises:
    ValueError: the family is unknown.
  """
  if config["family"] not in BACKBONES:
    raise ValueError(
      f"Unknown backbone family {config['family']!r}; choose one of {sorted(BACKBONES)}."
    )
  adapter = LoRA(**config.get("lora", {}))
  return dataclasses.replace(BACKBONES[config["family"]](config), adapter=adapter)
