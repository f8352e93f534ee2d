#!/usr/bin/env bash
# The image's commands: convert, train, evaluate, audit and doctor; anything else is run as it is given.
#
#   docker run IMAGE convert --source DIR --out DIR_OR_S3
#   docker run IMAGE train yamls/full.yaml [key.path=value ...]       one process a GPU; RANKS=n for another number
#   docker run IMAGE evaluate CHECKPOINT --data DIR_OR_S3
#   docker run IMAGE audit DIR_OR_S3
#   docker run IMAGE doctor [s3://BUCKET/PATH]                        is everything there that a run wants?
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

# Processes to start on this machine: RANKS, or its GPUs, or one.
ranks() {
  local gpus=0
  if command -v nvidia-smi >/dev/null; then
    gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true)
  fi
  echo "${RANKS:-$((gpus > 0 ? gpus : 1))}"
}

# One process needs no launcher, and neither does a question.
launch() {
  local count
  count=$(ranks)
  if [[ $count == 1 || " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    exec python "$@"
  fi
  trap '' USR1 # the launcher would die of it before its ranks have saved; they listen for it themselves
  exec composer -n "$count" "$@"
}

case ${1:-help} in
  convert) exec python convert/imagenet_to_mds.py "${@:2}" ;;
  train) launch train/main.py "${@:2}" ;;
  evaluate) launch train/evaluate.py "${@:2}" ;;
  audit) exec python convert/audit.py "${@:2}" ;;
  doctor) exec python docker/doctor.py "${@:2}" ;;
  help | --help | -h) usage ;;
  *) exec "$@" ;;
esac
