#!/usr/bin/env bash
# What only a real AWS account can show, tried in one go for about $30: two hours on g5.48xlarge and g6.48xlarge.
#
#   infra/aws/trial.sh SHARDS you@example.com [--dry-run]
#
# SHARDS is a small dataset (`make demo` leaves demo/data/mds) with at most ten classes, and 512 images or more to train on.
# It checks, brings up a cluster of its own (`trial`), and then looks at: the image under enroot and Pyxis on a GPU; NCCL over EFA
# between two nodes; a spot instance that is ended in mid-run, after which the run resumes by itself; FSx, which gives its runs to
# the bucket before it goes; and whether anything is left that bills. Each step says PASS or FAIL; the log is build/trial/trial.log.
# Whatever happens, `down` runs at the end. Confirm the mail that AWS sends, to see the alarm.
#
# What it costs, by infra/plan/machines.yaml: two g5.48xlarge on spot for an hour ($13), one g6.48xlarge on demand for half an
# hour ($7), head node, NAT gateway and FSx for three hours ($2). A budget of $50 is set, which warns and stops nothing.
set -uo pipefail

usage() { sed -n '2,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
[[ $# -ge 2 && $1 != -* ]] || { usage >&2 && exit 2; }
shards=$(realpath "$1") email=$2 dry=${3:-}
[[ -z $dry || $dry == --dry-run ]] || { usage >&2 && exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
python=${PYTHON:-.venv/bin/python} name=trial
tiny=(global_batch_size=512 data.crop_size=64 data.eval_crop_size=64 data.eval_resize_size=72 max_duration=60ep
  checkpoint.save_interval=5ep)
mkdir -p build/trial
exec > >(tee -a build/trial/trial.log) 2>&1

cli() { "$python" infra/aws/cli.py "$1" --name "$name" "${@:2}" ${dry:+--dry-run}; }
failed=0
step() { # what, then a command: says PASS or FAIL
  echo "== $1"
  if "${@:2}"; then echo "PASS $1"; else failed=1 && echo "FAIL $1"; fi
}

# Wait until job $1 has left the queue, for $2 minutes at most, then look for its last line in the log.
finished() {
  local minutes
  [[ -z $dry ]] || return 0
  for ((minutes = 0; minutes < $2; minutes++)); do
    cli status | grep -q "^job $1 " || break
    sleep 60
  done
  cli logs --job "$1" --lines 200 | tee "build/trial/job-$1.log" | grep -q 'done: top-1'
}

queue() { # a submission; leaves its number in $job
  local printed
  printed=$(cli submit --yes "$@") || { echo "$printed" && return 1; }
  echo "$printed"
  job=$(sed -n 's/^job \([0-9]*\) is queued.*/\1/p' <<<"$printed")
  [[ -n $job || -n $dry ]]
}

on_one_gpu_machine() {
  queue --queue g6 --nodes 1 --run one yamls/full-s3-nvme.yaml "${tiny[@]}" && finished "$job" 60
}

over_efa() { # without EFA the run ends: `submit` sets REQUIRE_EFA
  queue --queue g5-spot --nodes 2 --run two yamls/full-s3-nvme.yaml "${tiny[@]}" && finished "$job" 60
}

# End one of the two instances of a job when it has come to batch 100; it has to finish nevertheless.
after_an_interruption() {
  local minutes instance
  queue --queue g5-spot --nodes 1-2 --run lost yamls/full-s3-nvme.yaml "${tiny[@]}" max_duration=200ep || return 1
  [[ -z $dry ]] || return 0
  for ((minutes = 0; minutes < 40; minutes++)); do
    [[ $(cli status) =~ job\ $job\ .*batch\ [1-9][0-9,]{2,} ]] && break
    sleep 60
  done
  instance=$(aws ec2 describe-instances --query 'Reservations[].Instances[].InstanceId' --output text --filters \
    Name=tag:parallelcluster:cluster-name,Values=$name Name=tag:parallelcluster:node-type,Values=Compute \
    Name=instance-state-name,Values=running | awk '{ print $1 }')
  [[ -n $instance ]] && aws ec2 terminate-instances --instance-ids "$instance" >/dev/null || return 1
  finished "$job" 90 && grep -q 'resume: from' "build/trial/job-$job.log"
}

from_fsx() {
  queue --queue g6 --nodes 1 --run fsx yamls/full-fsx.yaml "${tiny[@]}" && finished "$job" 60
}

fsx_is_in_the_bucket() {
  local bucket
  [[ -z $dry ]] || return 0
  bucket=$name-data-$(aws sts get-caller-identity --query Account --output text)-${AWS_REGION:-${AWS_DEFAULT_REGION:-$(aws configure get region)}}
  aws s3 ls "s3://$bucket/runs/fsx/run.json"
}

if [[ -z $dry ]]; then step "check" cli check --queues g5-spot,g6 || exit 1; fi
[[ $failed == 0 ]] || exit 1
trap 'step "down leaves nothing that bills" cli down --yes; step "what FSx held is in the bucket" fsx_is_in_the_bucket; exit $failed' EXIT
step "up" cli up --yes --queues g5-spot,g6 --max-nodes 2 --fsx-gib 1200 --budget-usd 50 --email "$email"
[[ $failed == 0 ]] || exit 1
if [[ -z $dry ]]; then step "a second up changes nothing" cli up --yes; fi
step "upload" cli upload --yes "$shards"
step "push-image" cli push-image
step "a run in the image on one machine" on_one_gpu_machine
step "two nodes over EFA" over_efa
step "a node that is lost" after_an_interruption
step "shards and checkpoints on FSx" from_fsx
