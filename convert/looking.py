"""What the source has, what is to be made of it, and what the output has already. Nothing is written here."""

import logging
from collections.abc import Sequence

from PIL import __version__ as pillow_version
from PIL import features

from convert.arguments import Args
from convert.images import READERS
from convert.journal import Journal
from convert.plan import choose_classes, choose_samples, listing_hash, plan_split
from convert.sources import Listing, Source, SourceError
from convert.sources.base import counted, each, first_few
from convert.state import Conversion, Split, UsageError, differences, existing_manifest, kept_manifest, our_files
from convert.tally import SplitTally
from imagestream import __version__
from imagestream.mds.manifest import Identity, Options
from imagestream.mds.shards import INDEX_NAME
from imagestream.storage.protocol import Place, Stat

logger = logging.getLogger("convert")

# Counts changes of what the same images and options become. A new one locks every dataset that is half made, and those
# that are whole from being completed: change it for nothing less.
FORMAT = "1"
SHOWN_LEFT_OUT = 20  # names of files and folders


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
    manifest = existing_manifest(output, args.out)
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
    manifest = existing_manifest(output, args.out)
    for split in found:
        listed = manifest.splits.get(split) if manifest else None
        if listed is None or INDEX_NAME not in output.sizes(split) or Journal(output, split).identity():
            return False
        now = listed.identity.model_copy(update={"seed": args.seed, "options": _options(args), "tools": _tools()})
        if listed.identity.differences(now):
            return False
    return True


def look_again(conversion: Conversion) -> None:
    """See which splits the output has by now, where other machines may have completed some."""
    conversion.manifest = existing_manifest(conversion.output, conversion.args.out)
    for split in conversion.splits:
        split.complete = _is_complete(conversion, split)


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


def _is_complete(conversion: Conversion, split: Split) -> bool:
    """Whether the output has the split already; False: it has nothing of it, or a part that can be gone on with."""
    output, out, manifest = conversion.output, conversion.args.out, conversion.manifest
    begun = Journal(output, split.name).identity()
    files = our_files(output, split.name)
    if begun is None and files and not (manifest and split.name in manifest.splits):
        # Another machine may have completed it just now: the plan goes last.
        manifest = conversion.manifest = existing_manifest(output, out)
    listed = manifest.splits.get(split.name) if manifest else None
    there = begun or (listed.identity if listed and INDEX_NAME in files else None)
    if there:
        found = differences(conversion, split, there)
        if begun and found and not files:
            return False  # nothing is lost with it
        if found:
            raise UsageError(
                f"--out {out} has {'a part of ' * bool(begun)}{split.name} that was created with other settings:\n  "
                + "\n  ".join(found)
                + "\nRepeat the command that made it, choose another --out, or replace it with --overwrite"
            )
        return begun is None
    if files or listed:
        seen = f"{len(files):,} files of a conversion, such as {files[0]}" if files else "an entry in the manifest"
        raise UsageError(f"--out {out} already has {split.name}: {seen}. Replace it with --overwrite")
    return False


def _refuse_other_classes(conversion: Conversion) -> None:
    """The splits of one dataset have one list of classes."""
    kept, names = kept_manifest(conversion), conversion.names
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
    args, kept = conversion.args, kept_manifest(conversion)
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
