#!/usr/bin/env bash
# The image's commands: convert, train, evaluate, audit and doctor; anything else is run as it is given.
#
#   docker run IMAGE convert --source DIR --out DIR_OR_S3
#   docker run IMAGE train yamls/full.yaml [key.path=value ...]       one process a GPU; RANKS=n for another number
#   docker run IMAGE evaluate CHECKPOINT --data DIR_OR_S3
#   docker run IMAGE audit DIR_OR_S3
#   docker run IMAGE doctor [s3://BUCKET/PATH]                        is everything there that a run wants?
#
# Paths are relative to the working directory, which is /app unless `docker run -w` names another.
set -euo pipefail
app=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

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

# Take the configurations that the working directory does not have from the image, and say which file it is.
with_configurations() {
  words=()
  local word
  for word in "$@"; do
    if [[ ! $PWD -ef $app && $word =~ ^[^/=-][^=]*\.ya?ml$ ]]; then
      if [[ -e $word ]]; then
        echo "entrypoint.sh: the configuration is $PWD/$word" >&2
      elif [[ -e $app/$word ]]; then
        word=$app/$word
        echo "entrypoint.sh: the configuration is the image's $word; $PWD has none of that name" >&2
      fi
    fi
    words+=("$word")
  done
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
  convert) exec python "$app/convert/imagenet_to_mds.py" "${@:2}" ;;
  train)
    with_configurations "${@:2}"
    launch "$app/train/main.py" "${words[@]}"
    ;;
  evaluate) launch "$app/train/evaluate.py" "${@:2}" ;;
  audit) exec python "$app/convert/audit.py" "${@:2}" ;;
  doctor) exec python "$app/docker/doctor.py" "${@:2}" ;;
  help | --help | -h) usage ;;
  *) exec "$@" ;;
esac
