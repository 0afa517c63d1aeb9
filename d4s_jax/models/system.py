"""All models of d4s_jax as one value: a video backbone and the LDRM, built from a configuration."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from d4s_jax.geometry.plucker import CHANNELS, camera_map
from d4s_jax.models import backbone
from d4s_jax.models.backbone import Backbone
from d4s_jax.models.ldrm import LDRM, Auxiliary
from d4s_jax.types import Cameras, DynamicGaussians


@dataclasses.dataclass(frozen=True)
class System:
  """What training and inference see of the models; parameters are kept apart.

  Parameters are a nested dictionary with the parts "autoencoder", "text_encoder", "transformer",
  "ldrm" and, for backbones that have them, "image_encoder" and "adapter".

  Attributes:
    backbone: the video model.
    ldrm: the reconstruction model.
    encoding: of the cameras, "plucker" or "flat", for both.
  """

  backbone: Backbone
  ldrm: LDRM
  encoding: str

  @classmethod
  def build(
    cls, config: Mapping[str, Any], tokenizer_files: Mapping[str, bytes] | None = None
  ) -> "System":
    """Builds the models from the `model` section of a configuration.

    Args:
      config: `backbone` (see `models.backbone.build`), `lora` (fields of `LoRA`), `ldrm` (fields
        of `LDRM`), `encoding` of the cameras and `dtype`, the compute dtype.
      tokenizer_files: of a published tokenizer, by name, if `backbone.tokenizer` names one.
    """
    if (named := config["backbone"].get("tokenizer", "")) and not tokenizer_files:
      raise ValueError(f"model.backbone.tokenizer is {named!r}, but its files were not read.")
    dtype, encoding = compute_dtype(config["dtype"]), config["encoding"]
    if encoding not in CHANNELS:
      raise ValueError(f"model.encoding is {encoding!r}; expected one of {sorted(CHANNELS)}.")
    modules = {
      name: _fields(config["backbone"][name]) | {"dtype": dtype}
      for name in ("autoencoder", "text_encoder", "image_encoder", "transformer")
      if name in config["backbone"]
    }
    modules["lora"] = _fields(config.get("lora", {}))
    video = backbone.build(
      dict(config["backbone"])
      | modules
      | {"camera_channels": CHANNELS[encoding], "tokenizer_files": tokenizer_files or {}}
    )
    ldrm = LDRM(**_fields(config["ldrm"]), strides=video.strides, encoding=encoding, dtype=dtype)
    return cls(video, ldrm, encoding)

  def tokenize(self, text: str) -> Int[np.ndarray, "l"]:
    """Token ids of a prompt."""
    return self.backbone.tokenizer(text)

  def check_size(self, frames: int, height: int, width: int) -> None:
    """Raises ValueError, naming the nearest legal sizes, for a clip that the models can't take."""
    self.backbone.check_size(frames, height, width)

  def camera_maps(
    self, cameras: Cameras, dropped: Bool[Array, "b"] | None = None
  ) -> Float[Array, "b f h w c"]:
    """The cameras as the DiT sees them; zeros for the samples that are `dropped`."""
    maps = camera_map(cameras, self.encoding)
    return maps if dropped is None else jnp.where(dropped.reshape(-1, 1, 1, 1, 1), 0.0, maps)

  def reconstruct(
    self,
    params: Any,
    latents: Float[Array, "b f h w c"],
    cameras: Cameras,
    times: Float[Array, "b q"],
    *,
    gaussians: int | None = None,
    **asked: Any,
  ) -> tuple[DynamicGaussians, Auxiliary]:
    """The scene behind latents, with its deformation at `times`, and what losses need of it.

    Args:
      params: the parameters.
      latents: of a video.
      cameras: of its frames.
      times: clip times at which the deformation is wanted, rising.
      gaussians: how many to keep, if not the model's own budget.
      **asked: further arguments of `LDRM`.
    """
    ldrm = self.ldrm if gaussians is None else self.ldrm.clone(gaussians=gaussians)
    video = None
    if ldrm.stem:
      # Gradients pass through the decoder, but tuning it with the LDRM makes both worse.
      decoder = {"autoencoder": jax.lax.stop_gradient(params["autoencoder"])}
      video = self.backbone.decode(decoder, latents)
    outcome: Any = ldrm.apply(
      {"params": params["ldrm"]}, latents, cameras, times, video=video, **asked
    )
    return outcome

  def init(self, key: PRNGKeyArray) -> Any:
    """Random parameters, float32; they fit clips of every legal size."""
    return nn.unbox(self._init_boxed(key))

  def boxed(self) -> Any:
    """Abstract parameters in boxes that name their logical axes; nothing is computed."""
    return self._boxed

  def abstract(self) -> Any:
    """Shapes and types of the parameters; nothing is computed."""
    return jax.eval_shape(nn.unbox, self._boxed)

  @functools.cached_property
  def _boxed(self) -> Any:
    # Tracing a large model takes seconds.
    return jax.eval_shape(lambda: self._init_boxed(jax.random.key(0)))

  def __getstate__(self) -> dict[str, Any]:
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

  def _init_boxed(self, key: PRNGKeyArray) -> Any:
    video_key, ldrm_key = jax.random.split(key)
    # Parameters don't depend on the size of the clip; this is the smallest one.
    time, rows, columns = self.backbone.strides
    patch = self.ldrm.patch
    frames, height, width = 1 + time, rows * patch, columns * patch
    cameras = Cameras(
      world_from_camera=jnp.broadcast_to(jnp.eye(4), (1, frames, 4, 4)),
      intrinsics=jnp.broadcast_to(jnp.eye(3), (1, frames, 3, 3)),
      height=height,
      width=width,
    )
    latents = jnp.zeros(self.backbone.latent_shape(1, frames, height, width))
    module = self.ldrm.clone(gaussians=1)
    video = jnp.zeros((1, frames, height, width, 3)) if module.stem else None
    ldrm = module.init(ldrm_key, latents, cameras, jnp.zeros((1, 1)), video=video)["params"]
    return self.backbone.boxed(video_key) | {"ldrm": ldrm}


def compute_dtype(name: str) -> jnp.dtype:
  """The dtype of a name; "auto" is bfloat16, but float32 on a CPU, where bfloat16 gains nothing."""
  if name == "auto":
    name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  if name not in ("float32", "bfloat16"):
    raise ValueError(f"model.dtype is {name!r}; expected 'auto', 'float32' or 'bfloat16'.")
  return jnp.dtype(name)


def _fields(section: Mapping[str, Any]) -> dict[str, Any]:
  """A section as constructor arguments; lists become tuples, which modules can be hashed with."""
  return {key: tuple(x) if isinstance(x, list) else x for key, x in section.items()}
