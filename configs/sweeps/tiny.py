"""The paper's ablations and baselines in small.

python -m d4s_jax.evaluate --config=configs/evaluate.py --sweep=configs/sweeps/tiny.py

15 of the rows took 100 minutes on two shared cores, 70 of them training, two rows at a time;
progressive and direct train for 18 minutes of a core more. Rows of a kind are trained for as many
steps (progressive and direct for about as long), far too few to be good: they are to be compared
with each other. Numbers of the paper are its own: table 4 and the supplement's table 3.
"""

from ml_collections import ConfigDict

# Steps from nothing, and on from the shipped weights.
_STEPS, _JOINT_STEPS = 80, 40
# The same, for a model that moves to forget that.
_LONGER_STEPS = 150
# Steps of the stages of the paper, 2 : 2 : 1 as its 40K, 40K and 20K, and of the last stage alone.
# A step takes 0.35, 1.20 and 1.26 s of a core: together 566 s, and 505 s for the last alone.
_STAGES, _DIRECT_STEPS = (260, 260, 130), 400
# Clips in an epoch, and a folder of clips that all rows share.
_COMMON = ("data.clips=16000", "data.cache=runs/clips")


def _stage(config: str, steps: int, *overrides: str):
  return (config, (f"steps={steps}", f"heldout.every={steps}", *_COMMON, *overrides))


def _nothing(*overrides: str, steps: int = _STEPS):
  """Reconstruction from nothing, on drawn views."""
  return (_stage("configs/dynamic.py", steps, *overrides),)


def _joint(*overrides: str, steps: int = _JOINT_STEPS):
  """On from the shipped weights, as configs/joint.py."""
  return (_stage("configs/joint.py", steps, *overrides),)


# Fitting takes half a minute a scene.
_FITTED = 4

ROWS = {
  "shipped": dict(run="shipped"),
  "two_stage": dict(
    **dict(run="shipped", scenes="two_stage", count=_FITTED),
    paper=dict(
      fvd=245.3, kvd=3.42, subject_consistency_segmented=82, background_consistency_segmented=83
    ),
    told="generate a video, then 4DGT; here, then fit Gaussians from random points",
  ),
  "from_random": dict(run="shipped", scenes="from_random", count=_FITTED),
  "from_points": dict(run="shipped", scenes="from_points", count=_FITTED),
  "refined": dict(
    **dict(run="shipped", scenes="refined", count=_FITTED),
    told="as a start of per-scene optimisation better and faster than random and SfM points",
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
  "default": dict(stages=_nothing()),
  "flat_pose": dict(
    stages=_nothing("model.encoding=flat"), told="flat poses: 5 to 10% more relative pose error"
  ),
  "no_geometric_loss": dict(
    stages=_nothing("loss.weights.geometric=0", "loss.weights.depth=0"),
    told="without the geometric loss: visibly worse 3D consistency",
  ),
  "no_tv": dict(
    stages=_nothing("loss.smoothness=0"),
    told="total variation smooths surfaces; the covariance term works without it",
  ),
  "no_motion_loss": dict(
    stages=_nothing("loss.weights.motion=0"),
    paper=dict(fvd=351.382, kvd=3.351, qa_quality=2.145),
    told="4821.6 average matches (MASt3R)",
  ),
  # From nothing, nothing moves after so few steps, and on from the shipped weights things do.
  "longer": dict(stages=_joint(steps=_LONGER_STEPS)),
  "longer_no_motion_loss": dict(stages=_joint("loss.weights.motion=0", steps=_LONGER_STEPS)),
  "quarter_of_the_gaussians": dict(stages=_nothing("model.ldrm.gaussians=2304")),
  "all_gaussians": dict(
    stages=_nothing("model.ldrm.gaussians=9216"),
    told="100K for 50K Gaussians: 75% more memory, 60% more time, little detail",
  ),
  "progressive": dict(
    stages=(
      # A map of 32 pixels a side has no more cells.
      _stage("configs/static.py:tiny,32", _STAGES[0], "model.ldrm.gaussians=2304"),
      _stage("configs/static.py:tiny,64", _STAGES[1]),
      _stage("configs/dynamic.py", _STAGES[2]),
    )
  ),
  "direct": dict(
    stages=_nothing(steps=_DIRECT_STEPS),
    told="without the static stages nothing is initialised; 21 days for the quality of 7",
  ),
}
METRICS = (
  "fvd,kvd,psnr,lpips,view_psnr,view_lpips,depth_abs_rel,motion_ratio,matches_xfeat,"
  "matches_plug_in,pose_success,rpe_translation,rpe_rotation,subject_consistency_segmented,"
  "background_consistency_segmented,qa_quality,seconds,memory_added,latency,fit_psnr_0,fit_psnr_30,"
  "fit_psnr_100,fit_psnr_300,fit_seconds_0,fit_seconds_30,fit_seconds_100,fit_seconds_300"
)


def get_config(names: str = ""):
  """The rows with these names, with commas; all of them without."""
  chosen = names.split(",") if names else list(ROWS)
  unknown = [name for name in chosen if name not in ROWS]
  if unknown:
    raise ValueError(f"Unknown rows {unknown}; expected some of {', '.join(ROWS)}.")
  config = ConfigDict(dict(count=8, workdir="runs/sweep-tiny", metrics=METRICS))
  with config.unlocked():
    # As they are written, not by name.
    config.rows = ConfigDict({name: ROWS[name] for name in chosen}, sort_keys=False)
  return config
