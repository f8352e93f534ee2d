"""The library's public face: one class, in one process; `tests/integration/test_library_ranks.py` has several."""

import hashlib
import itertools
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import imagestream
from imagestream import CenterCrop, DataError, Loader, Normalize, RandomResizedCrop, StateError, StreamOptions, World
from imagestream.decode.native import library
from imagestream.loader import BatchOrderError
from tests.conftest import REPOSITORY
from train.config.run_config import load_config

SIZE, STEPS = 8, 12  # 100 images: 12 batches, 4 images left out


needs_native = pytest.mark.skipif(not library.is_built(), reason="not built: python imagestream/decode/build.py")


def loader_of(shards: Path, **changes: Any) -> Loader:
    """A small loader with the defaults of all that is not given."""
    settings: dict[str, Any] = {"batch_size": SIZE, "seed": 3, "crop": RandomResizedCrop(32), "num_workers": 0}
    return Loader(shards, **(settings | changes))


def seen(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> list[str]:
    """What came, batch by batch, to the last bit."""
    return [
        hashlib.sha256(images.contiguous().numpy().tobytes() + labels.numpy().tobytes()).hexdigest()[:12]
        for images, labels in batches
    ]


@pytest.fixture(scope="module")
def three_epochs(shards: Path) -> tuple[list[str], str | None]:
    """Of an undisturbed loader: its batches, and its ledger."""
    loader = loader_of(shards)
    return [one for _ in range(3) for one in seen(iter(loader))], loader.ledger


def test_an_epoch_is_shuffled_whole_batches_normalised_and_channels_last(shards: Path) -> None:
    loader = loader_of(shards)
    assert (len(loader), loader.steps_per_epoch, loader.epoch, loader.step) == (STEPS, STEPS, 0, -1)
    batches = list(loader)
    assert len(batches) == STEPS and (loader.epoch, loader.step) == (1, STEPS - 1)
    images, labels = batches[0]
    assert images.shape == (SIZE, 3, 32, 32) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64 and labels.shape == (SIZE,)
    first, second = torch.cat([labels for _, labels in batches]), torch.cat([labels for _, labels in loader])
    assert sorted(set(first.tolist())) == [0, 1, 2, 3] and not torch.equal(first, second)
    plain = loader_of(shards, normalize=None)
    for (raw, _), (images, _) in zip(plain, batches, strict=True):
        mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (Normalize().mean, Normalize().std))
        assert raw.dtype == torch.uint8 and torch.equal((raw - mean) / std, images)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("batches", [1, 5, STEPS - 1, STEPS, STEPS + 4])
def test_a_state_goes_on_with_the_next_batch_in_another_loader(
    shards: Path, three_epochs: tuple[list[str], str | None], batches: int, workers: int
) -> None:
    """Taken within the loop, as training loops do; through JSON, for it is plain numbers and text."""
    expected, ledger = three_epochs
    loader = loader_of(shards)
    endless = (batch for _ in itertools.count() for batch in loader)
    for _ in itertools.islice(endless, batches):
        state = json.loads(json.dumps(loader.state_dict()))
    other = loader_of(shards, num_workers=workers)
    other.load_state_dict(state)
    assert other.step == batches - 1
    rest = [one for _ in range(other.epoch, 3) for one in seen(iter(other))]
    assert rest == expected[batches:]
    assert other.ledger == ledger and other.state_dict()["epoch"] == 3


def test_a_state_of_an_ended_epoch_begins_the_next_one(shards: Path, three_epochs: tuple[list[str], Any]) -> None:
    loader, other = loader_of(shards), loader_of(shards)
    assert seen(iter(loader)) == three_epochs[0][:STEPS]
    other.load_state_dict(loader.state_dict())
    assert (other.epoch, seen(iter(other))) == (1, three_epochs[0][STEPS : 2 * STEPS])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_loader_can_go_back_and_forth_while_it_is_used(
    shards: Path, three_epochs: tuple[list[str], Any], workers: int
) -> None:
    expected, loader = three_epochs[0], loader_of(shards, num_workers=workers)
    states = [loader.state_dict()]
    for _ in range(3):
        for _ in loader:
            states.append(loader.state_dict())
    for place in (STEPS + 5, 3, 2 * STEPS + 1, 0):
        loader.load_state_dict(states[place])
        stop = (place // STEPS + 1) * STEPS
        assert seen(iter(loader)) == expected[place:stop], place


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loop_that_is_left_early_has_ended_its_epoch(
    shards: Path, three_epochs: tuple[list[str], Any], workers: int
) -> None:
    """As with any DataLoader: the next loop is the next epoch."""
    loader = loader_of(shards, num_workers=workers)
    for _ in range(2):
        for _ in loader:
            break
    assert (loader.epoch, loader.step) == (1, STEPS)
    assert seen(iter(loader)) == three_epochs[0][2 * STEPS :]


def test_two_iterators_at_once_are_refused(shards: Path) -> None:
    loader = loader_of(shards)
    first = iter(loader)
    next(first)
    next(iter(loader))
    with pytest.raises(BatchOrderError, match="this loader has a newer iterator"):
        next(first)


def test_an_evaluation_has_each_sample_once_and_in_order(shards: Path) -> None:
    loader = loader_of(shards, split="val", crop=CenterCrop(32))
    batches = list(loader)
    labels = torch.cat([labels for _, labels in batches])
    assert labels.tolist() == torch.cat([labels for _, labels in loader]).tolist()
    assert len(labels) == 23 and (labels >= 0).all() and len(batches) == len(loader) == 3
    assert loader.state_dict() == {}
    loader.load_state_dict({})


def test_several_loaders_of_one_split_live_side_by_side(shards: Path, three_epochs: tuple[list[str], Any]) -> None:
    one, two = loader_of(shards), loader_of(shards)
    pairs = list(zip(one, two, strict=True))
    assert seen(first for first, _ in pairs) == seen(second for _, second in pairs) == three_epochs[0][:STEPS]


def test_shards_are_fetched_into_a_cache(shards: Path, tmp_path: Path, three_epochs: tuple[list[str], Any]) -> None:
    loader = loader_of(shards, cache=tmp_path / "cache")
    assert seen(iter(loader)) == three_epochs[0][:STEPS]
    assert sorted(path.name for path in (tmp_path / "cache/train").glob("*.mds")) == sorted(
        path.name for path in (shards / "train").glob("*.mds")
    )
    with pytest.raises(DataError, match="another dataset's; give another folder"):
        loader_of(shards, split="val", cache=move(tmp_path / "cache/train", tmp_path / "other/val").parent)


def test_no_limit_of_a_cache_deletes_the_only_copy(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    there = sorted(copy.rglob("*"))
    options = StreamOptions(cache_limit_gb=1e-4, shuffle_block_size=8)
    for split in ("train", "val"):
        with pytest.raises(DataError, match=f"cache_limit_gb: 0.0001 would delete shards of {copy}, which holds the"):
            loader_of(copy, split=split, options=options)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/train").symlink_to(copy / "train")
    for limited in (options, StreamOptions()):
        with pytest.raises(DataError, match=f"{copy}/train: the cache is the same folder; to read the shards in place"):
            loader_of(copy, cache=tmp_path / "cache", options=limited)
    other = tmp_path / "other"
    shutil.copytree(shards, other)
    with pytest.raises(
        DataError, match=f"cache/train is a link to {copy}/train, outside of the cache {tmp_path}/cache"
    ):
        loader_of(other, cache=tmp_path / "cache", options=StreamOptions(cache_limit_gb=1.0, shuffle_block_size=8))
    assert sorted(copy.rglob("*")) == there


def move(path: Path, to: Path) -> Path:
    to.parent.mkdir()
    return path.rename(to)


def test_images_have_the_size_of_their_step(shards: Path) -> None:
    loader = loader_of(shards, crop=RandomResizedCrop(lambda step: 32 + 16 * (step // 5)))
    sizes = [images.shape[-1] for images, _ in loader]
    assert sizes == [32] * 5 + [48] * 5 + [64] * 2


@pytest.mark.parametrize("size", [0, 16.0, None])
def test_a_size_of_a_step_that_is_none_is_refused(shards: Path, size: Any) -> None:
    loader = loader_of(shards, crop=RandomResizedCrop(lambda step: size if step == 2 else 32))
    with pytest.raises(ValueError, match=r"size\(2\): .* must be a whole number from 1 to 4,096 px"):
        list(loader)


def test_the_defaults_are_those_of_a_run() -> None:
    data = load_config(REPOSITORY / "yamls/base.yaml", ["data.local=.", "checkpoint.save_folder=x"]).data
    options, normalize, crop = StreamOptions(), Normalize(), RandomResizedCrop(data.crop_size)
    assert {name: getattr(data, name) for name in vars(options)} == vars(options)
    assert (data.mean, data.std) == (normalize.mean, normalize.std)
    assert (data.crop_scale, data.flip_prob) == (crop.scale, crop.flip_prob)
    assert (data.crop_interpolation, data.eval_interpolation) == (crop.interpolation, CenterCrop(32).interpolation)
    assert data.crop_ratio == pytest.approx(crop.ratio, abs=1e-4)


def drawing(image: Image.Image) -> Image.Image:
    """Draws from each generator that torchvision's and Composer's functions use."""
    value = random.randrange(99) + int(np.random.randint(99)) + int(torch.randint(57, ()).item())
    return image.point([min(255, pixel + value) for pixel in range(256)] * 3)


def test_transforms_draw_by_their_sample_alone(shards: Path) -> None:
    loader, plain = loader_of(shards, transforms=[drawing]), loader_of(shards)
    expected = seen(iter(loader))
    assert expected != seen(iter(plain))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert seen(iter(loader_of(shards, transforms=[drawing]))) == expected
    assert before == (random.random(), np.random.rand(), torch.rand(1).item())


@pytest.mark.parametrize("decoder", ["pillow", pytest.param("native", marks=needs_native)])
def test_a_state_goes_on_with_the_same_augmentations_and_is_refused_with_others(shards: Path, decoder: str) -> None:
    transforms = [imagestream.TrivialAugment(), drawing, imagestream.ComposerRandAugment(depth=3)]
    loader = loader_of(shards, transforms=transforms, decoder=decoder)
    batches = iter(loader)
    next(batches)
    state, expected = loader.state_dict(), seen(batches)
    again = loader_of(shards, transforms=transforms, decoder=decoder, num_workers=1)
    again.load_state_dict(state)
    assert seen(iter(again)) == expected
    other = loader_of(shards, transforms=[*transforms[:2], imagestream.ComposerRandAugment(depth=2)], decoder=decoder)
    with pytest.raises(StateError, match=r"transforms was \[.*depth=3.* and is \[.*depth=2"):
        other.load_state_dict(state)
    with pytest.raises(StateError, match="transforms was None and is"):
        loader.load_state_dict(loader_of(shards, decoder=decoder).state_dict())
    with pytest.raises(StateError, match=r"transforms was \[.*depth=3.* and is None"):
        loader_of(shards, decoder=decoder).load_state_dict(state)


def test_a_transform_that_changes_an_images_size_is_refused(shards: Path) -> None:
    loader = loader_of(shards, transforms=[lambda image: image.resize((16, 16))])
    with pytest.raises(ValueError, match=r"made uint8 \(16, 16, 3\) of uint8 \(32, 32, 3\); they have to keep"):
        next(iter(loader))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"batch_size": 4}, "global_batch_size was 8 and is 4"),
        ({"crop": RandomResizedCrop(48)}, r"crop was \[32, .* and is \[48, "),
        ({"decoder": "pillow"}, "decoder was '.*' and is 'pillow"),
        ({"options": StreamOptions(shuffle_block_size=9)}, "shuffle was "),
        ({"split": "val", "batch_size": SIZE}, "fingerprint was "),
        ({"columns": ("x", "i")}, r"columns was \['x', 'y'\] and is \['x', 'i'\]"),
    ],
)
def test_a_state_of_another_loader_is_refused_with_both_values(
    shards: Path, changes: dict[str, Any], words: str
) -> None:
    if "decoder" in changes and str(loader_of(shards)._settings["decoder"]).startswith("pillow"):
        pytest.skip("the native decoder is not built")
    with pytest.raises(StateError, match=words):
        loader_of(shards, **changes).load_state_dict(loader_of(shards).state_dict())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (None, "no state of a training loader"),
        ({}, "no state of a training loader"),
        ({"format": 99}, r"of format 1 \(seen: 99\)"),
        ({"batch": STEPS + 1}, "damaged: epoch 0, batch 13 of 12"),
        ({"epoch": -1}, "damaged: epoch -1"),
        ({"epoch": "0"}, "damaged: epoch"),
        ({"settings": None, "order": []}, "damaged: settings, order"),
    ],
)
def test_a_damaged_state_is_refused(shards: Path, damage: Any, words: str) -> None:
    loader = loader_of(shards)
    with pytest.raises(StateError, match=words):
        loader.load_state_dict(damage if not damage else loader.state_dict() | damage)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop": 224}, "crop: 224 must be imagestream.RandomResizedCrop or imagestream.CenterCrop"),
        ({"batch_size": 0}, "batch_size: 0 must be a whole number from 1"),
        ({"batch_size": 8.0}, "batch_size: 8.0 must be a whole number from 1"),
        ({"batch_size": 101}, "100 samples, fewer than one global batch of 101; lower the batch size"),
        ({"seed": -1}, "seed: -1 must be a whole number from 0"),
        ({"num_workers": -1}, "num_workers: -1 must be a whole number from 0 to 256"),
        ({"num_workers": 257}, "num_workers: 257 must be a whole number from 0 to 256"),
        ({"transforms": drawing}, "transforms: .* must be a list of functions"),
        ({"transforms": [3]}, r"transforms: \[3\] must be a list of functions"),
        ({"split": "test"}, "test/index.json does not exist"),
        ({"columns": ("image", "y")}, r"give the names of the columns, as in columns: \{image: image, label: y\}"),
        ({"world": World(2, 2)}, "must have a rank from 0 to its size - 1"),
        ({"world": World(0, 4, 0, 2)}, "which need torch.distributed to share memory"),
        ({"options": StreamOptions(num_canonical_nodes=101)}, "101 is more than the 100 samples of the split"),
        (
            {"crop": RandomResizedCrop(32, interpolation="bicubic"), "resize_in": "dct"},
            "resize_in: 'dct' must be 'rgb' with a crop whose interpolation is bicubic",
        ),
        ({"crop": CenterCrop(32), "transforms": [drawing]}, "transforms: they are for training"),
    ],
)
def test_settings_out_of_range_are_refused(shards: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        loader_of(shards, **changes)


def test_machines_that_do_not_divide_may_go_on_and_not_begin(shards: Path) -> None:
    """Three machines with an order for two: as when a run that two began continues on three."""
    options = StreamOptions(num_canonical_nodes=2)
    alone = loader_of(shards, batch_size=12, options=options)
    next(iter(alone))
    with pytest.raises(DataError, match="2 and the 3 nodes of this run do not go together"):
        next(iter(loader_of(shards, batch_size=4, world=World(0, 3), options=options)))
    three = [loader_of(shards, batch_size=4, world=World(rank, 3), options=options) for rank in range(3)]
    for loader in three:
        loader.load_state_dict(alone.state_dict())
    again = loader_of(shards, batch_size=12, options=options)
    again.load_state_dict(alone.state_dict())
    batches = list(zip(again, *three, strict=True))
    assert len(batches) == 7
    for (whole, _), *parts in batches:
        pixels = sorted(image.numpy().tobytes() for image in whole)
        assert pixels == sorted(image.numpy().tobytes() for images, _ in parts for image in images)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomResizedCrop(0), "size: 0 must be a whole number from 1 to 4,096 px"),
        (lambda: RandomResizedCrop(64.5), "size: 64.5 must be a whole number"),  # type: ignore[arg-type]
        (lambda: RandomResizedCrop(True), "size: True must be a whole number"),
        (lambda: RandomResizedCrop(32, scale=(0.5, 0.1)), "scale: "),
        (lambda: RandomResizedCrop(32, ratio=(0, 1)), "ratio: "),
        (lambda: RandomResizedCrop(32, flip_prob=1.5), "flip_prob: 1.5 must be from 0 to 1"),
        (lambda: StreamOptions(shuffle_algo="py3"), "shuffle_algo: 'py3' must be one of py1e, "),  # type: ignore[arg-type]
        (lambda: StreamOptions(shuffle_block_size=0), "shuffle_block_size: 0 must be a whole number from 1 to 1,000,"),
        (lambda: StreamOptions(num_canonical_nodes=0), "num_canonical_nodes: 0 must be a whole number from 1"),
        (lambda: StreamOptions(predownload=-5), "predownload: -5 must be a whole number from 1"),
        (lambda: StreamOptions(prefetch_factor=0), "prefetch_factor: 0 must be a whole number from 1 to 1,000"),
        (
            lambda: StreamOptions(download_timeout_s=float("nan")),
            "download_timeout_s: nan must be above 0, and at most",
        ),
        (
            lambda: StreamOptions(stall_limit_s=300),
            "stall_limit_s: 300 must be above download_patience_s, which is 300",
        ),
        (lambda: StreamOptions(cache_limit_gb=0), "cache_limit_gb: 0 must be above 0, and at most 1,000,000"),
        (lambda: CenterCrop(32, resize=31), "resize: 31 must be at least size, which is 32"),
        (lambda: Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "multiply values on the scale of 0 to 1 by"),
        (lambda: Loader("s3://bucket/x", batch_size=8, crop=CenterCrop(8)), "cache: s3://bucket/x needs a folder"),
    ],
)
def test_parts_out_of_range_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.slow
def test_repeats_are_the_same_on_two_ranks_as_on_one_and_after_a_state(shards: Path) -> None:
    """100 images, each twice in a batch of 8: 12 batches of 4 different ones, so 48 of the images in an epoch."""
    crop = RandomResizedCrop(32, repeats=2)

    def rows(loader: Loader) -> list[list[tuple[int, str]]]:
        return [
            [
                (int(label), hashlib.sha256(image.numpy().tobytes()).hexdigest())
                for image, label in zip(*batch, strict=True)
            ]
            for batch in loader
        ]

    alone = loader_of(shards, crop=crop)
    assert (len(alone), alone.steps_per_epoch) == (STEPS, STEPS)
    epochs = [rows(alone), rows(alone)]
    for batch in epochs[0] + epochs[1]:
        assert len({image for _, image in batch}) == SIZE
        assert [label for label, _ in batch[::2]] == [label for label, _ in batch[1::2]]
    assert alone.ledger is not None
    ranks = [rows(loader_of(shards, crop=crop, batch_size=4, world=imagestream.World(rank, 2))) for rank in (0, 1)]
    assert [sorted(one + other) for one, other in zip(*ranks, strict=True)] == [sorted(batch) for batch in epochs[0]]

    first, second = loader_of(shards, crop=crop), loader_of(shards, crop=crop, num_workers=2)
    batches = iter(first)
    for _ in range(5):
        next(batches)
    second.load_state_dict(first.state_dict())
    assert rows(second) == epochs[0][5:] and rows(second) == epochs[1]
    with pytest.raises(StateError, match="crop was"):
        loader_of(shards).load_state_dict(second.state_dict())
    with pytest.raises(ValueError, match="batch_size: 8 must be a multiple of the crop's repeats, which are 3"):
        loader_of(shards, crop=RandomResizedCrop(32, repeats=3))


def test_the_public_names_are_there_without_importing_torch() -> None:
    code = "import sys, imagestream; print('torch' in sys.modules, *sorted(dir(imagestream)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    imports_torch, *names = done.stdout.split()
    assert imports_torch == "False" and set(imagestream.__all__) <= set(names), done.stderr
    assert all(hasattr(imagestream, name) for name in imagestream.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Lodaer'"):
        _ = imagestream.Lodaer
