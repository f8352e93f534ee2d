"""Which samples go into which shard, at which place. Pure functions of the source's listing, the seed and the options.

All randomness is a keyed hash, so that the outcome depends on no library's version and a larger subset contains the
smaller one.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from convert.sources import Listing, Sample
from imagestream.mds.shards import SAMPLE_OVERHEAD_BYTES, ShardFormat, empty_shard_bytes


@dataclass(frozen=True, slots=True)
class ShardTask:
    """All that decides what one shard holds."""

    split: str
    index: int
    samples: tuple[tuple[int, Sample], ...]  # (sample id, sample), in the shard's order

    @property
    def name(self) -> str:
        """For messages and for the journal: `train/00003`."""
        return f"{self.split}/{self.index:05}"


def choose_classes(names: Sequence[str], wanted: int | Sequence[str] | None, *, seed: int) -> list[str]:
    """The classes to convert, in the order of `names`: all, some number drawn by the seed, or those named.

    Raises:
        ValueError: more are wanted than there are, or one of them is not there.
    """
    if wanted is None:
        return list(names)
    if isinstance(wanted, int):
        if wanted > len(names):
            raise ValueError(f"--classes {wanted}: the source has {len(names):,}")
        drawn = set(sorted(names, key=lambda name: _rank(f"class\0{seed}\0{name}"))[:wanted])
        return [name for name in names if name in drawn]
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise ValueError(f"--classes: the source has no {', '.join(unknown[:5])}; its classes are like {names[0]}")
    return [name for name in names if name in wanted]


def choose_samples(
    listing: Listing, *, names: Sequence[str], chosen: Sequence[str], seed: int, per_class: int | None
) -> Listing:
    """The part of a listing that belongs to the chosen classes, labelled by position among them.

    Args:
        names: the classes by which the listing is labelled.
        per_class: keep at most so many samples of each class, drawn by the seed; None keeps all.
    """
    label_of = {names.index(name): label for label, name in enumerate(chosen)}
    by_class: dict[int, list[Sample]] = defaultdict(list)
    for sample in listing.samples:
        if sample.label in label_of:
            by_class[sample.label].append(sample)
    kept: list[Sample] = []
    for label, samples in sorted(by_class.items()):
        if per_class is not None:
            drawn = set(sorted(samples, key=lambda sample: _rank(f"sample\0{seed}\0{sample.key}"))[:per_class])
            samples = [sample for sample in samples if sample in drawn]
        kept += (replace(sample, label=label_of[label]) for sample in samples)
    return replace(listing, samples=tuple(kept))


def shuffled_ids(count: int, *, split: str, seed: int) -> list[int]:
    """The ids 0 to count - 1 in the order in which the shards hold them."""
    return sorted(range(count), key=lambda sample_id: _rank(f"{seed}\0{split}\0{sample_id}"))


def plan_shards(sizes_bytes: Sequence[int], form: ShardFormat) -> Iterator[range]:
    """Cut a sequence of images, given by size, into runs that fill a shard up to the limit.

    An image larger than the limit has a shard of its own.
    """
    start, filled = 0, empty_shard_bytes(form)
    for position, size in enumerate(sizes_bytes):
        size += SAMPLE_OVERHEAD_BYTES
        if position > start and filled + size > form.size_limit_bytes:
            yield range(start, position)
            start, filled = position, empty_shard_bytes(form)
        filled += size
    if start < len(sizes_bytes):
        yield range(start, len(sizes_bytes))


def plan_split(listing: Listing, *, seed: int, form: ShardFormat, stored_bytes: Sequence[int]) -> list[ShardTask]:
    """The shards of a split: which samples each one holds, in which order.

    Args:
        stored_bytes: for each sample, by id, the size it is expected to have in a shard.
    """
    ids = shuffled_ids(len(listing.samples), split=listing.split, seed=seed)
    runs = plan_shards([stored_bytes[sample_id] for sample_id in ids], form)
    return [
        ShardTask(listing.split, index, tuple((ids[at], listing.samples[ids[at]]) for at in run))
        for index, run in enumerate(runs)
    ]


def listing_hash(listing: Listing, classes: Sequence[str]) -> str:
    """SHA-256 (hex) over the classes and the name, label and size of each sample, in order."""
    digest = hashlib.sha256("\0".join(classes).encode())
    for sample in listing.samples:
        digest.update(f"\n{sample.key}\0{sample.label}\0{sample.size_bytes}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _rank(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()
