"""A conversion, step by step: look, plan, build the shards, publish.

What a dataset is made of, and in which order its parts appear and go, is said here. A split of the output is in one
of three states: new; begun (`.convert/<split>/plan.json` is there); complete (its index.json is there and the manifest
has it). Everything that is written is written whole, and the index last, so a conversion can end anywhere, and the
same command resumes from there.
"""

import json
import logging
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from PIL import __version__ as pillow_version
from PIL import features

from convert.arguments import Args
from convert.files_table import check_kept_table, clear_scratch, write_files_table
from convert.imagenet_classes import readable_name
from convert.images import READERS
from convert.journal import Journal
from convert.plan import ShardTask, choose_classes, choose_samples, listing_hash, plan_split
from convert.progress import Progress
from convert.sources import Listing, Source, SourceError
from convert.sources.base import counted, each, first_few
from convert.tally import SplitTally
from convert.workers import Job, build_shards
from imagestream import __version__
from imagestream.mds.files_table import FILES_NAME
from imagestream.mds.manifest import MANIFEST_NAME, ClassInfo, Identity, Manifest, Options, RefusedFile, parse_manifest
from imagestream.mds.shards import INDEX_NAME, encode_index, is_our_name
from imagestream.storage.local import final_name
from imagestream.storage.protocol import Check, Place, Stat, read_if_there

logger = logging.getLogger("convert")

# Counts changes of what the same images and options become. A new one locks every dataset that is half made, and those
# that are whole from being completed: change it for nothing less.
FORMAT = "1"
BAD_IMAGES_SHOWN = 50
MOST_REFUSED_FRACTION = 0.5
SHOWN_LEFT_OUT = 20  # names of files and folders


def _nothing_to_check() -> None: ...


class UsageError(ValueError):
    """The command cannot do what was asked for; nothing has been touched."""


class BadImagesError(RuntimeError):
    """There are images that cannot be converted, and --on-bad says to fail."""


class OutputError(RuntimeError):
    """The output holds something that a conversion cannot continue with."""


@dataclass(slots=True)
class Split:
    """One split on its way from the source to the output."""

    listing: Listing
    identity: Identity
    tasks: list[ShardTask]
    tally: SplitTally
    complete: bool = False

    @property
    def name(self) -> str:
        return self.listing.split


@dataclass(slots=True)
class Conversion:
    """What is to be done: where from and to, the classes, and each split's plan."""

    args: Args
    source: Source
    output: Place
    names: list[str]  # of the classes
    splits: list[Split]
    manifest: Manifest | None  # what the output has so far
    readable: dict[str, str]  # names of classes, as far as the source knows any
    seen: dict[str, Stat]  # of the source's files that hold several images, as they were listed
    started: float = field(default_factory=time.monotonic)
    made_shards: int = 0  # by this run
    made_images: int = 0


def look(args: Args, source: Source, found: Sequence[str], output: Place) -> Conversion:
    """List the splits `found` in the source, plan the shards, and compare with what the output holds. Writes nothing.

    Raises:
        UsageError: the output holds something that this command would not have made.
    """
    all_names = _in_class_order(source.class_names(found), args)
    names = _choose_classes(args, all_names)
    splits = []
    seen: dict[str, Stat] = {}
    for split in found:
        listing = source.listing(split, all_names)
        seen |= _containers(source.files, listing)
        listing = choose_samples(listing, names=all_names, chosen=names, seed=args.seed, per_class=args.per_class)
        _describe(listing, names)
        splits.append(_plan(args, listing, names))
    left_out = source.left_out(found)
    if left_out:
        logger.warning("warning: not converted: %s of --source %s", first_few(left_out, SHOWN_LEFT_OUT), args.source)
    manifest = _existing_manifest(output, args.out)
    conversion = Conversion(args, source, output, names, splits, manifest, _readable_names(source), seen)
    if not args.overwrite:
        for each in splits:
            each.complete = _is_complete(conversion, each)
    _refuse_other_classes(conversion)
    _refuse_other_share(conversion)
    return conversion


def _containers(files: Place, listing: Listing) -> dict[str, Stat]:
    """The files of a listing that hold several images, each with what is known of it."""
    names = sorted({sample.file for sample in listing.samples if sample.offset_bytes is not None})
    if not names:
        return {}
    stats = each(files.stat, names, threads=files.concurrency, unit="files", what=listing.split)
    return {name: stat for name, stat in zip(names, stats, strict=True) if stat is not None}


def was_made(args: Args, found: Sequence[str], output: Place) -> bool:
    """Whether the output has all of these splits, made by the same options; the source is not looked at."""
    manifest = _existing_manifest(output, args.out)
    for split in found:
        listed = manifest.splits.get(split) if manifest else None
        if listed is None or INDEX_NAME not in output.sizes(split) or Journal(output, split).identity():
            return False
        now = listed.identity.model_copy(update={"seed": args.seed, "options": _options(args), "tools": _tools()})
        if listed.identity.differences(now):
            return False
    return True


def convert(conversion: Conversion) -> None:
    """Do it. Whatever ends it, the same command resumes where it was.

    Raises:
        BadImagesError, OutputError, PlaceError, WorkerError: the message says what is the matter.
    """
    abort_uploads(conversion.output)
    if not all(split.complete for split in conversion.splits) and _kept(conversion):
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


def look_again(conversion: Conversion) -> None:
    """See which splits the output has by now, where other machines may have completed some."""
    conversion.manifest = _existing_manifest(conversion.output, conversion.args.out)
    for split in conversion.splits:
        split.complete = _is_complete(conversion, split)


def abort_uploads(output: Place) -> None:
    """End the uploads to a bucket that killed converters have left unfinished."""
    if output.path is not None:
        return
    from imagestream.storage import s3  # here, since boto3 takes long to import for those who need none

    if aborted := s3.abort_uploads(output):
        logger.info("ended %s that an earlier run had left unfinished", counted(aborted, "upload"))


def _in_class_order(names: list[str], args: Args) -> list[str]:
    """The classes in the order of their labels; of numbers it may be another one than of words."""
    if not all(map(str.isdecimal, names)):
        if args.class_order == "numbers":
            raise UsageError(f"--class-order numbers: not all classes are numbers; one is called {names[0]}")
        return names
    by_number = sorted(names, key=lambda name: (int(name), name))
    if args.class_order == "numbers":
        return by_number
    if args.class_order == "words":
        return sorted(names)
    if names != by_number:
        at = next(label for label, pair in enumerate(zip(names, by_number, strict=True)) if pair[0] != pair[1])
        logger.warning(
            "warning: the classes are numbers, and are sorted as words: class %s has the label %d, as in torchvision. "
            "If the numbers are the labels, as in ImageNet-V2, use --class-order numbers; --class-order words is this "
            "order, without the warning",
            names[at],
            at,
        )
    return names


def _readable_names(source: Source) -> dict[str, str]:
    """Optional, so what is wrong with them is a warning; read before any work is done."""
    try:
        return source.readable_names()
    except SourceError as error:
        logger.warning("warning: the classes have no readable names: %s", error)
        return {}


def _choose_classes(args: Args, names: list[str]) -> list[str]:
    try:
        return choose_classes(names, args.classes, seed=args.seed)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _plan(args: Args, listing: Listing, names: Sequence[str]) -> Split:
    resize = args.resizing
    sizes = [sample.size_bytes for sample in listing.samples]
    stored_bytes = [resize.expected_bytes(size) for size in sizes] if resize else sizes
    identity = Identity(
        listing=listing_hash(listing, names),
        samples=len(listing.samples),
        seed=args.seed,
        options=_options(args),
        tools=_tools(),
    )
    tasks = plan_split(listing, seed=args.seed, form=args.form, stored_bytes=stored_bytes)
    return Split(listing, identity, tasks, SplitTally(len(names)))


def _options(args: Args) -> Options:
    return Options(
        on_bad=args.on_bad,
        size_limit_bytes=args.size_limit,
        hashes=args.hashes,
        compression=args.compression,
        resize=args.resize,
        quality=args.quality,
        subsampling=args.subsampling,
        exif=args.exif,
        classes=args.classes,
        per_class=args.per_class,
        val_fraction=args.val_fraction,
    )


def _tools() -> dict[str, str]:
    """What decides the bytes beside images and options: the format and, of images encoded anew, Pillow, libjpeg and
    the libraries that read AVIF and HEIC.

    The converter's own version is for the record.
    """
    turbo = features.version("libjpeg_turbo")
    libjpeg = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"
    tools = {"format": FORMAT, "convert": __version__, "pillow": pillow_version, "libjpeg": libjpeg}
    return tools | READERS


def _existing_manifest(output: Place, out: str) -> Manifest | None:
    text = read_if_there(output, MANIFEST_NAME)
    return None if text is None else parse_manifest(text, where=f"{out}/{MANIFEST_NAME}")


def _is_complete(conversion: Conversion, split: Split) -> bool:
    """Whether the output has the split already; False: it has nothing of it, or a part that can be gone on with."""
    output, out, manifest = conversion.output, conversion.args.out, conversion.manifest
    begun = Journal(output, split.name).identity()
    files = _our_files(output, split.name)
    if begun is None and files and not (manifest and split.name in manifest.splits):
        # Another machine may have completed it just now: the plan goes last.
        manifest = conversion.manifest = _existing_manifest(output, out)
    listed = manifest.splits.get(split.name) if manifest else None
    there = begun or (listed.identity if listed and INDEX_NAME in files else None)
    if there:
        differences = _differences(conversion, split, there)
        if begun and differences and not files:
            return False  # nothing is lost with it
        if differences:
            raise UsageError(
                f"--out {out} has {'a part of ' * bool(begun)}{split.name} that was created with other settings:\n  "
                + "\n  ".join(differences)
                + "\nRepeat the command that made it, choose another --out, or replace it with --overwrite"
            )
        return begun is None
    if files or listed:
        seen = f"{len(files):,} files of a conversion, such as {files[0]}" if files else "an entry in the manifest"
        raise UsageError(f"--out {out} already has {split.name}: {seen}. Replace it with --overwrite")
    return False


def _differences(conversion: Conversion, split: Split, there: Identity) -> list[str]:
    """How the settings of the split that the output holds, or of a part of it, differ from those given now."""
    same_tools = there.tools == split.identity.tools
    return there.differences(split.identity, encoders=not same_tools and _has_encoded(conversion, split))


def _has_encoded(conversion: Conversion, split: Split) -> bool:
    """Whether the output may hold images of a split that were encoded anew."""
    listed = conversion.manifest.splits.get(split.name) if conversion.manifest else None
    if conversion.args.resize is not None or (listed and listed.mended):
        return True
    return any(record.result.mended for record in Journal(conversion.output, split.name).records())


def _our_files(output: Place, split: str) -> list[str]:
    """The files in a split's folder that a conversion, finished or not, has left there."""
    return [name for name in output.sizes(split) if is_our_name(final_name(name))]


def _refuse_other_classes(conversion: Conversion) -> None:
    """The splits of one dataset have one list of classes."""
    kept, names = _kept(conversion), conversion.names
    if kept is None or [info.wnid for info in kept.classes] == names:
        return
    known = {info.wnid for info in kept.classes}
    gone, new = sorted(known - set(names)), sorted(set(names) - known)
    raise UsageError(
        f"--out {conversion.args.out} holds {', '.join(sorted(kept.splits))} with {len(known):,} classes, the source "
        f"has {len(names):,}: {_some('missing from the source', gone)}{_some('new in the source', new)}"
        "labels would mean different things in the splits. Use the same classes, or another --out"
    )


def _refuse_other_share(conversion: Conversion) -> None:
    """The splits of one dataset have no image in common: one draw has made them."""
    args, kept = conversion.args, _kept(conversion)
    for name, info in kept.splits.items() if kept else ():
        there, now = info.options.val_fraction, args.val_fraction
        if there != now or (now is not None and info.seed != args.seed):
            raise UsageError(
                f"--out {args.out} holds {name}, made with --val-fraction {there} and --seed {info.seed}; with "
                f"--val-fraction {now} and --seed {args.seed} an image could be in two splits. Give the same ones, or "
                "another --out"
            )


def _some(what: str, names: Sequence[str]) -> str:
    return f"{what}: {first_few(names)}; " if names else ""


def _kept(conversion: Conversion) -> Manifest | None:
    """The output's manifest less the splits that are being made; None where nothing is left of it."""
    manifest = conversion.manifest
    if manifest is None:
        return None
    made = {split.name for split in conversion.splits if not split.complete}
    kept = {name: info for name, info in manifest.splits.items() if name not in made}
    return Manifest.of(manifest.classes, kept) if kept else None


def has_begun(conversion: Conversion, split: Split) -> bool:
    """Whether the output's journal has this split's plan."""
    begun = Journal(conversion.output, split.name).identity()
    return begun is not None and not _differences(conversion, split, begun)


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
    files = sorted(_our_files(output, split.name), key=lambda name: name != INDEX_NAME)
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


def missing_shards(output: Place, split: str) -> set[int]:
    """The numbers of the shards of a complete split that are not there, or are of another size than its index says."""
    there = output.sizes(split)
    return {
        int(entry["raw_data"]["basename"].split(".")[1])
        for entry in _index(output, split)
        if there.get((entry["zip_data"] or entry["raw_data"])["basename"])
        != (entry["zip_data"] or entry["raw_data"])["bytes"]
    }


def _index(output: Place, split: str) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = json.loads(read_if_there(output, f"{split}/{INDEX_NAME}") or b"")["shards"]
        return entries
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{split}/{INDEX_NAME} is damaged ({error}); replace the split with --overwrite") from error


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
    kept = _kept(conversion)
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


def _check_remade(output: Place, split: Split) -> None:
    """Shards that were missing from a complete split must have come out as its index has them."""
    listed = {entry["raw_data"]["basename"]: entry for entry in _index(output, split.name)}
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


def _describe(listing: Listing, names: Sequence[str]) -> None:
    size_mb = sum(sample.size_bytes for sample in listing.samples) / 1e6
    files, classes = counted(len(listing.samples), "file"), counted(len(names), "class", "classes")
    logger.info("%s: %s, %s, %.1f MB", listing.split, files, classes, size_mb)
    for what, count in listing.ignored.items():
        logger.warning("warning: %s: ignored %s", listing.split, counted(count, what))
    used = {sample.label for sample in listing.samples}
    empty = [name for index, name in enumerate(names) if index not in used]
    if empty:
        logger.warning("warning: %s: %d of the classes have no files, such as %s", listing.split, len(empty), empty[0])


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
