"""MixUp or CutMix: what is drawn, what is mixed, and that another number of ranks mixes the same images."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from composer.core import Event
from composer.utils import batch_get, batch_set
from streaming.base.partition import get_partitions
from torch import Tensor, nn
from torchvision.transforms import v2

from train.mixing import MixUpOrCutMix, box_of, cut, generator_of, partners
from train.model import ImageClassifier

CLASSES = 5


def classifier() -> nn.Module:
    """With a head that is a convolution, as timm's dla, dpn and resnetv2 have it."""
    model = ImageClassifier(nn.Sequential(nn.Conv2d(3, CLASSES, 1), nn.Flatten()), "cross_entropy")
    model.num_classes = CLASSES
    return nn.ModuleDict({"module": model})  # as DDP has it


def mixed(algorithm: MixUpOrCutMix, images: Tensor, labels: Tensor, *, batch: int, seed: int = 17) -> Any:
    state: Any = SimpleNamespace(
        batch=(images, labels),
        rank_zero_seed=seed,
        timestamp=SimpleNamespace(batch=batch),
        model=classifier(),
    )
    state.batch_get_item = lambda key: batch_get(state.batch, key)
    state.batch_set_item = lambda key, value: setattr(state, "batch", batch_set(state.batch, key, value=value))
    assert algorithm.match(Event.AFTER_DATALOADER, state) and not algorithm.match(Event.BEFORE_FORWARD, state)
    algorithm.apply(Event.AFTER_DATALOADER, state, None)
    return state.batch


def painted(count: int) -> tuple[Tensor, Tensor]:
    """Images of which each pixel is its class's channel."""
    labels = torch.arange(count) % CLASSES
    images = nn.functional.one_hot(labels, CLASSES).float()[:, :, None, None].expand(-1, -1, 16, 24).clone()
    return images, labels


def algorithm(**changed: float) -> MixUpOrCutMix:
    usual = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "mixup_fraction": 0.5, "mixed_fraction": 1.0}
    return MixUpOrCutMix(**(usual | changed))


@pytest.mark.parametrize("count", [8, 7, 1])
def test_the_targets_are_the_shares_that_the_pixels_show(count: int) -> None:
    kinds = set()
    for batch in range(40):
        images, labels = painted(count)
        before = images.clone()
        new, targets = mixed(algorithm(), images, labels, batch=batch)
        assert torch.equal(images, before)  # the loader's own memory
        torch.testing.assert_close(new.mean(dim=(2, 3)), targets)
        kinds.add("cutmix" if set(new.unique().tolist()) <= {0.0, 1.0} else "mixup")
    assert kinds == ({"cutmix", "mixup"} if count > 1 else {"cutmix"})  # one alone is mixed with itself


@pytest.mark.slow
def test_how_often_and_how_much_is_as_configured() -> None:
    images, labels = painted(8)
    wanted = algorithm(mixup_fraction=0.25, mixed_fraction=0.8, mixup_alpha=1.0)
    counts, shares = dict.fromkeys(("mixup", "cutmix", "none"), 0), []
    for batch in range(2000):
        new, targets = mixed(wanted, images, labels, batch=batch)
        if targets.ndim == 1:
            assert new is images
            counts["none"] += 1
        elif set(new.unique().tolist()) <= {0.0, 1.0}:
            counts["cutmix"] += 1
        else:
            counts["mixup"] += 1
            shares.append(float(targets[0, 0]))
    assert [counts[kind] / 2000 for kind in counts] == pytest.approx([0.2, 0.6, 0.2], abs=0.03)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05) and np.std(shares) == pytest.approx(12**-0.5, abs=0.03)


def own_shares(wanted: MixUpOrCutMix, batches: int) -> tuple[list[float], list[float]]:
    """How much of themselves images keep, batch by batch: those of MixUp, and those of CutMix."""
    shares: tuple[list[float], list[float]] = ([], [])
    for batch in range(batches):
        new, targets = mixed(wanted, *painted(8), batch=batch)
        shares[set(new.unique().tolist()) <= {0.0, 1.0}].append(float(targets[0, 0]))
    return shares


def distance(one: list[float], other: list[float]) -> float:
    """Kolmogorov's and Smirnov's: the largest between two cumulative distributions; below 1.95 sqrt(1/n + 1/m)."""
    at = np.sort([*one, *other])
    below = [np.searchsorted(np.sort(values), at, side="right") / len(values) for values in (one, other)]
    return float(np.abs(below[0] - below[1]).max() / np.sqrt(1 / len(one) + 1 / len(other)))


@pytest.mark.slow
def test_images_keep_as_much_of_themselves_as_by_torchvisions_own() -> None:
    """torchvision-v2's figures: RandomChoice of MixUp(0.2) and CutMix(1.0), in references/classification."""
    torch.manual_seed(3)
    theirs: tuple[list[float], list[float]] = ([], [])
    for shares, change in zip(theirs, (v2.MixUp(alpha=0.2, num_classes=8), v2.CutMix(num_classes=8)), strict=True):
        shares += [float(change(torch.zeros(8, 3, 16, 24), torch.arange(8))[1][0, 0]) for _ in range(800)]
    ours = own_shares(algorithm(), 1600)
    assert len(ours[0]) / 1600 == pytest.approx(0.5, abs=0.05)
    assert distance(ours[0], theirs[0]) < 1.95 and distance(ours[1], theirs[1]) < 1.95
    assert distance(own_shares(algorithm(mixup_alpha=1.0), 800)[0], theirs[0]) > 3  # it would tell others


def test_the_draws_follow_from_seed_and_batch_alone() -> None:
    images, labels = painted(8)
    first = [mixed(algorithm(), images, labels, batch=batch)[0] for batch in range(4)]
    torch.manual_seed(123)
    np.random.seed(123)
    again = [mixed(algorithm(), images, labels, batch=batch)[0] for batch in range(4)]
    assert all(map(torch.equal, first, again))
    assert not any(torch.equal(mixed(algorithm(), images, labels, batch=b, seed=18)[0], first[b]) for b in range(4))


def test_boxes_are_cutmixs_own() -> None:
    """Of a share of the area, around any pixel alike, cut off at the edges."""
    boxes = [box_of(generator_of(3, batch), height=40, width=80, kept_share=0.75) for batch in range(3000)]
    assert max(rows.stop for rows, _ in boxes) > 40  # a slice beyond the edge ends at it
    assert {min(rows.stop, 40) - rows.start for rows, _ in boxes if rows.start >= 10 and rows.stop <= 40} == {20}
    inside = np.zeros((40, 80))
    for rows, columns in boxes:
        inside[rows, columns] += 1
    assert inside[20, 40] > 2.5 * inside[0, 0] > 0
    images = torch.zeros(2, 3, 40, 80)
    images[1] = 1.0
    for box in boxes[:50]:
        new, own = cut(images, box)
        assert own == pytest.approx(1 - float(new[0].mean()), abs=1e-6)
    assert cut(images, (slice(5, 5), slice(3, 3)))[1] == 1.0


@pytest.mark.parametrize("canonical_nodes", [1, 8])
def test_on_another_number_of_ranks_nodes_and_workers_the_same_images_are_mixed(canonical_nodes: int) -> None:
    def pairs(nodes: int, ranks: int, workers: int) -> list[set[tuple[int, int]]]:
        size = 64 // (nodes * ranks)
        ids = torch.from_numpy(get_partitions("relaxed", 4000, canonical_nodes, nodes, ranks, workers, size))
        found = []
        for batch in range(20):
            here = ids[:, :, batch % workers, batch // workers].reshape(-1, size)
            found.append({pair for mine in here for pair in zip(mine.tolist(), partners(mine).tolist(), strict=True)})
        return found

    wanted = pairs(1, 1, 1)
    assert all(len(batch) == 64 for batch in wanted)
    for nodes, ranks, workers in [(1, 2, 1), (1, 8, 3), (2, 2, 2), (4, 4, 1), (2, 8, 5)]:
        if nodes <= canonical_nodes:
            assert pairs(nodes, ranks, workers) == wanted
