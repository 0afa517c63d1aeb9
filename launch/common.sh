# shellcheck shell=bash disable=SC2034
# What the launchers share, to be sourced: options, the one line that trains, and restarts.

set -euo pipefail

# Of --NAME=VALUE before --; and the words after it, which are the trainer's.
declare -A option=([restarts]=10 [backoff]=10)
words=()
workdir=""

# Ends of a trainer (d4s_jax/errors.py) and of a shell that a second try would not change.
final=" 0 1 2 126 127 "
# What a script ends with that gave up, so that the one that started it does as well.
gave_up=79
# Process of the trainer, and the signal that came, if one did.
child="" told=""

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

say() {
  printf 'launch: %s\n' "$*" >&2
}

# Prints words so that a shell reads them as they are.
show() {
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}

# Does it, or with --dry-run prints it.
act() {
  if [[ -n ${option[dry-run]:-} ]]; then show "$@"; else "$@"; fi
}

# parse "NEEDED" "OPTIONAL" "SWITCHES" "$@" reads the command line. --help prints the comment at the
# head of the script.
parse() {
  local needed=$1 optional="$2 restarts backoff" switches="$3 dry-run" name
  shift 3
  while (($#)) && [[ $1 != -- ]]; do
    name=${1%%=*} name=${name#--}
    if [[ $1 == --help ]]; then
      sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
      exit 0
    elif [[ $1 == --?* && " $switches " == *" $name "* && $1 != *=* ]]; then
      option[$name]=yes
    elif [[ $1 == --?*=?* && " $needed $optional " == *" $name "* ]]; then
      option[$name]=${1#*=}
    else
      fail "Unknown option or missing value: '$1'; --help shows the options, and those of the training come after --."
    fi
    shift
  done
  for name in $needed; do
    [[ -n ${option[$name]:-} ]] || fail "--$name=... is missing; --help shows an example."
  done
  for name in restarts backoff; do number "$name"; done
  (($#)) && shift
  words=("$@")
  local config=""
  for name; do
    case $name in
      --config=?*) config=${name#*=} ;;
      --workdir=?*) workdir=${name#*=} ;;
    esac
  done
  [[ -n $config ]] || fail "--config=... is missing after --; --help shows an example."
  [[ -n $workdir ]] || fail "--workdir=... is missing after --; --help shows an example."
}

# Refuses an option that is not a whole number; in base 10, whatever zeros it begins with.
number() {
  [[ ${option[$1]} =~ ^[0-9]{1,6}$ ]] \
    || fail "--$1=${option[$1]}; expected a whole number of at most six digits."
  option[$1]=$((10#${option[$1]}))
}

# Refuses a name that is no label of DNS; clouds and clusters make names of machines from it.
label() {
  [[ ${option[$1]} =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] \
    || fail "--$1=${option[$1]}; expected at most 40 of a-z, 0-9 and -, the first a letter."
}

# What changes when the run has got on: the step of its newest whole checkpoint.
progress() {
  # Not on the accelerator: the trainer wants all of it.
  JAX_PLATFORMS=cpu python -c "
import sys
from d4s_jax.training import checkpoint, places
print(checkpoint.latest_step(places.place(sys.argv[1])))" "$workdir" 2> /dev/null || true
}

# How a signal reaches the trainer.
forward() {
  kill -s "$1" "$child" 2> /dev/null || true
}

# supervise COMMAND... runs it, and again after a crash or a preemption, until it ends in one of
# `final`, until --restarts tries in a row made no progress, or until this script is told to stop.
# A first wait of --backoff seconds doubles with each try without progress, up to 60 times as long.
supervise() {
  local before=unknown after status=143 tries=0 pause=${option[backoff]} longest=$((60 * option[backoff]))
  if [[ -n ${option[dry-run]:-} ]]; then
    show "$@"
    printf '# again after a crash or a preemption, at most %s times without progress, after %s to %s s\n' \
      "${option[restarts]}" "$pause" "$longest"
    return
  fi
  trap 'told=TERM; forward TERM' TERM
  trap 'told=INT; forward INT' INT
  while [[ -z $told ]]; do
    status=0
    attend "$@" || status=$?
    [[ -z $told && $final != *" $status "* ]] || break
    after=$(progress)
    [[ -z $told ]] || break
    if [[ $after != "$before" ]]; then tries=0 pause=${option[backoff]} before=$after; fi
    if ((tries == option[restarts])); then
      say "ended with status $status; gave up after $tries restarts without progress"
      status=$gave_up
      break
    fi
    tries=$((tries + 1))
    say "ended with status $status; restart $tries of at most ${option[restarts]} without progress in $pause s"
    attend sleep "$pause" || true
    pause=$((pause * 2 < longest ? pause * 2 : longest))
  done
  return "$status"
}

# Runs a command in a process group of its own, so that Ctrl-C reaches it once, by `forward`;
# returns its status however many signals come in between.
attend() {
  set -m
  "$@" < /dev/null &
  child=$!
  set +m
  # A wait that a signal ended says nothing of the child.
  while kill -0 "$child" 2> /dev/null; do
    wait "$child" || true
  done
  wait "$child"
}
