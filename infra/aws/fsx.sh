#!/usr/bin/env bash
# FSx for Lustre on a node: mount it, load the dataset from the bucket ahead of time, and check it.
#
#   sudo infra/aws/fsx.sh mount FILE_SYSTEM_DNS MOUNT_NAME [/fsx]     (ParallelCluster mounts it by itself)
#   infra/aws/fsx.sh hydrate /fsx/imagenet                            reads every file from S3 into FSx now, once
#   infra/aws/fsx.sh state /fsx/imagenet                              how many files are in FSx already
#   infra/aws/fsx.sh stripe /fsx/runs                                 how new files in a folder are laid out
#   infra/aws/fsx.sh verify /fsx/imagenet                             each shard against manifest and hashes
#
# Striping: shards are some 64 MB and read whole, many at a time, so one stripe each spreads them over the servers by
# itself. Checkpoints of hundreds of MB are written by one process: those want a stripe over all servers.
# (docs.aws.amazon.com/fsx/latest/LustreGuide/performance.html, "Striping data")
set -euo pipefail

usage() { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
fail() {
  echo "infra/aws/fsx.sh: $*" >&2
  exit 2
}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[[ $# -ge 2 ]] || { usage && exit 2; }
verb=$1 place=$2

needs_lfs() {
  command -v lfs >/dev/null || fail "lfs is not installed; it comes with lustre-client-modules-aws (AWS's guide: Installing the Lustre client)"
  [[ -d $place ]] || fail "$place is not a folder"
}

# "released" is Lustre's word for a file whose content is in S3 alone.
released() { find "$place" -type f -print0 | xargs -0 -r -n 200 lfs hsm_state | grep -c released || true; }

case $verb in
  mount)
    mount_name=${3:?the mount name, from the file system\'s page or describe-file-systems} folder=${4:-/fsx}
    mkdir -p "$folder"
    # noatime: no write for each read; flock: what the cache and the checkpoints lock by.
    mount -t lustre -o relatime,flock,noatime "$place@tcp:/$mount_name" "$folder"
    ;;
  hydrate)
    needs_lfs
    find "$place" -type f -print0 | xargs -0 -r -n 50 -P 8 lfs hsm_restore
    while left=$(released) && [[ $left -gt 0 ]]; do
      echo "$left files are still in S3 alone"
      sleep "${SECONDS_BETWEEN_LOOKS:-10}"
    done
    echo "all of $place is in FSx"
    ;;
  state)
    needs_lfs
    echo "$(find "$place" -type f | wc -l) files, $(released) of them in S3 alone"
    ;;
  stripe)
    needs_lfs
    lfs setstripe --stripe-count -1 --stripe-size 16M "$place"
    lfs getstripe -d "$place"
    ;;
  verify)
    [[ -d $place ]] || fail "$place is not a folder"
    cd "$here" && exec "${PYTHON:-python}" convert/audit.py "$place" --decode "${DECODE:-0.01}"
    ;;
  *) usage && exit 2 ;;
esac
