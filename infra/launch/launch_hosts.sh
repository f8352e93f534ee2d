#!/usr/bin/env bash
# One run over machines that you reach by ssh, without a scheduler.
#
#   infra/launch/launch_hosts.sh HOSTS yamls/full.yaml [key.path=value ...]
#
# HOSTS is a file with a line for each machine, [user@]name[:port] or [user@][IPv6 address]:port; the first one's name
# must be an address that the others reach. Each has this repository at the same place, with its .venv (or the image, see
# below), and sees the data and the save folder. Lines come out as "[name] ..."; runs/hosts/ has them too, and on each machine
# what its ranks print.
#
# When one machine's part ends, or a machine is silent for PEER_LIMIT_S seconds, all are stopped, and which one it was is
# said; a machine that no longer hears from here stops by itself after as long. Ctrl-C, TERM and USR1 save first, also
# when they are sent to the whole process group; a second Ctrl-C ends all at once.
# The same command resumes from the newest checkpoint. Exit status: 0 finished, 75 saved and stopped, 2 refused, 69 a machine
# is not fit (which one and why is said), else 1.
#
# Settings, by environment variables
#   REPOSITORY    where the repository is on each machine (here's path)
#   VENV          its Python environment (.venv)
#   IMAGE         run each part in this Docker image instead
#   MOUNTS        with IMAGE: the folders of data and checkpoints that it sees, at their own places, "/data /shared"; "none"
#                 where both are in S3
#   ENV_FILE      a file on each machine to read first, such as credentials, with `export` (none); with IMAGE, what begins
#                 with AWS_, S3_, WANDB_ or MLFLOW_ goes into the container, but for names of files and profiles
#   RANKS         processes on each machine (its GPUs)
#   MASTER_PORT   a port of the first machine that is free (29500)
#   PEER_LIMIT_S  15
#   REQUIRE_EFA, NCCL_DEBUG, PREFLIGHT, INSTANCE_TYPE, EFA_DEVICES
#                 go to each machine: infra/launch/fabric.py, infra/launch/preflight.py
#   SSH           ssh
set -euo pipefail

usage() { sed -n '2,30s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

case ${1:-} in -h | --help) usage && exit 0 ;; esac
[[ $# -ge 2 ]] || { usage >&2 && exit 2; }
hosts_file=$1 && shift
listed=$(python3 "$(dirname "${BASH_SOURCE[0]}")/hosts_file.py" "$hosts_file") || exit 2
targets=() ports=() hosts=()
while IFS=$'\t' read -r target port host; do
  targets+=("$target") ports+=("$port") hosts+=("$host")
done <<<"$listed"

if [[ -n ${IMAGE:-} && -z ${MOUNTS:-} ]]; then
  echo 'launch_hosts.sh: IMAGE needs MOUNTS: the folders of data and checkpoints on each machine, such as "/data /shared", or none' >&2
  exit 2
fi
repository=${REPOSITORY:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
limit=${PEER_LIMIT_S:-15}
logs=$repository/runs/hosts
read -ra ssh <<<"${SSH:-ssh}"
# Three questions without an answer, one after the other, end the connection.
ssh+=(-o BatchMode=yes -o ConnectTimeout="$limit" -o ServerAliveInterval=$(((limit + 2) / 3)) -o ServerAliveCountMax=3)
scratch=$(mktemp -d)
mkdir -p "$logs"

# What runs on machine number $1. Credentials come from the machine itself, never from this command line.
part() {
  local variables=(NODES="${#hosts[@]}" NODE_RANK="$1" MASTER_ADDR="${hosts[0]}" MASTER_PORT="${MASTER_PORT:-29500}"
    BEATS_ON_STDIN=1 PEER_LIMIT_S="$limit" LAUNCHED_FROM="$(hostname)" LOG_DIR="$logs" WATCH_SPOT="${WATCH_SPOT:-0}")
  local name
  for name in RANKS REQUIRE_EFA NCCL_DEBUG PREFLIGHT INSTANCE_TYPE EFA_DEVICES; do
    [[ -z ${!name:-} ]] || variables+=("$name=${!name}")
  done
  local command=(env "${variables[@]}" "${VENV:-.venv}/bin/python" infra/launch/node.py "${@:2}")
  printf 'cd %q && ' "$repository"
  [[ -z ${ENV_FILE:-} ]] || printf '. %q && ' "$ENV_FILE"
  # Docker would make missing folders as root, and the image's user could not write there.
  [[ -z ${IMAGE:-} ]] || printf 'mkdir -p %q %q && ' "$repository/runs" "$logs"
  printf 'exec'
  if [[ -n ${IMAGE:-} ]]; then
    printf ' %q' docker run --rm --interactive --gpus all --network host --ipc host --ulimit memlock=-1 \
      --volume "$repository/runs:/app/runs" --volume "$logs:$logs"
    [[ $MOUNTS == none ]] || for name in $MOUNTS; do printf ' %q' --volume "$name:$name"; done
    # shellcheck disable=SC2016 # the other machine's shell expands these: EFA's devices and its credentials, where it has some
    printf ' %s' '$(test ! -d /dev/infiniband || echo --device=/dev/infiniband)' \
      '$(env | sed -n "s/^\(\(AWS\|S3\|WANDB\|MLFLOW\)_[A-Z0-9_]*\)=.*/--env=\1/p" | grep -v "_FILE$\|_BUNDLE$\|_PROFILE$")'
    command=("${variables[@]/#/--env=}" "$IMAGE" python infra/launch/node.py "${@:2}")
  fi
  printf ' %q' "${command[@]}"
}

# A line every two seconds tells the other end that this one is alive; "save" asks it to save and end.
beats() {
  while [[ -e $scratch ]]; do
    if [[ -e $scratch/save ]]; then echo save; else echo beat; fi
    sleep 2
  done
}

declare -A name_of
for rank in "${!hosts[@]}"; do
  host=${hosts[$rank]} to=("${targets[$rank]}")
  [[ ${ports[$rank]} == - ]] || to=(-p "${ports[$rank]}" "${to[@]}")
  (
    trap '' INT TERM USR1 # sent to the group; what is here passes them on by "save", and has to live until all have ended
    status=0
    "${ssh[@]}" "${to[@]}" "$(part "$rank" "$@")" < <(beats) 2>&1 | sed -u "s/^/[$host] /" | tee -a "$logs/$host.log" ||
      status=${PIPESTATUS[0]}
    exit "$status"
  ) &
  name_of[$!]=$host
done

# shellcheck disable=SC2317,SC2329 # the traps below reach it
save() {
  touch "$scratch/save"
  echo "launch_hosts.sh: the ranks are told to save and end${1:-}" >&2
}
interrupted=''
trap save TERM USR1
trap '[[ -z $interrupted ]] || exit 130; interrupted=1; save "; press Ctrl-C again to end at once"' INT

# shellcheck disable=SC2317,SC2329 # the trap below reaches it
stop_all() { # without ssh the parts see the end of their input, and end
  rm -rf "$scratch"
  for pid in "${!name_of[@]}"; do pkill -KILL -P "$pid" 2>/dev/null || true; done
}
trap stop_all EXIT

# Wait for the parts. The first that fails decides; the others, which cannot continue without it, have as long as a silent
# machine to end by themselves.
result=0 deadline=''
while [[ ${#name_of[@]} -gt 0 ]]; do
  for pid in "${!name_of[@]}"; do
    kill -0 "$pid" 2>/dev/null && continue
    status=0
    wait "$pid" || status=$?
    name=${name_of[$pid]}
    unset "name_of[$pid]"
    [[ $status == 0 ]] && continue
    if [[ $status == 255 ]]; then
      echo "launch_hosts.sh: $name has not answered for $limit s, or cannot be reached; all machines are stopped" >&2
      status=1
    else
      echo "launch_hosts.sh: $name ended with status $status; the others are stopped" >&2
    fi
    [[ $result != 0 ]] || result=$status
    [[ -n $deadline ]] || deadline=$((SECONDS + limit))
  done
  [[ -z $deadline || $SECONDS -lt $deadline ]] || break
  sleep 0.5 || true # a signal to the group ends it
done
[[ $result == 0 || $result == 2 || $result == 69 || $result == 75 ]] || result=1
exit "$result"
