"""How one of several machines takes a piece of work, so that the others do something else.

A claim is a small file, made only where there is none (a hard link on a disk, `If-None-Match` in S3), with the name of
the machine in it. It saves work and decides nothing: what is made depends on the plan alone, so two machines that make
the same shard write the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from convert.lock import LOCK_NAME
from imagestream.storage.protocol import Place, read_if_there


class SessionOverError(RuntimeError):
    """The conversion that this machine has joined is at its end, or another one has begun at the same output."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a worker process needs to take a shard.

    Attributes:
        machine: this machine's name, the content of its claims.
        session: the content of the lock that all machines of this conversion share.
        free: claims, by file name, that may be taken over from the machine that their content names.
        checks_made: whether shards with a record are compared with it; else the record is trusted.
    """

    output: Place
    machine: bytes
    session: bytes
    free: Mapping[str, bytes] = field(default_factory=dict)
    checks_made: bool = False

    def take(self, name: str) -> bool:
        """Take a piece of work by its claim's name, unless another machine has it.

        Raises:
            SessionOverError: there is nothing to do here any more.
        """
        self.check_session()
        if self.output.create(name, self.machine):
            return True
        holder = read_if_there(self.output, name)
        if holder == self.machine:  # a worker of this one was killed at it
            return True
        if holder is None or self.free.get(name) != holder:
            return False
        self.output.write(name, self.machine)
        return True

    def check_session(self) -> None:
        """Raise SessionOverError unless this machine's conversion still has the output."""
        if read_if_there(self.output, LOCK_NAME) != self.session:
            raise SessionOverError("this conversion has come to its end, or another one has taken its place")
