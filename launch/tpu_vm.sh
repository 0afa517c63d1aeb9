#!/usr/bin/env bash
# Trains on Cloud TPU VMs: asks for them as a queued resource, waits, trains on all their hosts in a
# container, asks again when they are taken away, and gives them back at the end.
#
#   launch/tpu_vm.sh --name=NAME --zone=ZONE --type=TYPE --image=IMAGE [OPTIONS] -- TRAINING OPTIONS
#
# --name=joint            of the queued resource; one that is there already is used
# --zone=us-east5-a       where
# --type=v5p-128          accelerator type of one slice, as gcloud calls it
# --image=HOST/REPO/NAME  made by launch/Dockerfile with ACCELERATOR=tpu, where the TPU VMs can read it
# --project=PROJECT       instead of gcloud's own
# --slices=1              how many slices
# --spot                  machines that may be taken away, for less
# --nfs=10.0.0.2:/share   is mounted at /runs on every host, for --workdir=/runs/...
# --version=v2-alpha-tpuv5    software of the machines; they need Docker
# --keep                  leaves the machines (and their bill) at the end
# --restarts=10           tries in a row that did not train for longer than the longest wait
# --backoff=10            seconds before the first of them, and between two looks at a queue; each further wait
#                         is twice as long, at most 60 times this
# --dry-run               prints what it would do, and does nothing
#
# Example:
#   launch/tpu_vm.sh --name=joint --zone=us-east5-a --type=v5p-128 --spot --nfs=10.0.0.2:/share \
#     --image=us-east5-docker.pkg.dev/PROJECT/REPO/d4s_jax -- \
#     --config=configs/joint.py:wan1.3b --workdir=/runs/joint
#
# It has to run as long as the training; start it again after an accident, and it finds the machines by their
# name. SIGTERM and Ctrl-C save, stop and give the machines back.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
option[slices]=1
option[version]=v2-alpha-tpuv5
parse "name zone type image" "project slices nfs version" "spot keep" "$@"
label name
number slices

# Refused, by gcloud or by the training: 1 is what gcloud ends with for anything else, too.
refused=78 unreachable=69
final=" 0 $refused $gave_up "
temporary=$(mktemp -d)

place=("--zone=${option[zone]}" ${option[project]:+"--project=${option[project]}"} --quiet)
nodes=("--node-id=${option[name]}")
if ((option[slices] > 1)); then nodes=("--node-count=${option[slices]}" "--node-prefix=${option[name]}"); fi

resource() {
  local verb=$1
  shift
  act gcloud compute tpus queued-resources "$verb" "${option[name]}" "${place[@]}" "$@"
}

# A command of gcloud's about the resource. Where it fails: `refused`, if no second try would help.
manage() {
  local status=0
  resource "$@" 2> "$temporary/said" || status=$?
  cat "$temporary/said" >&2
  ((status)) || return 0
  if ((status == 2)) || grep -qE 'INVALID_ARGUMENT|PERMISSION_DENIED|UNAUTHENTICATED|NOT_FOUND|active account' "$temporary/said"; then
    return $refused
  fi
  return $unreachable
}

create() {
  manage create "--accelerator-type=${option[type]}" "--runtime-version=${option[version]}" "${nodes[@]}" ${option[spot]:+--spot}
}

delete() {
  manage delete --force
}

# On every host of every slice.
remote() {
  resource ssh --node=all --worker=all "--command=$1"
}

# The state of the resource.
look() {
  manage describe '--format=value(state.state)' 2> /dev/null
}

# Returns when there are machines; else what `manage` returns.
await() {
  local state status said=""
  while true; do
    status=0
    state=$(look) || status=$?
    if ((status)); then
      if ! grep -q NOT_FOUND "$temporary/said"; then
        cat "$temporary/said" >&2
        return "$status"
      fi
      say "asking for ${option[slices]} x ${option[type]} in ${option[zone]}"
      create || return
    elif [[ $state == ACTIVE ]]; then
      return
    elif [[ $state == SUSPENDED || $state == FAILED ]]; then
      say "${option[name]} is $state; it is given back, to be asked for again"
      # What gcloud knows of the reason.
      manage describe '--format=value(state)' || true
      delete || return
      return $unreachable
    elif [[ $state != "$said" ]]; then
      say "${option[name]} is ${state:-in no state}"
      said=$state
    fi
    sleep "${option[backoff]}"
  done
}

# One training, from the request for machines to its end.
train() {
  local status=0 begin
  await || return
  begin=$SECONDS
  remote "$container" || status=$?
  if ((SECONDS - begin >= 60 * option[backoff])); then date >> "$temporary/trained"; fi
  # What gcloud itself could not do. Of machines that have gone, the next look tells.
  if ((status == 1 || status == 2)); then status=$unreachable; fi
  # It gave up for good, unless it waited for others that have gone.
  if ((status == gave_up)) && [[ $(look) != ACTIVE ]]; then status=$unreachable; fi
  return "$status"
}

# The container looks after its own crashes, and knows checkpoints; this script is about machines.
progress() {
  cat "$temporary/trained" 2> /dev/null || true
}

forward() {
  # Where there are no machines yet, all there is to end is the waiting for them.
  remote "sudo docker stop --time=300 d4s_jax" > /dev/null 2>&1 || kill -s TERM -- "-$child" 2> /dev/null || true
}

finish() {
  if [[ -n ${option[keep]:-} ]]; then
    say "the machines are left; gcloud compute tpus queued-resources delete ${option[name]} ${place[*]} --force"
  elif ! delete > /dev/null 2>&1 && ! grep -q NOT_FOUND "$temporary/said"; then
    say "the machines could not be given back, and cost on: $(cat "$temporary/said")"
  fi
  rm -rf "$temporary"
}

mount=()
if [[ -n ${option[nfs]:-} ]]; then
  [[ ${option[nfs]} == ?*:/* ]] || fail "--nfs=${option[nfs]}; expected ADDRESS:/SHARE."
  mount=("--mount=type=volume,dst=/runs,volume-driver=local,volume-opt=type=nfs,volume-opt=o=addr=${option[nfs]%%:*},volume-opt=device=:${option[nfs]#*:}")
fi
# The first line ends one that a lost connection left; the second is for images of Google's registry.
container="sudo docker stop --time=300 d4s_jax > /dev/null 2>&1; sudo docker rm --force d4s_jax > /dev/null 2>&1
sudo gcloud auth configure-docker $(show "${option[image]%%/*}") --quiet > /dev/null 2>&1
$(show sudo docker run --rm --pull=always --name=d4s_jax --privileged --network=host --ipc=host \
  --volume=d4s_jax:/cache --env=XDG_CACHE_HOME=/cache \
  "${mount[@]}" "${option[image]}" launch/local.sh "--restarts=${option[restarts]}" "--backoff=${option[backoff]}" -- --distributed "${words[@]}")
status=\$?
if [ \$status = 1 ]; then exit $refused; fi
exit \$status"

if [[ -n ${option[dry-run]:-} ]]; then
  create
  remote "$container"
  printf '# again, with a new resource where this one is SUSPENDED or FAILED, at most %s times without progress\n' "${option[restarts]}"
  if [[ -z ${option[keep]:-} ]]; then delete; fi
  rm -rf "$temporary"
  exit
fi
trap finish EXIT
supervise train
