"""The paper's ablations and baselines in small: two cores, hours. The shipped weights are one row.

python -m d4s_jax.evaluate --config=configs/evaluate.py --sweep=configs/sweeps/tiny.py

Numbers of the paper are its own: table 4 and the supplement's table 3.
"""

from ml_collections import ConfigDict

# Steps of each stage, clips in an epoch, and a folder of clips that all rows share.
_STEPS = 300
_COMMON = (
  f"steps={_STEPS}",
  f"heldout.every={_STEPS}",
  "data.clips=16000",
  "data.cache=runs/clips",
)


def _stages(*overrides: str):
  """Reconstruction from nothing: on exact depth and motion, then on drawn views."""
  files = ("configs/geometry.py", "configs/dynamic.py")
  return tuple((file, (*_COMMON, *overrides)) for file in files)


def _joint(*overrides: str):
  """On from the shipped weights, as configs/joint.py."""
  return (("configs/joint.py", (*_COMMON, *overrides)),)


ROWS = {
  "shipped": dict(run="shipped", scenes="reconstructed"),
  "two_stage": dict(
    **dict(run="shipped", scenes="two_stage"),
    paper=dict(
      fvd=245.3, kvd=3.42, subject_consistency_segmented=82, background_consistency_segmented=83
    ),
    told="generate a video, then 4DGT",
  ),
  "joint": dict(
    **dict(stages=_joint(), scenes="generated"),
    paper=dict(
      fvd=210.2, kvd=2.32, subject_consistency_segmented=88, background_consistency_segmented=90
    ),
  ),
  "frozen": dict(
    stages=_joint("trainable=('^transformer/','^text_encoder/')"),
    scenes="generated",
    paper=dict(
      fvd=231.5, kvd=3.10, subject_consistency_segmented=85, background_consistency_segmented=86
    ),
  ),
  "guidance_constant": dict(
    run="shipped", scenes="generated", sampling=dict(guidance="constant", scale=3.0)
  ),
  "guidance_none": dict(
    run="shipped", scenes="generated", sampling=dict(guidance="constant", scale=1.0)
  ),
  "guidance_cosine": dict(run="shipped", scenes="generated"),
  "default": dict(stages=_stages()),
  "flat_pose": dict(
    stages=_stages("model.encoding=flat"), told="flat poses: 5 to 10% more relative pose error"
  ),
  "no_geometric_loss": dict(
    stages=_stages("loss.weights.geometric=0", "loss.weights.depth=0"),
    told="without the geometric loss: visibly worse 3D consistency",
  ),
  "no_motion_loss": dict(
    stages=_stages("loss.weights.motion=0"),
    paper=dict(fvd=351.382, kvd=3.351, qa_quality=2.145),
    told="4821.6 average matches (MASt3R)",
  ),
  "quarter_of_the_gaussians": dict(stages=_stages("model.ldrm.gaussians=2304")),
  "all_gaussians": dict(
    stages=_stages("model.ldrm.gaussians=9216"),
    told="100K for 50K Gaussians: 75% more memory, 60% more time, little detail",
  ),
}
METRICS = (
  "fvd,kvd,psnr,lpips,view_psnr,view_lpips,depth_abs_rel,motion_ratio,matches_xfeat,pose_success,"
  "rpe_translation,rpe_rotation,subject_consistency_segmented,background_consistency_segmented,"
  "qa_quality,seconds,memory,latency"
)


def get_config(names: str = ""):
  """The rows with these names, with commas; all of them without."""
  chosen = names.split(",") if names else list(ROWS)
  config = ConfigDict(dict(count=16, workdir="runs/sweep-tiny", metrics=METRICS))
  with config.unlocked():
    config.rows = {name: ROWS[name] for name in chosen}
  return config
