"""A conversion's steps after the look: begin the splits, build their shards, publish.

In which order the parts of a dataset appear and go is said here. Everything that is written is written whole, and the
index last, so a conversion can end anywhere, and the same command resumes from there.
"""

import logging
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from convert.files_table import check_kept_table, clear_scratch, write_files_table
from convert.imagenet_classes import readable_name
from convert.journal import Journal
from convert.plan import ShardTask
from convert.progress import Progress
from convert.sources.base import counted, first_few
from convert.state import (
    BadImagesError,
    Conversion,
    OutputError,
    Split,
    has_begun,
    index_of,
    kept_manifest,
    missing_shards,
    our_files,
)
from convert.workers import Job, build_shards
from imagestream.mds.files_table import FILES_NAME
from imagestream.mds.manifest import MANIFEST_NAME, ClassInfo, Manifest, RefusedFile
from imagestream.mds.shards import INDEX_NAME, encode_index, is_our_name
from imagestream.storage.local import final_name
from imagestream.storage.protocol import Check, Place

logger = logging.getLogger("convert")

BAD_IMAGES_SHOWN = 50
MOST_REFUSED_FRACTION = 0.5


def _nothing_to_check() -> None: ...


def convert(conversion: Conversion) -> None:
    """Do it. Whatever ends it, the same command resumes where it was.

    Raises:
        BadImagesError, OutputError, PlaceError, WorkerError: the message says what is the matter.
    """
    abort_uploads(conversion.output)
    if not all(split.complete for split in conversion.splits) and kept_manifest(conversion):
        check_kept_table(conversion.output)
    for split in conversion.splits:
        if not split.complete:
            begin(conversion, split)
    warn_of_little_space(conversion)
    tasks = [task for split in conversion.splits for task in _open_tasks(conversion, split)]
    if tasks:
        build(conversion, tasks, job_of(conversion))
    publish(conversion)


def job_of(conversion: Conversion) -> Job:
    """What is the same for all shards of a conversion."""
    args = conversion.args
    turn = args.exif == "apply"
    source = conversion.source.files
    return Job(source, conversion.output, args.on_bad, args.form, args.resizing, turn, seen=conversion.seen)


def abort_uploads(output: Place) -> None:
    """End the uploads to a bucket that killed converters have left unfinished."""
    if output.path is not None:
        return
    from imagestream.storage import s3  # here, since boto3 takes long to import for those who need none

    if aborted := s3.abort_uploads(output):
        logger.info("ended %s that an earlier run had left unfinished", counted(aborted, "upload"))


def begin(conversion: Conversion, split: Split) -> None:
    """Take the split's place in the output: note the plan, after anything of another plan is gone."""
    if conversion.args.overwrite or not has_begun(conversion, split):
        _clear(conversion, split)
        Journal(conversion.output, split.name).begin(split.identity)
    clear_halves(conversion.output, split.name)


def clear_halves(output: Place, split: str) -> None:
    """Remove what killed writers have left of a split's files."""
    halves = [name for name in output.sizes(split) if final_name(name) != name and is_our_name(final_name(name))]
    output.delete([f"{split}/{name}" for name in halves])


def _clear(conversion: Conversion, split: Split) -> None:
    """Remove what the output has of a split. The index goes first: without it nobody takes the rest for a dataset."""
    output = conversion.output
    files = sorted(our_files(output, split.name), key=lambda name: name != INDEX_NAME)
    output.delete([f"{split.name}/{name}" for name in files])
    Journal(output, split.name).end()
    if conversion.manifest and split.name in conversion.manifest.splits:
        others = {name: info for name, info in conversion.manifest.splits.items() if name != split.name}
        conversion.manifest = Manifest.of(conversion.manifest.classes, others) if others else None
        if conversion.manifest:
            output.write(MANIFEST_NAME, conversion.manifest.to_json())
        else:
            output.delete([MANIFEST_NAME, FILES_NAME])


def _open_tasks(conversion: Conversion, split: Split) -> list[ShardTask]:
    """The shards that are still to be made or, of a split that has begun, to be looked at."""
    if not split.complete:
        return split.tasks
    missing = missing_shards(conversion.output, split.name)
    if missing:
        logger.warning(
            "warning: %s: %s missing; made anew", split.name, counted(len(missing), "shard is", "shards are")
        )
    return [task for task in split.tasks if task.index in missing]


def build(conversion: Conversion, tasks: Sequence[ShardTask], job: Job) -> None:
    """Have the shards built and add the results up."""
    workers = min(conversion.args.workers, len(tasks))
    logger.info("%s with %s", counted(len(tasks), "shard"), counted(workers, "worker"))
    tallies = {split.name: split.tally for split in conversion.splits}
    results = build_shards(tasks, job, workers=workers)
    made = 0
    try:
        with closing(results), Progress(sum(len(task.samples) for task in tasks)) as progress:
            for result in results:
                tallies[result.split].add(result)
                progress.add(result)
                made += not (result.by_another or (result.refused and job.on_bad == "fail"))
                if not result.by_another and not result.reused:
                    conversion.made_shards += 1
                    conversion.made_images += result.images
        if job.on_bad == "fail":
            refuse_bad_images(conversion)
    except BaseException:
        if made:
            how = ", without --overwrite," if conversion.args.overwrite else ""
            shards = counted(len(tasks), "shard")
            logger.warning("%d of %s are made and stay; the same command%s resumes", made, shards, how)
        raise


def refuse_bad_images(conversion: Conversion) -> None:
    refused = [file for split in conversion.splits for file in split.tally.refused]
    if not refused:
        return
    lines = [_bad_line(file) for file in refused[:BAD_IMAGES_SHOWN]]
    if len(refused) > BAD_IMAGES_SHOWN:
        lines.append(f"... and {len(refused) - BAD_IMAGES_SHOWN:,} more")
    raise BadImagesError(
        f"{counted(len(refused), 'bad image')} found before the conversion stopped:\n  "
        + "\n  ".join(lines)
        + "\nLeave out and list all such files with --on-bad skip, which resumes from here; or repair them and start "
        "anew with --overwrite"
    )


def _bad_line(file: RefusedFile) -> str:
    return f"{file.path}: {file.reason}"


def publish(conversion: Conversion, *, check: Check = _nothing_to_check) -> None:
    """Write the manifest and then, last of all, the index files that make the splits readable.

    Args:
        check: called before anything is written; raises where another converter has the output by now.
    """
    output, fresh = conversion.output, [split for split in conversion.splits if not split.complete]
    for split in conversion.splits:
        if split.complete:
            _check_remade(output, split)
        elif not split.tally.samples:
            raise BadImagesError(
                f"{split.name}: not one image can be used; the first: {_bad_line(split.tally.refused[0])}"
            )
    if not fresh:
        return
    kept = kept_manifest(conversion)
    infos = {split.name: split.tally.info(split.identity) for split in fresh}
    manifest = Manifest.of(_class_infos(conversion), {**(kept.splits if kept else {}), **infos})
    check()
    write_files_table(output, {split.name: split.tasks for split in fresh}, kept=kept.splits if kept else ())
    check()
    output.write(MANIFEST_NAME, manifest.to_json())
    for split in fresh:
        check()
        output.write(f"{split.name}/{INDEX_NAME}", encode_index(split.tally.entries))
        Journal(output, split.name).end()
    clear_scratch(output)


def _check_remade(output: Place, split: Split) -> None:
    """Shards that were missing from a complete split must have come out as its index has them."""
    listed = {entry["raw_data"]["basename"]: entry for entry in index_of(output, split.name)}
    for entry in split.tally.entries:
        name = entry["raw_data"]["basename"]
        if entry != listed[name]:
            raise OutputError(
                f"{split.name}/{name} was missing, and made again it differs from {INDEX_NAME}: an image has "
                "changed. Replace the split with --overwrite"
            )
    if missing := missing_shards(output, split.name):
        name = f"{split.name}/shard.{min(missing):05}.mds"
        raise OutputError(
            f"{name} is missing and cannot be made again: not one of its images can be used now. Mend them in the "
            "source, or replace the split with --overwrite"
        )
    Journal(output, split.name).end()


def _class_infos(conversion: Conversion) -> tuple[ClassInfo, ...]:
    own = conversion.readable
    return tuple(
        ClassInfo(index=index, wnid=wnid, name=readable_name(wnid) or own.get(wnid) or wnid)
        for index, wnid in enumerate(conversion.names)
    )


def warnings_of(split: Split, names: Sequence[str]) -> Iterator[str]:
    """What is worth a look in a split that has been made."""
    tally, listed = split.tally, len(split.listing.samples)
    if tally.refused:
        first = min(tally.refused, key=lambda file: file.id)
        yield (
            f"left out {counted(len(tally.refused), 'bad image')} of {listed:,} ({len(tally.refused) / listed:.1%}), "
            f"such as {first.path}: {first.reason}; all are listed in {MANIFEST_NAME}"
        )
    if len(tally.refused) > listed * MOST_REFUSED_FRACTION:
        reasons = Counter(re.sub(r"[\d,.]+", "N", file.reason) for file in tally.refused).most_common(3)
        why = "; ".join(f"{count:,} times {reason}" for reason, count in reasons)
        yield f"MOST OF IT IS MISSING. Look at the source before you train on this: {why}"
    lost = sorted({file.label for file in tally.refused if not tally.histogram[file.label]})
    if lost:
        yield (
            f"{counted(len(lost), 'class has', 'classes have')} NOT ONE IMAGE left, as all were refused: "
            f"{first_few([names[label] for label in lost])}"
        )
    if tally.ignored_turns:
        yield (
            f"{counted(tally.ignored_turns, 'image has', 'images have')} an EXIF orientation, which was ignored, as "
            "all readers of ImageNet do; for your own photographs use --exif apply"
        )


def warn_of_little_space(conversion: Conversion) -> None:
    output = conversion.output
    if output.path is None:
        return
    fresh: Iterable[Split] = (split for split in conversion.splits if not split.complete)
    resize = conversion.args.resizing
    needed = 0
    for split in fresh:
        sizes = [sample.size_bytes for sample in split.listing.samples]
        needed += sum(resize.expected_bytes(size) for size in sizes) if resize else sum(sizes)
        needed -= sum(output.sizes(split.name).values())
    free = shutil.disk_usage(output.path).free
    if free < needed:
        logger.warning("warning: %s has %.0f MB free, %.0f MB are needed", output.path, free / 1e6, needed / 1e6)
