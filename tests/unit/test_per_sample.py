"""Changes of one image: Composer's and torchvision's pixels, decided by (seed, epoch, position) alone."""

import pickle
from collections.abc import Sequence

import composer.functional
import numpy as np
import pytest
import torch
import torchvision
from composer.algorithms.utils import augmentation_sets
from PIL import Image
from torchvision.transforms import InterpolationMode, TrivialAugmentWide

from imagestream.data.per_sample import PerSample, _seeded
from train.config.algorithms import AugMix, PerSampleAlgorithm, RandAugment, RandomErasing, TrivialAugment

RAND, MIX = RandAugment(name="randaugment"), AugMix(name="augmix")
TRIVIAL, ERASING = TrivialAugment(name="trivial_augment"), RandomErasing(name="random_erasing", probability=1.0)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
KEYS = [(0, 4), (0, 9), (1, 4), (1, 700_000)]


def batch(count: int = len(KEYS)) -> torch.Tensor:
    one = torch.randint(0, 256, (1, 32, 32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return one.repeat(count, 1, 1, 1)


def applied(
    algorithms: Sequence[PerSampleAlgorithm], keys: Sequence[tuple[int, int]], seed: int = 17
) -> tuple[torch.Tensor, torch.Tensor]:
    images = batch(len(keys))
    draws = PerSample([algorithm.on_image(MEAN) for algorithm in algorithms], seed=seed)(images, keys)
    return images, draws


@pytest.mark.parametrize(
    "algorithms",
    [[RAND], [MIX], [RAND, MIX], [TRIVIAL, ERASING]],
    ids=["randaugment", "augmix", "both", "trivial_augment"],
)
def test_a_sample_depends_on_its_key_and_not_on_its_batch_or_on_what_was_drawn_before(
    algorithms: list[PerSampleAlgorithm],
) -> None:
    images, draws = applied(algorithms, KEYS)
    for index in reversed(range(len(KEYS))):
        np.random.seed(index)
        alone, draw = applied(algorithms, KEYS[index : index + 1])
        assert torch.equal(alone[0], images[index])
        assert draw[0] == draws[index]
    assert len({image.numpy().tobytes() for image in images}) == len(KEYS)
    others, other_draws = applied(algorithms, KEYS, seed=18)
    assert not torch.equal(others, images) and not (other_draws == draws).any()
    assert len({*draws.tolist()}) == len(KEYS)


def test_the_pixels_are_those_of_composers_functions() -> None:
    images, _ = applied([RAND, MIX], KEYS)
    for index, (epoch, position) in enumerate(KEYS):
        with _seeded(f"17/{epoch}/{position}/per sample"):
            image = Image.fromarray(batch(1)[0].numpy())
            image = composer.functional.randaugment_image(image, 9, 2, augmentation_sets["all"])
            image = composer.functional.augmix_image(image, 3, -1, 3, 1.0, augmentation_sets["all"])
        assert np.array_equal(np.asarray(image), images[index].numpy())


def photograph(px: int = 64) -> Image.Image:
    """An image with edges, slopes and all brightnesses."""
    rows, columns = np.mgrid[0:px, 0:px]
    channels = [rows * 4 % 256, (rows * columns) % 256, 255 - columns * 3 % 256]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_trivial_augment_is_torchvisions(interpolation: str) -> None:
    wanted = TrivialAugment.model_validate({"name": "trivial_augment", "interpolation": interpolation})
    ours, theirs = wanted.on_image(MEAN), TrivialAugmentWide(interpolation=InterpolationMode(interpolation))
    results = set()
    for seed in range(400):
        torch.manual_seed(seed)
        mine = ours(photograph())
        torch.manual_seed(seed)
        assert np.array_equal(np.asarray(mine), np.asarray(theirs(photograph())))
        results.add(mine.tobytes())
    assert len(results) > 200  # of 14 kinds, 11 of them in 31 strengths


@pytest.mark.parametrize("probability", [0.1, 1.0])
def test_erasing_is_torchvisions_to_a_hundredth_of_a_standard_deviation(probability: float) -> None:
    ours = RandomErasing(name="random_erasing", probability=probability).on_image(MEAN)
    theirs, erased = torchvision.transforms.RandomErasing(probability), 0
    for seed in range(200):
        torch.manual_seed(seed)
        mine = normalised(ours(photograph()))
        torch.manual_seed(seed)
        other = theirs(normalised(photograph()))
        assert torch.allclose(mine, other, rtol=0, atol=0.01)
        erased += not torch.equal(other, normalised(photograph()))
    assert abs(erased / 200 - probability) <= 0.06


def normalised(image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def test_the_ledger_sees_another_number_of_changes() -> None:
    assert not (applied([RAND], KEYS)[1] == applied([RandAugment(name="randaugment", depth=1)], KEYS)[1]).any()


def test_numpys_generator_goes_on_as_if_nothing_had_been_drawn() -> None:
    np.random.seed(3)
    expected = np.random.random(3)
    np.random.seed(3)
    applied([RAND, MIX], KEYS)
    assert np.array_equal(np.random.random(3), expected)


def test_it_can_be_sent_to_a_worker() -> None:
    images, again = batch(), batch()
    changed = PerSample([RAND.on_image(MEAN)], seed=1)
    changed(images, KEYS)
    pickle.loads(pickle.dumps(changed))(again, KEYS)
    assert torch.equal(images, again)
