#!/usr/bin/env bash
# Trains on GKE, or on another Kubernetes with JobSet, one pod on each host.
#
#   launch/jobset.sh --name=NAME --image=IMAGE --accelerator=TYPE --chips=N [OPTIONS] -- TRAINING OPTIONS
#
# --name=joint                  of the JobSet
# --image=HOST/REPO/NAME        made by launch/Dockerfile
# --accelerator=tpu-v5p-slice   as GKE labels its nodes; also nvidia-h100-80gb, ...
# --chips=4                     TPU chips or GPUs of one host
# --topology=4x4x4              of a TPU slice, or
# --hosts=2                     how many hosts with GPUs
# --slices=1                    how many TPU slices
# --spot                        nodes that may be taken away, for less
# --claim=NAME                  a volume claim that all hosts may write; it is mounted at /runs, for --workdir=/runs/...
# --restarts=10                 tries in a row without a new checkpoint before a pod gives up; so often the whole set starts anew
# --backoff=10                  seconds before the first of them; each further wait is twice as long, at most 60 times this
# --dry-run                     prints what it would do, and does nothing
#
# Example:
#   launch/jobset.sh --name=joint --image=us-docker.pkg.dev/PROJECT/REPO/d4s_jax --accelerator=tpu-v5p-slice \
#     --topology=4x4x4 --chips=4 --spot --claim=runs -- --config=configs/joint.py:wan1.3b --workdir=/runs/joint
#
# kubectl says where it goes. To stop: kubectl delete jobset NAME, which lets the pods save; the same command
# starts it again from there.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
option[slices]=1
parse "name image accelerator chips" "topology hosts slices claim" "spot" "$@"
label name
for name in chips slices ${option[hosts]:+hosts}; do
  number "$name"
  ((option[$name])) || fail "--$name=0; expected at least 1."
done

for word in "${option[@]}" "${words[@]}"; do
  [[ $word != *[[:cntrl:]]* ]] || fail "$(show "$word") has a control character, such as the end of a line."
done

# Words as JSON strings with commas between.
json() {
  local word separator=""
  for word; do
    word=${word//\\/\\\\}
    printf '%s"%s"' "$separator" "${word//\"/\\\"}"
    separator=", "
  done
}

# object NAME VALUE ... as JSON, of strings.
object() {
  local separator=""
  while (($#)); do
    printf '%s%s: %s' "$separator" "$(json "$1")" "$(json "$2")"
    separator=", "
    shift 2
  done
}

case ${option[accelerator]} in
  tpu*)
    [[ ${option[topology]:-} =~ ^[0-9]+x[0-9]+(x[0-9]+)?$ ]] || fail "--topology=${option[topology]:-}; expected that of a slice, such as 4x4x4."
    [[ -z ${option[hosts]:-} ]] || fail "--hosts is for GPUs; those of a slice follow from --topology and --chips."
    chips=$((${option[topology]//x/ * }))
    ((chips % option[chips] == 0)) || fail "--chips=${option[chips]}; expected a divisor of the $chips chips of ${option[topology]}."
    hosts=$((chips / option[chips])) resource=google.com/tpu
    selector=(cloud.google.com/gke-tpu-accelerator "${option[accelerator]}" cloud.google.com/gke-tpu-topology "${option[topology]}")
    # A slice is a node pool, for one job. GKE tells its pods of each other, and jax.distributed asks GKE.
    annotations=(alpha.jobset.sigs.k8s.io/exclusive-topology cloud.google.com/gke-nodepool)
    environment=""
    ;;
  *)
    [[ -n ${option[hosts]:-} ]] || fail "--hosts=... is missing; --help shows the options."
    [[ -z ${option[topology]:-} && ${option[slices]} == 1 ]] || fail "--topology and --slices are for TPUs, whose types begin with tpu."
    hosts=${option[hosts]} resource=nvidia.com/gpu
    selector=(cloud.google.com/gke-accelerator "${option[accelerator]}")
    annotations=()
    # The pods' names are known; asking Kubernetes for them would take a library and rights.
    environment="{$(object name JAX_COORDINATOR_ADDRESS value "${option[name]}-workers-0-0.${option[name]}:1234")}, {$(object name JAX_NUM_PROCESSES value "$hosts")}, {\"name\": \"JAX_PROCESS_ID\", \"valueFrom\": {\"fieldRef\": {\"fieldPath\": \"metadata.annotations['batch.kubernetes.io/job-completion-index']\"}}}"
    ;;
esac
if [[ -n ${option[spot]:-} ]]; then selector+=(cloud.google.com/gke-spot true); fi
volumes='{"name": "memory", "emptyDir": {"medium": "Memory"}}' mounts='{"name": "memory", "mountPath": "/dev/shm"}'
if [[ -n ${option[claim]:-} ]]; then
  volumes+=", {\"name\": \"runs\", \"persistentVolumeClaim\": {\"claimName\": $(json "${option[claim]}")}}"
  mounts+=', {"name": "runs", "mountPath": "/runs"}'
fi

# Kubernetes takes $$ for $, and $(...) for a variable.
arguments=("--restarts=${option[restarts]}" "--backoff=${option[backoff]}" -- --distributed "${words[@]//\$/\$\$}")

declare -A value=(
  [NAME]=$(json "${option[name]}")
  [ANNOTATIONS]="{$(object "${annotations[@]}")}"
  [RESTARTS]=${option[restarts]}
  [SLICES]=${option[slices]}
  [HOSTS]=$hosts
  [SELECTOR]="{$(object "${selector[@]}")}"
  [RESOURCE]=$resource
  [IMAGE]=$(json "${option[image]}")
  [ARGUMENTS]="[$(json "${arguments[@]}")]"
  [ENVIRONMENT]="[$environment]"
  [LIMITS]="{\"$resource\": ${option[chips]}}"
  [MOUNTS]="[$mounts]"
  [VOLUMES]="[$volumes]"
)
# A value may itself hold ${...}; so each place is filled once, in one pass.
rest=$(< "$(dirname "${BASH_SOURCE[0]}")/jobset.yaml")
manifest=""
while [[ $rest =~ \$\{([A-Z]+)\} ]]; do
  manifest+="${rest%%"${BASH_REMATCH[0]}"*}${value[${BASH_REMATCH[1]}]}"
  rest=${rest#*"${BASH_REMATCH[0]}"}
done
manifest+=$rest

if [[ -n ${option[dry-run]:-} ]]; then
  printf '%s\n' "$manifest"
  printf '# would go to: '
fi
act kubectl create --filename=- <<< "$manifest"
