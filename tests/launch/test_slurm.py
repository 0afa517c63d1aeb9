"""`launch/slurm.sh` within a job, with stand-ins for srun and scontrol."""

import shutil

import pytest

from d4s_jax import errors
from tests.launch.stand_ins import LAUNCH, ROOT, TRAINING, one_line, trainer

JOB = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "16", "SLURM_JOB_NUM_NODES": "2"}
SRUN = [*("--label", "--kill-on-bad-exit=0", "python", "-m", "d4s_jax.train"), "--distributed"]
# A step that ends with each of these in turn.
STEPS = "ends = {}; sys.exit(ends[sum(line.startswith(\"['srun'\") for line in before)])"


def test_one_process_for_each_gpu_trains(stand_ins):
  done = stand_ins.run("slurm.sh", "--", *TRAINING, **JOB, SLURM_GPUS_ON_NODE="8")
  assert done.returncode == 0
  assert stand_ins.calls("srun") == [[*SRUN, *TRAINING]]
  assert not stand_ins.calls("scontrol")


def test_a_job_that_does_not_say_how_many_has_one_process_a_node(stand_ins):
  job = {key: value for key, value in JOB.items() if key != "SLURM_NTASKS"}
  assert stand_ins.run("slurm.sh", "--", *TRAINING, **job, SLURM_GPUS_ON_NODE="1").returncode == 0
  assert stand_ins.calls("srun") == [[*SRUN, *TRAINING]]


def test_another_number_of_processes_than_gpus_is_refused(stand_ins):
  done = stand_ins.run("slurm.sh", "--", *TRAINING, **JOB, SLURM_GPUS_ON_NODE="4")
  assert "8 processes on a node with 4 GPUs; expected one each: --ntasks-per-node=4" in one_line(
    done
  )
  assert not stand_ins.calls("srun")


def test_outside_a_job_it_says_how_to_submit(stand_ins):
  assert "submit it with sbatch" in one_line(stand_ins.run("slurm.sh", "--", *TRAINING))


def test_a_crash_starts_the_step_again_in_the_same_job(stand_ins):
  stand_ins.add("srun", STEPS.format([134, 70, 0]))
  assert stand_ins.run("slurm.sh", "--", *TRAINING, **JOB).returncode == 0
  assert stand_ins.calls("srun") == 3 * [[*SRUN, *TRAINING]]
  assert [words for words in stand_ins.calls("sleep")] == [["10"], ["20"]]
  assert not stand_ins.calls("scontrol")


@pytest.mark.parametrize("status", [errors.STOPPED, errors.INTERRUPTED])
def test_a_stop_before_the_end_goes_back_into_the_queue(status, stand_ins):
  """Also one that came while it was still restoring."""
  stand_ins.add("srun", STEPS.format([status]))
  assert stand_ins.run("slurm.sh", "--", *TRAINING, **JOB).returncode == status
  assert len(stand_ins.calls("srun")) == 1
  assert stand_ins.calls("scontrol") == [["requeue", "17"]]


def test_what_slurm_itself_ends_is_left_to_slurm(stand_ins):
  """A cancelled job must not come back."""
  body = 'import time; time.sleep(60 if os.path.exists(place + "/none") else 1); sys.exit(75)'
  stand_ins.add("srun", body)
  process = stand_ins.start("slurm.sh", "--", *TRAINING, **JOB)
  stand_ins.wait_for("srun")
  status, _ = stand_ins.stop(process)
  # The step, which Slurm tells by itself, was left to end.
  assert status == 75
  assert not stand_ins.calls("scontrol")


def test_what_is_refused_is_neither_tried_again_nor_requeued(stand_ins):
  stand_ins.add("srun", STEPS.format([1]))
  assert stand_ins.run("slurm.sh", "--", *TRAINING, **JOB).returncode == 1
  assert len(stand_ins.calls("srun")) == 1 and not stand_ins.calls("scontrol")


def test_the_copy_that_slurm_makes_finds_the_rest(stand_ins, tmp_path):
  copy = shutil.copy(LAUNCH / "slurm.sh", tmp_path / "slurm_script")
  stand_ins.add("python", trainer(0))
  done = stand_ins.run(copy, "--", *TRAINING, **JOB, SLURM_SUBMIT_DIR=str(ROOT))
  assert done.returncode == 0 and len(stand_ins.calls("srun")) == 1
  done = stand_ins.run(copy, "--", *TRAINING, **JOB, SLURM_SUBMIT_DIR=str(tmp_path))
  assert "give sbatch from the root of the repository" in one_line(done)
