#!/usr/bin/env bash
# Trains on this machine, on all its devices, and starts again after a crash.
#
#   launch/local.sh [--restarts=N] [--backoff=SECONDS] [--dry-run] -- TRAINING OPTIONS
#
# --restarts=10  tries in a row without a new checkpoint before it gives up
# --backoff=10   seconds before the first of them; each further wait is twice as long, at most 60 times this
# --dry-run      prints what it would do, and does nothing
#
# Example:
#   launch/local.sh -- --config=configs/joint.py --workdir=runs/joint
#
# On one of two machines that nothing else joins, and with JAX_PROCESS_ID=1 on the other:
#   JAX_COORDINATOR_ADDRESS=first:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0 launch/local.sh -- \
#     --distributed --config=configs/joint.py --workdir=/shared/joint
#
# SIGTERM and Ctrl-C save and stop; the same command goes on from there.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "" "" "" "$@"
supervise python -m d4s_jax.train "${words[@]}"
