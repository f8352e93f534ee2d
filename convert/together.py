"""This machine's share of a conversion that several machines make: its own part, help with the others', the end.

Whoever finds every shard made completes the dataset, out of the journal alone, so that it has the bytes that one
machine would have given it. The others see that it is complete, and end.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from convert.arguments import Args
from convert.claims import SessionOverError
from convert.conversion import (
    abort_uploads,
    begin,
    build,
    clear_halves,
    job_of,
    publish,
    refuse_bad_images,
    warn_of_little_space,
)
from convert.journal import FOLDER, Journal, RecordsGoneError
from convert.lock import read_lock
from convert.looking import look, look_again, was_made
from convert.machines import Machine, is_session_of, joined, sweep
from convert.plan import ShardTask
from convert.sources import Source, SourceError
from convert.sources.base import counted
from convert.state import Conversion, OutputError, Split, has_begun, missing_shards
from convert.tally import SplitTally
from convert.workers import WorkerError
from imagestream.storage.errors import PlaceError
from imagestream.storage.protocol import Place

logger = logging.getLogger("convert")

TO_BEGIN, TO_COMPLETE = f"{FOLDER}/begin.claim", f"{FOLDER}/complete.claim"


def convert_part(args: Args, source: Source, found: Sequence[str], output: Place) -> Conversion | None:
    """Convert as one of several machines; return the conversion if it is this one that completed the dataset.

    Raises:
        OtherPlanError, UsageError: this machine would make something else than what is there.
        BadImagesError, LockedError, OutputError, PlaceError, WorkerError, SessionOverError: the message says why not.
    """
    assert args.part
    if args.part.given_by != "--part":
        logger.info(
            "part %s of a conversion by several machines, by %s; --part 0/1 would be one machine",
            args.part,
            args.part.given_by,
        )
    if was_made(args, found, output) and not read_lock(output):  # listing a source may take an hour
        _leave_alone(found, output)
        return None
    try:
        conversion = look(args, source, found, output)
    except (SourceError, OSError):  # the machine that completes it removes what sources are unpacked into
        if not was_made(args, found, output) or read_lock(output):
            raise
        _leave_alone(found, output)
        return None
    plan = {split.name: split.identity for split in conversion.splits}
    if not _open_splits(conversion) and not is_session_of(output, plan):
        _leave_alone(found, output)
        return None
    with joined(output, args.out, args.part, plan) as machine:
        is_last = _convert_together(conversion, machine)
    made = counted(conversion.made_shards, "shard")
    logger.info("part %s: made %s of %s", args.part, made, counted(conversion.made_images, "image"))
    return conversion if is_last else None


def _leave_alone(found: Sequence[str], output: Place) -> None:
    """End with a dataset that is complete.

    Raises:
        OutputError: shards of it are missing, which is work for one machine.
    """
    sweep(output, found)
    for split in found:
        if missing := missing_shards(output, split):
            raise OutputError(
                f"{split} is complete, but {counted(len(missing), 'shard is', 'shards are')} missing; the same command "
                "on one machine, with --part 0/1, makes them anew"
            )


def _convert_together(conversion: Conversion, machine: Machine) -> bool:
    """Do this machine's share, and what others leave undone; return whether it was this one that completed it all."""
    try:
        _begin(conversion, machine)
        is_last = _work(conversion, machine)
    except Exception as error:
        # What this machine was at may have gone from under its hands because the others are done with it.
        if not _is_completed(conversion):
            raise
        logger.debug("the others were quicker: %s", error)
        is_last = False
    machine.completed = True
    return is_last


def _begin(conversion: Conversion, machine: Machine) -> None:
    """See to it that each split's plan is noted; one machine does it, and removes what is there of another plan."""
    while _not_begun(conversion):
        if machine.take(TO_BEGIN):
            for split in _not_begun(conversion):
                begin(conversion, split)
        else:
            machine.wait()


def _not_begun(conversion: Conversion) -> list[Split]:
    """The splits whose journal has no plan and whose index is not there either.

    The journal is asked first: it goes when the index is there, so a split that is being completed is not taken for one
    that nobody has begun.
    """
    waiting = [split for split in conversion.splits if not has_begun(conversion, split)]
    look_again(conversion)
    return [split for split in waiting if not split.complete]


def _work(conversion: Conversion, machine: Machine) -> bool:
    """Make shards until there are none left; return whether it was this machine that completed the dataset."""
    tasks = [task for split in _open_splits(conversion) for task in split.tasks]
    own = machine.part.own(tasks)
    logger.info("part %s: begins with %d of %s", machine.part, len(own), counted(len(tasks), "shard"))
    warn_of_little_space(conversion)
    _build(conversion, machine, own, {}, checks_made=True)
    while (left := _left(conversion)) is not None:
        free = machine.free([_claim(conversion, task) for task, is_taken in left if is_taken])
        open_tasks = [task for task, is_taken in left if not is_taken or _claim(conversion, task) in free]
        if open_tasks:
            machine.work_found()
            _build(conversion, machine, machine.part.in_order_of_help(tasks, open_tasks), free, checks_made=False)
        elif not left and machine.take(TO_COMPLETE):
            if _complete_or_leave(conversion, machine):
                return True
        else:
            machine.wait()
    return False


def _open_splits(conversion: Conversion) -> list[Split]:
    return [split for split in conversion.splits if not split.complete]


def _claim(conversion: Conversion, task: ShardTask) -> str:
    return Journal(conversion.output, task.split).claim_name(task.index)


def _build(
    conversion: Conversion,
    machine: Machine,
    tasks: Sequence[ShardTask],
    free: Mapping[str, bytes],
    *,
    checks_made: bool,
) -> None:
    """Make those of the shards that no other machine has taken."""
    if not tasks:
        return
    job = replace(job_of(conversion), claims=machine.claims(free=free, checks_made=checks_made))
    try:
        build(conversion, tasks, job)
    except (PlaceError, WorkerError) as error:
        if _left(conversion):
            raise
        logger.debug("the others have made it: %s", error)  # and the last one has ended this machine's upload, or such


def _left(conversion: Conversion) -> list[tuple[ShardTask, bool]] | None:
    """The shards without a record, and whether a machine has taken each; None where the dataset is complete.

    Raises:
        SessionOverError: it is not complete, and yet this conversion is no longer there.
    """
    found = {split.name: Journal(conversion.output, split.name).found() for split in _open_splits(conversion)}
    if not any(found.values()):
        if _is_completed(conversion):
            return None
        raise SessionOverError(f"the journal of {conversion.args.out} is gone; give the same command again")
    return [
        (task, task.index in there.claimed)
        for split in _open_splits(conversion)
        if (there := found[split.name])
        for task in split.tasks
        if task.index not in there.made
    ]


def _is_completed(conversion: Conversion) -> bool:
    try:
        look_again(conversion)
    except Exception as error:
        logger.debug("cannot see whether the others are done: %s", error)
        return False
    return not _open_splits(conversion)


def _complete_or_leave(conversion: Conversion, machine: Machine) -> bool:
    """Complete the dataset; False where there is more to do before, or where another machine is at it by now."""
    try:
        is_complete = _complete(conversion, machine)
    except PlaceError as error:
        if machine.holds(TO_COMPLETE):
            raise
        logger.debug("another machine completes it, and has ended this one's uploads: %s", error)
        return False
    if not is_complete:
        machine.give_back(TO_COMPLETE)
    return is_complete


def _complete(conversion: Conversion, machine: Machine) -> bool:
    """Write what one machine writes at the end; False where another has, or where there is more to do.

    Raises:
        SessionOverError: records are gone, and no split is complete for it.
    """
    look_again(conversion)  # the one that was at it before may have been killed in between
    splits = _open_splits(conversion)
    try:
        return bool(splits) and _write_the_end(conversion, machine, splits)
    except RecordsGoneError as error:
        look_again(conversion)
        if len(_open_splits(conversion)) == len(splits):
            raise SessionOverError(str(error)) from error
        logger.debug("another machine, which was taken for gone, completes it too: %s", error)
        return False


def _write_the_end(conversion: Conversion, machine: Machine, splits: Sequence[Split]) -> bool:
    """Complete these splits; False where a shard turns out to be missing."""
    if not all([_add_up(conversion, split) for split in splits]):
        return False
    if conversion.args.on_bad == "fail":
        refuse_bad_images(conversion)
    abort_uploads(conversion.output)
    for split in splits:
        clear_halves(conversion.output, split.name)
    publish(conversion, check=machine.claims().check_session)
    return True


def _add_up(conversion: Conversion, split: Split) -> bool:
    """Count a split by its records; False where a shard is not there as its record says, and has to be made anew."""
    split.tally = SplitTally(len(conversion.names))
    journal, sizes = Journal(conversion.output, split.name), conversion.output.sizes(split.name)
    is_whole = True
    for index, record in journal.get_each(task.index for task in split.tasks):
        is_there = record and (record.file is None or sizes.get(record.file.rpartition("/")[2]) == record.file_bytes)
        if record and is_there:
            split.tally.add(record.result)
        elif not journal.is_open():
            raise RecordsGoneError(f"the records of {split.name} are gone; give the same command again")
        else:
            logger.warning("warning: %s: shard %d is missing; made anew", split.name, index)
            journal.forget(index)
            is_whole = False
    return is_whole
