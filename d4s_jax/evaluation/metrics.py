"""The table of metrics: name -> what it is measured by, and what the paper reports for itself.

The paper's numbers are Diff4Splat's own, on 160 videos that are not public and by protocols that
are told in part; they stand in a column of their own and are not to be compared with.
"""

from d4s_jax.evaluation import families as of
from d4s_jax.evaluation import fit_curve, seen, timing
from d4s_jax.evaluation.distances import FRECHET, KERNEL, frechet, kernel
from d4s_jax.evaluation.metric import Metric

_NO_PATH = "its camera path was not found"
_NO_MOMENT = "it has no such moment"
_ONE_FRAME = "it has one frame, and it is the first"
# Stages of a scene, as `maker` names them.
STAGES = {
  "video": "video model",
  "encoder": "encoder",
  "scene": "reconstruction",
  "start": "start",
  "fit": "optimisation",
}


def _stage(name: str, key: str, unit: str) -> Metric:
  return Metric(timing.COST, f"{name} {key}", f"{name}, {unit}", "lower", 3)


METRICS: dict[str, Metric] = {
  "fvd": Metric(*(of.VIDEO, "features", "FVD", "lower", 1, frechet, 210.153), formula=FRECHET),
  "kvd": Metric(*(of.VIDEO, "features", "KVD", "lower", 3, kernel, 2.316), formula=KERNEL),
  "clip_score": Metric(seen.CLIP_SCORE, "score", "CLIP-Score", "higher", 2, None, 23.123),
  "clip_aesthetic": Metric(
    seen.CLIP_AESTHETIC, "score", "CLIP-Aesthetic", "higher", 3, None, 5.231
  ),
  "qa_quality": Metric(seen.QUALITY, "score", "QA-Quality, 0 to 5", "higher", 3, None, 2.813),
  "psnr": Metric(of.FRAMES, "psnr", "PSNR, dB", "higher"),
  "ssim": Metric(of.FRAMES, "ssim", "SSIM", "higher", 3),
  "lpips": Metric(of.FRAMES, "lpips", "LPIPS", "lower", 3),
  "later_psnr": Metric(
    *(of.FRAMES, "later_psnr", "PSNR after the first frame, dB", "higher"), absent=_ONE_FRAME
  ),
  "later_lpips": Metric(
    *(of.FRAMES, "later_lpips", "LPIPS after the first frame", "lower", 3), absent=_ONE_FRAME
  ),
  "view_psnr": Metric(of.VIEWS, "psnr", "novel views, PSNR, dB", "higher"),
  "view_ssim": Metric(of.VIEWS, "ssim", "novel views, SSIM", "higher", 3),
  "view_lpips": Metric(of.VIEWS, "lpips", "novel views, LPIPS", "lower", 3),
  "depth_abs_rel": Metric(of.DEPTH, "absolute_relative", "depth, AbsRel", "lower", 3),
  "depth_delta1": Metric(of.DEPTH, "delta1", "depth, delta1", "higher", 3),
  "motion_epe": Metric(of.MOTION, "end_point", "3D motion, end-point error, m", "lower", 3),
  "motion_ratio": Metric(
    of.MOTION, "over_none", "3D motion, error over that of no motion", "lower", 3
  ),
  "motion_drift": Metric(of.MOTION, "drift", "3D motion, drift of what stands, m", "lower", 3),
  "matches_xfeat": Metric(of.MATCHES_XFEAT, "matches", "average matches, XFeat", "higher", 1),
  "matches_sift": Metric(of.MATCHES_SIFT, "matches", "average matches, SIFT", "higher", 1),
  "matches_plug_in": Metric(of.MATCHES_PLUG_IN, "matches", "average matches, plug-in", "higher", 1),
  "subject_consistency": Metric(
    seen.SUBJECT, "whole", "subject consistency, no segmentation", "higher"
  ),
  "subject_consistency_segmented": Metric(
    *(seen.SUBJECT_SEGMENTED, "segmented", "subject consistency, segmented"),
    *("higher", 2, None, 88.32),
  ),
  "background_consistency": Metric(
    seen.BACKGROUND, "whole", "background consistency, no segmentation", "higher"
  ),
  "background_consistency_segmented": Metric(
    *(seen.BACKGROUND_SEGMENTED, "segmented", "background consistency, segmented"),
    *("higher", 2, None, 89.89),
  ),
  "cycle_psnr": Metric(of.CYCLE, "running", "cycle PSNR, time runs, dB", "higher", 2, None, 34.5),
  "cycle_psnr_frozen": Metric(
    of.CYCLE, "frozen", "cycle PSNR, time stands, dB", "higher", absent="videos can't stand still"
  ),
  "pose_success": Metric(of.POSES, "found", "camera path found, share", "higher", 3),
  "rpe_translation": Metric(
    of.POSES, "translation", "relative pose error, m", "lower", 4, None, 0.012, _NO_PATH
  ),
  "rpe_rotation": Metric(
    of.POSES, "rotation", "relative pose error, degrees", "lower", 3, None, 0.008, _NO_PATH
  ),
  "ate": Metric(of.POSES, "absolute", "absolute path error, m", "lower", 4, None, None, _NO_PATH),
  "seconds": Metric(timing.COST, "seconds", "a scene, s", "lower", 2, None, 30),
  **{f"seconds_{key}": _stage(name, "seconds", "s") for key, name in STAGES.items()},
  "memory": Metric(timing.COST, "gib", "most memory of the process, GiB", "lower"),
  "memory_added": Metric(
    timing.COST, "added", "memory above what was held before, GiB", "lower", 3
  ),
  **{
    f"memory_{key}": _stage(name, "added", "memory above what was held before, GiB")
    for key, name in STAGES.items()
  },
  "memory_device": Metric(
    *(timing.COST, "device", "most memory of the accelerator, GiB", "lower"),
    absent="CPUs have no memory of their own",
  ),
  "latency": Metric(timing.LATENCY, "milliseconds", "a view, ms", "lower", 2, None, 6.7),
  **{
    f"fit_psnr_{n}": Metric(
      *(timing.FIT, f"psnr {n}", f"other views after {n} steps of fitting, PSNR, dB", "higher"),
      absent=_NO_MOMENT,
    )
    for n in fit_curve.STEPS
  },
  **{
    f"fit_seconds_{n}": Metric(
      *(timing.FIT, f"seconds {n}", f"{n} steps of fitting take, s", "lower"), absent=_NO_MOMENT
    )
    for n in fit_curve.STEPS
  },
}
