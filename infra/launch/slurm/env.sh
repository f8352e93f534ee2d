# shellcheck shell=bash
# What a run on EC2 needs in its environment, and where each setting comes from. infra/launch/slurm/train.sbatch reads this
# file; a value that is set already stays. Sourced, not run.

# Which Python: the environment that `make setup` made, unless another is named. In an image it is the image's own.
export VENV=${VENV:-.venv}

# What NCCL is told, and whether it has to use EFA (REQUIRE_EFA): infra/launch/fabric.py, for every way to start a run.

# One thread for each BLAS call: the loader workers are as many as the cores already.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# infra/launch/node.py: the two minutes' notice of a spot interruption ends in a checkpoint; seconds without a batch that count
# as a hang, above yamls/base.yaml's dist_timeout (600) so that the error which names the cause comes first.
export WATCH_SPOT=${WATCH_SPOT:-1}
export STALL_S=${STALL_S:-1200}
# infra/launch/slurm/train.sbatch: failures (exit status 1, a crash) after which a job is not queued again; those between which
# the run made progress do not add up.
export MAX_FAILURES=${MAX_FAILURES:-3}
# infra/launch/slurm/drain.sh: nodes that a job may drain over all its starts, so that a check that is wrong cannot take a whole
# cluster out of service.
export MAX_BAD_NODES=${MAX_BAD_NODES:-2}
