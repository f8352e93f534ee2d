#!/usr/bin/env bash
# AWS's EFA installer into the image, once its SHA-256 is the one that is expected: libfabric and NCCL's plug-in, without
# the kernel's driver, which is the host's, and without Open MPI.
#
#   docker/efa.sh VERSION SHA256
#
# EFA_SOURCE is where the installer is fetched from, if not from AWS.
set -euo pipefail

version=$1 expected=$2
if [[ ! $expected =~ ^[0-9a-f]{64}$ ]]; then
  echo "efa.sh: EFA_INSTALLER_SHA256=$expected is not a SHA-256 of 64 hexadecimal digits; AWS has one for each version at" \
    "docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-verify.html" >&2
  exit 2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
archive=$folder/aws-efa-installer-$version.tar.gz
curl --fail --silent --show-error --location --output "$archive" \
  "${EFA_SOURCE:-https://efa-installer.amazonaws.com}/aws-efa-installer-$version.tar.gz"
found=$(sha256sum "$archive" | cut -d ' ' -f 1)
if [[ $found != "$expected" ]]; then
  echo "efa.sh: aws-efa-installer-$version.tar.gz has SHA-256 $found, not $expected (EFA_INSTALLER_SHA256); nothing of it was" \
    "run. With another EFA_INSTALLER give that version's own" >&2
  exit 1
fi
tar -xz -C "$folder" -f "$archive"
cd "$folder/aws-efa-installer"
./efa_installer.sh -y -g --skip-kmod --skip-limit-conf --no-verify
rm -rf /opt/amazon/openmpi*
