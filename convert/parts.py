"""Which part of a conversion this machine begins with, where several machines share one: `--part I/N`, or an array job.

The part decides the order of the work alone. When it is done, a machine continues with what the others have left.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convert.plan import ShardTask


@dataclass(frozen=True, slots=True)
class Part:
    """Part `index` (from 0) of `count`; `given_by` is an option's or a variable's name."""

    index: int
    count: int
    given_by: str

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def own(self, tasks: Sequence[ShardTask]) -> list[ShardTask]:
        """Every count-th task, from the index-th on."""
        return list(tasks[self.index :: self.count])

    def in_order_of_help(self, tasks: Sequence[ShardTask], left: Sequence[ShardTask]) -> list[ShardTask]:
        """Of all `tasks` those that are `left`: one's own, then the following parts', each from its end.

        A part's own machine comes from the other side, so the two meet once.
        """
        wanted = {task.name for task in left}
        ordered = self.own(tasks)
        for step in range(1, self.count):
            ordered += reversed(tasks[(self.index + step) % self.count :: self.count])
        return [task for task in ordered if task.name in wanted]


def parse_part(text: str) -> Part:
    """The value of --part."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[2]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 0/16: part I, from 0 to N - 1, of N parts")
    index, count = int(match[1]), int(match[2])
    if index >= count:
        raise argparse.ArgumentTypeError(f"{text}: parts are numbered from 0, so the last of {count} is {count - 1}")
    return Part(index, count, "--part")


def part_of_array(environ: Mapping[str, str]) -> Part | None:
    """The part that an array job's own variables name; None outside of one.

    Slurm numbers an array's tasks as the user does, with gaps (`--array=1,5,9`). A number that fits no part is taken
    modulo the count: then two machines begin alike, and share what is left.
    """
    slurm = _numbers(environ, "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
    if slurm:
        number, count = slurm
        first, step = int(environ.get("SLURM_ARRAY_TASK_MIN", 0)), int(environ.get("SLURM_ARRAY_TASK_STEP", 1)) or 1
        return Part((number - first) // step % count, count, "SLURM_ARRAY_TASK_ID")
    for index_name, count_name in (
        ("AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"),
        ("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"),
    ):
        numbers = _numbers(environ, index_name, count_name)
        if numbers:
            return Part(numbers[0] % numbers[1], numbers[1], index_name)
    return None


def _numbers(environ: Mapping[str, str], index_name: str, count_name: str) -> tuple[int, int] | None:
    index, count = environ.get(index_name, ""), environ.get(count_name, "")
    return (int(index), int(count)) if index.isdecimal() and count.isdecimal() and int(count) > 0 else None
