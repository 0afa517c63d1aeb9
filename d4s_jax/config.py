"""The one schema of a run: every key, its default, and the presets of size.

A config file (configs/*.py) is a short diff of `base()`. The keys under `model` are the fields of
the classes they build (`models.system`), those under `loss` of `training.objectives.Settings`,
those under `optimizer` the arguments of `training.optimizer.make_optimizer`.
"""

from typing import Any, TypeAlias

from ml_collections import ConfigDict

# A ConfigDict, whose keys are attributes that no type checker knows.
Config: TypeAlias = Any

_UMT5_XXL = {
  "vocabulary": 256384,
  "dim": 4096,
  "depth": 24,
  "heads": 64,
  "head_dim": 64,
  "ffn_dim": 10240,
}
_T5_XXL = _UMT5_XXL | {"vocabulary": 32128, "per_layer_bias": False}

# The autoencoder of every Wan 2.1 model, with the statistics of its latents.
_WAN_AUTOENCODER = {
  "base_dim": 96,
  "z_dim": 16,
  "dim_mult": (1, 2, 4, 4),
  "num_res_blocks": 2,
  "temporal_downsample": (False, True, True),
  "patch": 1,
  "decoder_base_dim": None,
  "residual": False,
  "chunk": 1,
  "latents_mean": (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
  ),
  "latents_std": (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
  ),
}

# ViT-H/14 of OpenCLIP.
_CLIP = {"dim": 1280, "ffn_dim": 5120, "heads": 16, "depth": 32, "size": 224, "patch": 14}
# That of Wan2.2-TI2V-5B.
_WAN22_AUTOENCODER = _WAN_AUTOENCODER | {
  "base_dim": 160,
  "z_dim": 48,
  "patch": 2,
  "decoder_base_dim": 256,
  "residual": True,
  "latents_mean": (
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
    *(-0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825),
    *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230),
    *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748),
    *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
  ),
  "latents_std": (
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013),
    *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
    *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
    *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
    *(0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
  ),
}

_FULL_LDRM = {
  "gaussians": 50_000,
  "width": 1024,
  "depth": 16,
  "heads": 16,
  "patch": 2,
  "stem": 0,
  "pixels_per_cell": 1,
  "motion_channels": 128,
  "remat": "all",
}


def _wan(**transformer: int) -> dict[str, Any]:
  return {
    "autoencoder": _WAN_AUTOENCODER,
    "text_encoder": _UMT5_XXL,
    "transformer": {"remat": "all", **transformer},
    "text_length": 512,
  }


def _wan_i2v(shift: float, **transformer: int) -> dict[str, Any]:
  return _wan(**transformer) | {
    "image_encoder": _CLIP,
    "schedule": {"shift": shift},
  }


def _cogvideox(
  scale: float, snr_shift: float, inverted: bool = False, **transformer: Any
) -> dict[str, Any]:
  return {
    "family": "cogvideox",
    "autoencoder": {
      "widths": (128, 256, 256, 512),
      "z_dim": 16,
      "num_res_blocks": 3,
      "temporal_levels": 2,
      "groups": 32,
      "scale": scale,
      "inverted": inverted,
      "chunk": 2,
    },
    "text_encoder": _T5_XXL,
    "transformer": {"head_dim": 64, "remat": "all", **transformer},
    "schedule": {"snr_shift": snr_shift},
    "text_length": 226,
  }


# What a preset sets under `model`. `tiny` trains on two CPU cores; the others are the published
# sizes, and "paper" the figures of Diff4Splat taken literally (32 blocks of width 4096, 32 latent
# channels; heads and feed-forward width, which it doesn't state, as in Wan).
PRESETS: dict[str, dict[str, Any]] = {
  "tiny": {
    "backbone": {
      "autoencoder": {
        # Strides 2x4x4: at 64 pixels, latents of 4x8x8 don't hold what is seen. Patches of 2x2
        # pixels stand in for a level at full resolution, which would take most of the time.
        "base_dim": 16,
        "z_dim": 16,
        "dim_mult": (1, 3),
        "num_res_blocks": 1,
        "temporal_downsample": (True,),
        "patch": 2,
        "decoder_base_dim": None,
        "residual": False,
        "chunk": 0,
        "latents_mean": (),
        "latents_std": (),
      },
      "text_encoder": {
        "vocabulary": 384,
        "dim": 128,
        "depth": 2,
        "heads": 4,
        "head_dim": 32,
        "ffn_dim": 256,
      },
      "transformer": {"dim": 192, "ffn_dim": 768, "heads": 4, "depth": 4, "remat": "products"},
      # Its latents are few: at a shift of 5, as of the large ones, low noise is hardly ever seen.
      "schedule": {"shift": 2.0},
      "text_length": 160,
    },
    "ldrm": {
      "gaussians": 4096,
      "width": 192,
      "depth": 4,
      "heads": 4,
      "patch": 2,
      "stem": 2,
      "pixels_per_cell": 2,
      "motion_channels": 64,
      "remat": "products",
    },
  },
  "wan1.3b": {
    "backbone": _wan(dim=1536, ffn_dim=8960, heads=12, depth=30),
    "ldrm": _FULL_LDRM,
  },
  "wan14b": {
    "backbone": _wan(dim=5120, ffn_dim=13824, heads=40, depth=40),
    "ldrm": _FULL_LDRM,
  },
  # Two sets of weights of one size, published with another shift of the noise level each.
  "wan14b-i2v-480p": {
    "backbone": _wan_i2v(3.0, dim=5120, ffn_dim=13824, heads=40, depth=40),
    "ldrm": _FULL_LDRM,
  },
  "wan14b-i2v-720p": {
    "backbone": _wan_i2v(5.0, dim=5120, ffn_dim=13824, heads=40, depth=40),
    "ldrm": _FULL_LDRM,
  },
  "wan2.2-5b-ti2v": {
    "backbone": _wan(dim=3072, ffn_dim=14336, heads=24, depth=30)
    | {"autoencoder": _WAN22_AUTOENCODER},
    # Its latents are half as many along each side already.
    "ldrm": _FULL_LDRM | {"patch": 1},
  },
  "paper": {
    "backbone": _wan(dim=4096, ffn_dim=16384, heads=32, depth=32)
    | {"autoencoder": _WAN_AUTOENCODER | {"z_dim": 32, "latents_mean": (), "latents_std": ()}},
    "ldrm": _FULL_LDRM,
  },
  "cogvideox-2b": {
    "backbone": _cogvideox(1.15258426, snr_shift=3.0, heads=30, depth=30, positions="sine"),
    "ldrm": _FULL_LDRM,
  },
  "cogvideox-5b": {
    "backbone": _cogvideox(0.7, snr_shift=1.0, heads=48, depth=42, grid=(13, 30, 45)),
    "ldrm": _FULL_LDRM,
  },
  "cogvideox-5b-i2v": {
    "backbone": _cogvideox(
      *(0.7, 1.0),
      heads=48,
      depth=42,
      positions="learned",
      grid=(13, 30, 45),
      takes_image=True,
    ),
    "ldrm": _FULL_LDRM,
  },
  "cogvideox-1.5-5b": {
    "backbone": _cogvideox(0.7, snr_shift=1.0, inverted=True, heads=48, depth=42, patch=(2, 2, 2)),
    "ldrm": _FULL_LDRM,
  },
  "cogvideox-1.5-5b-i2v": {
    "backbone": _cogvideox(
      *(0.7, 1.0),
      heads=48,
      depth=42,
      inverted=True,
      patch=(2, 2, 2),
      offset=True,
      takes_image=True,
    ),
    "ldrm": _FULL_LDRM,
  },
}

# Frames of a clip where it isn't 49.
_FRAMES = {"tiny": 9, "cogvideox-1.5-5b": 81, "cogvideox-1.5-5b-i2v": 81}


def base(preset: str) -> Config:
  """The default configuration of a preset; raises ValueError for an unknown one."""
  if preset not in PRESETS:
    raise ValueError(f"Unknown preset {preset!r}; choose one of {sorted(PRESETS)}.")
  tiny = preset == "tiny"
  return ConfigDict(
    {
      "preset": preset,
      "stage": "joint",
      "seed": 0,
      "steps": 400 if tiny else 20_000,
      "batch_size": 4 if tiny else 64,
      # The batch is cut into this many parts whose gradients are averaged.
      "accumulate": 1,
      # An update whose gradient's norm is this many times the usual one is skipped, and reported.
      "spike": 20.0,
      # frames = 1 + 4k of the input video; targets = supervising views a clip.
      "clip": {
        "frames": _FRAMES.get(preset, 49),
        "height": 64 if tiny else 512,
        "width": 64 if tiny else 512,
        "targets": 4 if tiny else 8,
      },
      "model": _model(preset),
      # Patterns of parameter paths to train instead of the stage's own; empty for the stage's own.
      "trainable": (),
      # Type of the kernels and embeddings that are not trained, "float32" or "bfloat16".
      "frozen_dtype": "float32",
      "loss": {
        "weights": {
          "flow_matching": 1.0,
          # The paper's is 1. On pictures of 64 pixels LPIPS says little about where things are, and
          # with a tenth of the weight beside it colours take several times as long to come right.
          "photometric": 10.0 if tiny else 1.0,
          "perceptual": 0.5,
          "geometric": 0.5,
          "motion": 2.0,
          "moments": 0.01,
          "depth": 1.0,
        },
        "smoothness": 0.1,
        # The minimum of the paper's form over all points is near no motion; `tiny` does not train
        # for long enough to leave it.
        "motion_form": "huber" if tiny else "paper",
        "motion_times": _FRAMES["tiny"] if tiny else 2,
        "lpips": "alex" if tiny else "vgg",
        "condition_dropout": 0.1,
        "estimated_share": 0.5,
        "estimated_highest": 0.5,
        "render_gradient": 0.1,
      },
      "optimizer": {
        "peak": 1e-3 if tiny else 1e-4,
        "warmup": 20 if tiny else 1000,
        "betas": (0.9, 0.95),
        "weight_decay": 1e-4,
        "clip": 1.0,
        # (pattern of parameter paths, factor on the learning rate)
        "groups": () if tiny else (("^transformer/(?!camera/)", 0.1),),
      },
      "average_decay": 0.98 if tiny else 0.9999,
      # Where each part of the parameters starts: "" random, "shipped" with the package, the folder
      # of an earlier run, or one of published weights that `d4s_jax.convert` made.
      "init": {
        "autoencoder": "shipped" if tiny else "",
        "text_encoder": "",
        "transformer": "",
        "adapter": "",
        "ldrm": "",
        **({"image_encoder": ""} if "image_encoder" in PRESETS[preset]["backbone"] else {}),
      },
      "data": {
        # Names of data.source, such as "synthetic,shards:DIR", and how many clips are taken of
        # each, relatively; () for all alike.
        **{"source": "synthetic", "weights": ()},
        # Clips an epoch has of what is made up, and a folder where they are kept, "" for none.
        **{"clips": 100_000, "cache": "", "workers": 0},
        # Shapes "FRAMESxHEIGHTxWIDTH" of batches; () for that of `clip` alone.
        "buckets": (),
        # Of shards and datasets: units that the median depth of a clip is scaled to, 0 for metres;
        # what is random, see data.sampling. Share of clips that may be unreadable.
        "distance": 0.0,
        "augment": {"stride": 0, "reverse": 0.5, "crop": True},
        "corrupt": 0.01,
      },
      # Folder of embeddings of prompts, which runs may share; "" embeds them in every step.
      "text_cache": "",
      # Batches of held-out clips, each as large as a part of the batch, and the steps between two
      # looks at them, each of which makes these clips anew.
      "heldout": {"batches": 2 if tiny else 1, "every": 100 if tiny else 1000},
      "checkpoint": {
        # Steps between two; minutes after which one is made at the latest, 0 for never.
        **{"every": 50 if tiny else 1000, "minutes": 0.0},
        # How many of the newest are kept; those whose step keep_every divides, and the first in so
        # many hours, are kept for ever, 0 for none.
        **{"keep": 3, "keep_every": 0, "keep_hours": 0.0},
        # Folder of emergency copies on a disk of the host, "" for none, and the steps between two.
        **{"local": "", "local_every": 10},
      },
      # How devices are shared out, `training.sharding.make_mesh`; what is left copies the model.
      "mesh": {"fsdp": 1, "ring": 1, "ulysses": 1, "tensor": 1},
      # How `generate` samples: N, gamma(t), gamma_max; diffusion.solvers. More steps and stronger
      # guidance make what `tiny` generates worse.
      "sampling": {
        **{"steps": 8 if tiny else 30, "scale": 3.0 if tiny else 7.5},
        **{"guidance": "cosine", "solver": "ddim"},
        "negative_prompt": "",
        # Steps that reuse what the blocks added in an earlier one: diffusion.reuse.
        "reuse": (),
      },
    }
  )


def _model(preset: str) -> dict[str, Any]:
  model = PRESETS[preset]
  return {
    "dtype": "auto",
    "encoding": "plucker",
    # tokenizer: the folder of a published one, which a run copies; "" reads prompts byte by byte.
    "backbone": {
      "family": "wan",
      "tokenizer": "",
      "schedule": {"shift": 5.0},
      **model["backbone"],
    },
    # rank > 0: low-rank adapters of these layers (models/adapter.py) are trained in place of the
    # transformer's own weights; by default of attention and feed-forward network in every block.
    "lora": {
      "rank": 0,
      "scale": 1.0,
      "targets": ("^blocks/.*attention/(query|key|value|out)$", "^blocks/mlp_(in|out)$"),
    },
    "ldrm": {
      **model["ldrm"],
      "canonical": "source",
      "degree": 0,
      # The embedded scenes are small: at 10 m their cameras would hardly seem to move.
      "scene_scale": 2.0 if preset == "tiny" else 10.0,
      "initial_depth": 4.0,
      "opacity_bias": -2.0,
      "random_share": 0.25,
    },
  }
