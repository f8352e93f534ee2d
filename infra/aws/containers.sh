#!/usr/bin/env bash
# Turns on enroot and Pyxis, with which `srun --container-image` runs a job in an image, on a node of ParallelCluster.
#
# `infra/aws/cli.py up` puts this file into the data bucket; infra/aws/cluster.yaml has the head node run it when it is
# configured, and each compute node when it starts. ParallelCluster's images bring both programs, switched off.
# (docs.aws.amazon.com/parallelcluster/latest/ug/tutorials_11_running-containerized-jobs-with-pyxis.html)
set -euo pipefail

root=${ROOT_FOLDER:-} # another one for the tests
# shellcheck source=/dev/null
source "$root/etc/parallelcluster/cfnconfig"
examples=$root/opt/parallelcluster/examples
fail() {
  echo "containers.sh: $*" >&2
  exit 1
}
[[ -e $examples/enroot/enroot.conf && -e $examples/pyxis/pyxis.conf && -e $examples/spank/plugstack.conf ]] ||
  fail "$examples has no enroot, pyxis and spank; ParallelCluster brings them from 3.11.1 on"

for folder in /var/enroot /run/enroot /run/pyxis; do
  mkdir -p "$root$folder"
  chmod 1777 "$root$folder"
done
mkdir -p "$root/etc/enroot"
cp "$examples/enroot/enroot.conf" "$root/etc/enroot/enroot.conf"
chmod 0644 "$root/etc/enroot/enroot.conf"

# Ubuntu 24.04 forbids user namespaces to ordinary users, and enroot is made of them.
# (ubuntu.com/blog/ubuntu-23-10-restricted-unprivileged-user-namespaces)
if grep -q '^VERSION_ID="24.04"' "$root/etc/os-release"; then
  echo 'kernel.apparmor_restrict_unprivileged_userns = 0' >"$root/etc/sysctl.d/99-enroot.conf"
  sysctl --quiet --system
fi

if [[ ${cfn_node_type:?} == HeadNode ]]; then
  mkdir -p "$root/opt/slurm/etc/plugstack.conf.d"
  cp "$examples/spank/plugstack.conf" "$root/opt/slurm/etc/plugstack.conf"
  cp "$examples/pyxis/pyxis.conf" "$root/opt/slurm/etc/plugstack.conf.d/pyxis.conf"
  "$root/opt/slurm/bin/scontrol" reconfigure
fi
