"""Changes of one image: Composer's and torchvision's pixels, decided by (seed, epoch, position) alone."""

import pickle
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps

from imagestream.data.per_sample import ImageFunction, PerSample
from imagestream.decode.native import library
from train.config.augmentations import AugMix, PerSampleAlgorithm, RandAugment, RandomErasing, TrivialAugment

RAND, MIX = RandAugment(name="randaugment"), AugMix(name="augmix")
TRIVIAL, ERASING = TrivialAugment(name="trivial_augment"), RandomErasing(name="random_erasing", probability=1.0)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
needs_native = pytest.mark.skipif(not library.is_built(), reason="not built: python imagestream/decode/build.py")
KEYS = [(0, 4), (0, 9), (1, 4), (1, 700_000)]


def batch(count: int = len(KEYS)) -> torch.Tensor:
    one = torch.randint(0, 256, (1, 32, 32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return one.repeat(count, 1, 1, 1)


def applied(
    algorithms: Sequence[PerSampleAlgorithm], keys: Sequence[tuple[int, int]], seed: int = 17
) -> tuple[torch.Tensor, torch.Tensor]:
    images = batch(len(keys))
    draws = PerSample([algorithm.policy(MEAN) for algorithm in algorithms], seed=seed)(images, keys)
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


def photograph(px: int = 64) -> Image.Image:
    """An image with edges, slopes and all brightnesses."""
    rows, columns = np.mgrid[0:px, 0:px]
    channels = [rows * 4 % 256, (rows * columns) % 256, 255 - columns * 3 % 256]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


@pytest.mark.parametrize("probability", [0.1, 1.0])
def test_erasing_is_torchvisions_to_a_hundredth_of_a_standard_deviation(probability: float) -> None:
    ours = RandomErasing(name="random_erasing", probability=probability).policy(MEAN)
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


def test_it_can_be_sent_to_a_worker() -> None:
    images, again = batch(), batch()
    changed = PerSample([RAND.policy(MEAN)], seed=1)
    changed(images, KEYS)
    pickle.loads(pickle.dumps(changed))(again, KEYS)
    assert torch.equal(images, again)


def drawing(image: Image.Image) -> Image.Image:
    """A function that is no policy, and draws from everything."""
    if np.random.random() + random.random() + torch.rand(1).item() > 1.5:
        return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return ImageOps.mirror(image)


@needs_native
def test_policies_between_other_functions_have_the_same_pixels_in_c() -> None:
    """A function between two policies sees what the first has made."""
    functions: list[ImageFunction] = [
        TRIVIAL.policy(MEAN),
        drawing,
        RAND.policy(MEAN),
        MIX.policy(MEAN),
        drawing,
        ERASING.policy(MEAN),
    ]
    keys = [(epoch, position) for epoch in range(3) for position in range(20)]
    for some in (functions, functions[:1], functions[1:4], functions[2:3], functions[5:], [drawing]):
        by_pillow, in_c = batch(len(keys)), batch(len(keys))
        draws = PerSample(some, seed=17)(by_pillow, keys)
        assert torch.equal(PerSample(some, seed=17, in_c=True)(in_c, keys), draws)
        assert torch.equal(in_c, by_pillow)


@pytest.mark.parametrize("in_c", [False, pytest.param(True, marks=needs_native)])
@pytest.mark.parametrize("functions", [[drawing], [RAND.policy(MEAN)], [MIX.policy(MEAN)], [TRIVIAL.policy(MEAN)]])
def test_the_global_generators_go_on_as_if_nothing_had_been_drawn(functions: list[ImageFunction], in_c: bool) -> None:
    def states() -> tuple[object, ...]:
        return str(np.random.get_state()), random.getstate(), torch.get_rng_state().tolist()

    before = states()
    PerSample(functions, seed=17, in_c=in_c)(batch(), KEYS)
    assert states() == before
