"""Which sample goes where: a pure function of the listing, the seed and the options."""

import numpy as np
import pytest

from convert.plan import choose_classes, choose_samples, listing_hash, plan_shards, plan_split, shuffled_ids
from convert.sources import Listing, Sample
from imagestream.mds.shards import ShardFormat, encode_sample, encode_shard

FORM = ShardFormat(4000)
ORDER_OF_TEN = [9, 7, 4, 1, 2, 3, 8, 6, 0, 5]
NAMES = [f"n{number:02}" for number in range(20)]


def listing(per_class: int = 12) -> Listing:
    keys = [(f"train/{name}/{n:04}.JPEG", label) for label, name in enumerate(NAMES) for n in range(per_class)]
    return Listing("train", tuple(Sample(key, label, 100, file=key) for key, label in keys), {})


def test_the_order_is_a_permutation_that_depends_on_seed_and_split() -> None:
    order = shuffled_ids(500, split="train", seed=0)
    assert sorted(order) == list(range(500)) != order
    assert order == shuffled_ids(500, split="train", seed=0)
    assert order != shuffled_ids(500, split="train", seed=1)
    assert order != shuffled_ids(500, split="val", seed=0)


def test_the_order_stays_the_same_from_release_to_release() -> None:
    assert shuffled_ids(10, split="train", seed=0) == ORDER_OF_TEN


def test_the_plan_covers_every_sample_once_in_order() -> None:
    sizes = [int(size) for size in np.random.default_rng(0).integers(1, 900, 200)]
    runs = list(plan_shards(sizes, FORM))
    assert [position for run in runs for position in run] == list(range(200))
    assert len(runs) > 10


def test_an_image_over_the_limit_has_a_shard_of_its_own() -> None:
    limit = FORM.size_limit_bytes
    assert list(plan_shards([limit * 2, 10, 10, limit * 2], FORM)) == [range(0, 1), range(1, 3), range(3, 4)]


def test_a_shard_is_filled_to_the_last_byte_of_the_limit() -> None:
    images = [bytes(300)] * 5
    size = len(encode_shard(0, [encode_sample(0, image, 0) for image in images], FORM).data)
    assert len(str(size)) == len(str(FORM.size_limit_bytes))  # the limit is written in the shard
    assert list(plan_shards([300] * 5, ShardFormat(size))) == [range(0, 5)]
    assert list(plan_shards([300] * 5, ShardFormat(size - 1))) == [range(0, 4), range(4, 5)]


def test_no_samples_make_no_shards() -> None:
    assert list(plan_shards([], FORM)) == []


def test_a_splits_plan_holds_each_sample_once_with_its_id() -> None:
    samples = listing().samples
    tasks = plan_split(listing(), seed=0, form=FORM, stored_bytes=[100] * len(samples))
    assert [task.name for task in tasks[:2]] == ["train/00000", "train/00001"]
    placed = [(sample_id, sample) for task in tasks for sample_id, sample in task.samples]
    assert placed != sorted(placed, key=lambda item: item[0])
    assert sorted(placed, key=lambda item: item[0]) == list(enumerate(samples))


def test_a_larger_number_of_classes_contains_the_smaller() -> None:
    few, more = choose_classes(NAMES, 5, seed=0), choose_classes(NAMES, 9, seed=0)
    assert len(few) == 5 and few == sorted(few) and set(few) < set(more)
    assert choose_classes(NAMES, 5, seed=1) != few
    assert choose_classes(NAMES, None, seed=0) == NAMES == choose_classes(NAMES, 20, seed=0)
    assert choose_classes(NAMES, ("n07", "n03"), seed=0) == ["n03", "n07"]


@pytest.mark.parametrize(
    ("wanted", "message"), [(21, "the source has 20"), (("n03", "cat"), "has no cat; .* like n00")]
)
def test_classes_that_are_not_there_are_named(wanted: int | tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_classes(NAMES, wanted, seed=0)


def test_a_larger_number_of_images_contains_the_smaller_in_the_same_order() -> None:
    chosen = ["n03", "n07"]
    few, more = (
        [sample.key for sample in choose_samples(listing(), names=NAMES, chosen=chosen, seed=0, per_class=n).samples]
        for n in (3, 8)
    )
    assert len(few) == 6 and [key for key in more if key in few] == few
    whole = choose_samples(listing(), names=NAMES, chosen=chosen, seed=0, per_class=99).samples
    assert [sample.label for sample in whole] == [0] * 12 + [1] * 12  # positions among the chosen
    assert [sample.key for sample in whole] == [key.key for key in listing().samples if key.label in (3, 7)]


def test_the_listings_hash_sees_names_labels_sizes_and_classes_but_not_where_the_bytes_are() -> None:
    one = Sample("train/a/1", 0, 100, file="x")

    def hash_of(sample: Sample, classes: list[str] = ["a", "b"]) -> str:  # noqa: B006  # never changed
        return listing_hash(Listing("train", (sample,), {}), classes)

    assert hash_of(one) == hash_of(Sample("train/a/1", 0, 100, file="images.tar", offset_bytes=512))
    others = [Sample("train/a/2", 0, 100, "x"), Sample("train/a/1", 1, 100, "x"), Sample("train/a/1", 0, 99, "x")]
    assert len({hash_of(one), hash_of(one, ["a", "c"]), *map(hash_of, others)}) == 5


def test_chosen_classes_keep_the_order_of_the_labels() -> None:
    names = ["0", "1", "2", "9", "10", "11"]
    assert choose_classes(names, ["10", "9"], seed=0) == ["9", "10"]
    drawn = choose_classes(names, 4, seed=0)
    assert drawn == sorted(drawn, key=names.index) and len(drawn) == 4
