"""What the tests of the cloud commands stand on: moto's account, and a `pcluster` that keeps one cluster's state."""

import functools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore import loaders
from moto import mock_aws

from infra.aws import check, filesystem, following, head, stack
from infra.aws.cluster import PCLUSTER_VERSION
from infra.plan.machines import PRICES_VARIABLE

LOADERS = functools.cache(loaders.create_loader)
"""Of AWS's models, which each session would read anew for half a second a service."""


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """moto's account; nothing can reach a real one."""
    for name in [name for name in os.environ if name.startswith("AWS_")] + ["S3_ENDPOINT_URL"]:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for module in (stack, head, filesystem, following):
        monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setenv("PCLUSTER", "/bin/false")
    monkeypatch.setattr("botocore.session.create_loader", LOADERS)
    monkeypatch.setattr(check, "quotas", lambda *_: [])  # moto has none; test_check.py asks a stub
    with mock_aws():
        yield


@pytest.fixture
def pcluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A `pcluster` that keeps one cluster's state and file in a folder, and notes how it was called."""
    program = tmp_path / "pcluster"
    program.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/calls
verb=$1 dry= config=
while [ $# -gt 0 ]; do
  [ "$1" = --cluster-configuration ] && config=$2
  [ "$1" = --dryrun ] && dry=1
  shift
done
if [ -n "$dry" ]; then
  if [ "$verb" = update-cluster ] && cmp -s "$config" {tmp_path}/cluster.yaml; then
    echo '{{"message": "Bad Request: No changes found in your cluster configuration."}}'
  else
    echo '{{"message": "Request would have succeeded, but DryRun flag is set.",
      "changeSet": [{{"parameter": "MaxCount", "currentValue": "4", "requestedValue": "8"}}]}}'
  fi
  exit 1
fi
case $verb in
  version) echo '{{"version": "{PCLUSTER_VERSION}"}}' ;;
  create-cluster) cp "$config" {tmp_path}/cluster.yaml; echo CREATE_COMPLETE > {tmp_path}/state; echo '{{}}' ;;
  update-cluster) cp "$config" {tmp_path}/cluster.yaml; echo UPDATE_COMPLETE > {tmp_path}/state; echo '{{}}' ;;
  delete-cluster) rm {tmp_path}/state; echo '{{}}' ;;
  describe-cluster) if [ -e {tmp_path}/state ]; then printf '{{"clusterStatus": "%s"}}' "$(cat {tmp_path}/state)"
    else echo '{{"message": "Cluster does not exist"}}'; exit 1; fi ;;
esac
"""
    )
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PCLUSTER", str(program))
    return tmp_path


@pytest.fixture(autouse=True)
def without_fetched_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures in tests are the table's, whatever infra/plan/prices.py has written on this machine."""
    monkeypatch.setenv(PRICES_VARIABLE, str(tmp_path / "prices.json"))
