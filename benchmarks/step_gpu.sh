#!/usr/bin/env bash
# All that a GPU can say of the training step, in a quarter of an hour: benchmarks/step.py in bfloat16 and in float16, and
# `make test-gpu`. Each part has its share of the time, and what it has found by then stays: 13 minutes in all, so that the
# machine has two to start.
#
#   benchmarks/step_gpu.sh OUT [arguments of benchmarks/step.py]
#
# OUT gets a table (.txt), JSON and a picture for each part. timm takes part where it is installed. Without a GPU the same
# commands run, in bfloat16 alone, to be tried before:
#
#   benchmarks/step_gpu.sh OUT --batch 4 --sizes 32 --steps 3 --warm-up 1 --rounds 1 --count 2 --model resnet18
set -uo pipefail

out=${1:?usage: benchmarks/step_gpu.sh OUT [arguments of benchmarks/step.py]}
shift
mkdir -p "$out"
out=$(realpath "$out")
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-.venv/bin/python}
status=0

part() { # NAME SECONDS COMMAND...: the command's output goes to OUT/NAME.txt, too
  local name=$1 seconds=$2 began=$SECONDS
  shift 2
  timeout --signal TERM --kill-after 20 "$seconds" "$@" 2>&1 | tee "$out/$name.txt"
  local code=${PIPESTATUS[0]}
  echo "$name: exit status $code after $((SECONDS - began)) s"
  if [ "$code" -ne 0 ]; then status=1; fi
}

step() { # NAME SECONDS ARGUMENTS...
  local name=$1 seconds=$2
  shift 2
  part "$name" "$seconds" "$python" benchmarks/step.py --json "$out/$name.json" --picture "$out/$name.png" "$@"
}

if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  step bf16 420 --sizes 88,224,128 --ours precision=amp_fp16 "$@"
  step fp16 150 --sizes 88,224 --rounds 2 --contestants composer,torchvision,timm --precision amp_fp16 "$@"
else
  step bf16 420 --sizes 88,224,128 "$@"
  echo "fp16: left out, it needs a GPU"
fi
part test-gpu 200 make test-gpu
exit "$status"
