#!/usr/bin/env bash
# Trains on the nodes of a Slurm job, one process on each GPU.
#
#   sbatch SLURM OPTIONS launch/slurm.sh [--restarts=N] [--backoff=SECONDS] [--dry-run] -- TRAINING OPTIONS
#
# --restarts=10  tries in a row without a new checkpoint before it gives up
# --backoff=10   seconds before the first of them; each further wait is twice as long, at most 60 times this
# --dry-run      prints what it would do, and does nothing; also without sbatch
#
# Example, from the root of the repository, 4 nodes of 8 GPUs:
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 --time=12:00:00 launch/slurm.sh -- \
#     --config=configs/joint.py:wan1.3b --workdir=/shared/runs/joint
#
# A crash starts the training again in the same job. Where Slurm takes the nodes away, or its time is
# up, the training saves, and the job goes back into the queue.

#SBATCH --job-name=d4s_jax
#SBATCH --requeue
#SBATCH --open-mode=append
# Five minutes before the time limit, to the processes that train, not to this script.
#SBATCH --signal=TERM@300

# Slurm runs a copy of this file.
here=$(dirname "${BASH_SOURCE[0]}")
[[ -e $here/common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/launch
if [[ ! -e $here/common.sh ]]; then
  echo "error: No $here/common.sh; give sbatch from the root of the repository." >&2
  exit 1
fi
# shellcheck source=common.sh
source "$here/common.sh"
parse "" "" "" "$@"

if [[ -n ${SLURM_JOB_ID:-} ]]; then
  # JAX gives each process of a node the GPU of its number there.
  processes=$((${SLURM_NTASKS:-$SLURM_JOB_NUM_NODES} / SLURM_JOB_NUM_NODES))
  [[ ${SLURM_GPUS_ON_NODE:-$processes} == "$processes" ]] \
    || fail "$processes processes on a node with $SLURM_GPUS_ON_NODE GPUs; expected one each: --ntasks-per-node=$SLURM_GPUS_ON_NODE."
elif [[ -z ${option[dry-run]:-} ]]; then
  fail "This is no Slurm job; submit it with sbatch, as --help shows."
fi

# The training was told to stop (d4s_jax/errors.py): it saved, or had nothing to save yet.
stopped=" 75 130 "
final+=$stopped
# Slurm itself tells the processes.
# shellcheck disable=SC2329
forward() { :; }

status=0
# One that saved before the others must not end them.
supervise srun --label --kill-on-bad-exit=0 python -m d4s_jax.train --distributed "${words[@]}" || status=$?
# Slurm told this script as well if it has decided already: to requeue the job, or to cancel it.
if [[ $stopped == *" $status "* && -z $told ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
