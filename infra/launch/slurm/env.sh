# shellcheck shell=bash
# What a run on EC2 wants in its environment, and where each setting comes from. infra/launch/slurm/train.sbatch reads this
# file; a value that is set already stays. Sourced, not run.

# Which Python: the environment that `make setup` made, unless another is named. In an image it is the image's own.
export VENV=${VENV:-.venv}

# EFA. The libfabric provider is chosen by aws-ofi-nccl itself from its release 1.7 on; saying it makes a run without EFA
# fail at once instead of falling back to TCP unseen. (github.com/aws/aws-ofi-nccl, README and RELEASENOTES.)
if [[ -e /sys/class/infiniband || -n ${FORCE_EFA:-} ]] && compgen -G '/sys/class/infiniband/*' >/dev/null; then
  export FI_PROVIDER=${FI_PROVIDER:-efa}
  # fork() while memory is registered with the adapter; loader workers are forked.
  # (github.com/aws/aws-ofi-nccl, README: "Fork safety"; the kernel has it since 5.13, where this costs nothing.)
  export FI_EFA_FORK_SAFE=${FI_EFA_FORK_SAFE:-1}
fi

# NCCL must not take the loopback or Docker's bridge for its bootstrap.
# (docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html, NCCL_SOCKET_IFNAME; "^" leaves out.)
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-^lo,docker0,veth}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN} # INFO says whether EFA is used: docs/cloud.md
# A collective that fails ends the process with an error instead of hanging.
# (pytorch.org/docs/stable/torch_nccl_environment_variables.html; Composer's launcher sets it too.)
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
# When a collective times out, write which ones were under way. (Same page.)
export TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}

# One thread for each BLAS call: the loader workers are as many as the cores already.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# infra/launch/node.py: the two minutes' notice of a spot interruption ends in a checkpoint; seconds without a batch that count
# as a hang, above yamls/base.yaml's dist_timeout (600) so that the error which names the cause comes first.
export WATCH_SPOT=${WATCH_SPOT:-1}
export STALL_S=${STALL_S:-1200}
# infra/launch/slurm/train.sbatch: failures (exit status 1, a crash) after which a job is not queued again; those between which
# the run made progress do not add up.
export MAX_FAILURES=${MAX_FAILURES:-3}
