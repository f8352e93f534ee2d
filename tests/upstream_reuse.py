"""Streaming alone: a job is killed by SIGKILL; another one, which has its /dev/shm but not its /tmp, takes its place.

So it is with two containers, one after the other, that have the host's shared memory (`--ipc host`).
"""

import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from streaming import StreamingDataset

from tests.processes import leave_this_machine


def main(argv: Sequence[str]) -> int:
    """Arguments: the shards, a scratch folder."""
    shards, scratch = argv
    leave_this_machine(Path(scratch, "node"))  # what is left in /dev/shm goes with this process
    local = str(Path(scratch, "cache"))
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        tempfile.tempdir = tempfile.mkdtemp()
        StreamingDataset(remote=shards, local=local, batch_size=10)
        os.killpg(0, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        StreamingDataset(remote=shards, local=local, batch_size=10)
    except ValueError as error:
        print(f"refused: {error}")
    return 0
