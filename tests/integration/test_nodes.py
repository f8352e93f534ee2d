"""Two nodes with a cache of their own each, and checkpoints in S3: one is lost, both are started again."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from imagestream.storage.places import open_place
from tests.integration.problem import command, what_must_match
from tests.integration.test_s3 import upload
from tests.processes import NODE_LOCAL, run, start
from tests.s3_server import S3Server
from train.resume.checkpoints import list_checkpoints

pytestmark = [pytest.mark.s3, pytest.mark.slow]
SECONDS_TO_END = 60  # for the node that is left: its next exchange with the other fails


@pytest.mark.exhaustive
@pytest.mark.parametrize("lost", [0, 1])
def test_when_a_node_is_lost_the_other_ends_and_both_go_on_to_identical_weights(
    shards: Path, s3_folder: str, s3_server: S3Server, tmp_path: Path, lost: int
) -> None:
    upload(shards, f"{s3_folder}/mds")
    more = (
        f"data.remote={s3_folder}/mds", f"data.local={tmp_path / NODE_LOCAL / 'cache'}", "data.num_workers=1",
        "loggers.file=false",
    )  # fmt: skip
    folders = {name: f"{s3_folder}/{name}" for name in ("undisturbed", "interrupted")}
    code, output = run(
        command(shards, folders["undisturbed"], *more), tmp_path / "log", ranks=2, nodes=2, env=s3_server.env
    )
    assert code == 0, output
    assert not (tmp_path / NODE_LOCAL / "cache").exists()  # outside the nodes

    argv, saved = command(shards, folders["interrupted"], *more), open_place(folders["interrupted"])
    started = start(argv, tmp_path / "killed", ranks=2, nodes=2, env=s3_server.env)
    until = time.monotonic() + 120
    while "ep0-ba4.pt" not in list_checkpoints(saved):
        assert time.monotonic() < until, started.output()
        time.sleep(0.1)
    pid = started.ranks[lost].pid
    assert pid
    os.killpg(pid, signal.SIGKILL)
    left = started.ranks[1 - lost]
    left.join(SECONDS_TO_END)
    exit_code = left.exitcode
    started.kill()
    assert exit_code not in (None, 0), started.output()
    code, output = run(argv, tmp_path / "again", ranks=2, nodes=2, env=s3_server.env)
    assert code == 0, output
    assert f"resume: from {folders['interrupted']}/ep" in output
    one, other = (json.loads(open_place(where).read("run.json")) for where in folders.values())
    assert what_must_match(one) == what_must_match(other)


@pytest.mark.exhaustive
@pytest.mark.parametrize("shared", [False, True])
def test_when_another_node_becomes_the_first_one_the_run_does_not_begin_anew(
    shards: Path, tmp_path: Path, shared: bool
) -> None:
    save_folder = tmp_path / ("shared" if shared else f"{NODE_LOCAL}/run")
    argv = command(shards, save_folder, "max_duration=1ep")
    disks = [tmp_path / "disk-a", tmp_path / "disk-b"]
    code, output = run(argv, tmp_path / "first", ranks=2, nodes=2, disks=disks)
    assert code == 0, output
    longer = [*argv, "max_duration=2ep", "--allow-changed", "max_duration"]
    code, output = run(longer, tmp_path / "swapped", ranks=2, nodes=2, disks=disks[::-1])
    if not shared:
        assert code == 2
        assert "whose save folder has no checkpoint, and ep0-ba6.pt of this run is on" in output
        assert [path.name for path in (disks[1] / "run").glob("*.pt*")] == [f"ep0-ba6.pt.on-{os.uname().nodename}"]
        code, output = run(longer, tmp_path / "as-before", ranks=2, nodes=2, disks=disks)
    assert code == 0, output
    assert "resume: from" in output


def test_when_the_first_node_is_gone_for_good_the_run_does_not_begin_anew(shards: Path, tmp_path: Path) -> None:
    argv = command(shards, tmp_path / NODE_LOCAL / "run", "max_duration=2ba")
    disks = [tmp_path / "disk-a", tmp_path / "disk-b", tmp_path / "disk-c"]
    code, output = run(argv, tmp_path / "first", ranks=2, nodes=2, disks=disks[:2])
    assert code == 0, output
    code, output = run(argv, tmp_path / "second", ranks=2, nodes=2, disks=disks[2:] + disks[1:2])
    assert code == 2
    assert "delete ep0-ba2.pt.on-" in output
