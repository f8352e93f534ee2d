"""What an evaluation finds for the page is exact, the same for any ranks, and changes nothing."""

import base64
import io
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import train.record.evaluated as evaluated_module
from imagestream.data.dataset import IGNORED_LABEL
from train.record.evaluated import FIRST, MISTAKES, Evaluated
from train.record.pictures import THUMBNAIL_PX, TrainingCrops, as_data_uris, thumbnails

CLASSES, PX = 7, 32
MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]


class Ranks:
    """Stands in for Composer's `dist` in threads that are ranks."""

    def __init__(self, size: int) -> None:
        self.size, self._local = size, threading.local()
        self._barrier = threading.Barrier(size)
        self._slots: list[Any] = [None] * size

    def get_world_size(self) -> int:
        return self.size

    def get_global_rank(self) -> int:
        return int(self._local.rank)

    def all_gather_object(self, value: Any) -> list[Any]:
        self._slots[self._local.rank] = value
        self._barrier.wait(30)
        found = [_copied(slot) for slot in self._slots]
        self._barrier.wait(30)
        return found

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        results: list[Any] = [None] * self.size

        def of(rank: int) -> None:
            self._local.rank = rank
            results[rank] = work(rank)

        threads = [threading.Thread(target=of, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return results


def _copied(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def generators() -> list[Any]:
    """The states of all global generators."""
    numpys: Any = np.random.get_state()
    return [torch.get_rng_state().tolist(), random.getstate(), numpys[1].tolist()]


def split(samples: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, logits with many ties, and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((samples, 3, PX, PX), generator=generator) * 4 - 2
    logits = torch.randint(0, 4, (samples, CLASSES), generator=generator).float()
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    return images, logits, labels


def evaluate(monkeypatch: pytest.MonkeyPatch, samples: int, ranks: int, batch: int) -> list[dict[str, Any]]:
    """What each rank gathers of the split, read as StreamingEvalImages does."""
    world = Ranks(ranks)
    monkeypatch.setattr(evaluated_module, "dist", world)
    images, logits, labels = split(samples)
    each = -(-samples // ranks)

    def of(rank: int) -> Any:
        evaluated = Evaluated(MEAN, STD)
        places = [(rank + ranks * at) for at in range(each)]
        mine = [place if place < samples else samples - 1 for place in places]
        my_labels = torch.tensor([int(labels[place]) if place < samples else IGNORED_LABEL for place in places])
        for _ in range(2):  # the evaluation before leaves nothing behind
            evaluated.start()
            for at in range(0, each, batch):
                part = mine[at : at + batch]
                evaluated.add(images[part], logits[part], my_labels[at : at + batch])
        return evaluated.gather()

    return world.run(of)


def test_the_figures_are_those_of_a_plain_count(monkeypatch: pytest.MonkeyPatch) -> None:
    _, logits, labels = split(100)
    (found,) = evaluate(monkeypatch, 100, ranks=1, batch=16)
    best = logits.topk(5, dim=1).indices
    matrix = np.zeros((CLASSES, CLASSES), int)
    for label, predicted in zip(labels.tolist(), best[:, 0].tolist(), strict=True):
        matrix[label, predicted] += 1
    assert {(label, predicted): count for label, predicted, count in found["matrix"]} == {
        (int(a), int(b)): int(matrix[a, b]) for a, b in np.argwhere(matrix)
    }
    among = (best == labels[:, None]).any(dim=1)
    assert found["classes"] == [
        [int(matrix[label].sum()), int(matrix[label, label]), int(among[labels == label].sum())]
        for label in range(CLASSES)
    ]
    wrong = [pair for pair in found["matrix"] if pair[0] != pair[1]]
    assert found["pairs"] == sorted(wrong, key=lambda pair: (-pair[2], pair[0], pair[1]))[:30]
    assert [row["position"] for row in found["first"]] == list(range(FIRST))


def test_the_mistakes_are_the_most_confident_ones_and_have_their_own_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    images, logits, labels = split(100)
    (found,) = evaluate(monkeypatch, 100, ranks=1, batch=16)
    best = logits.topk(5, dim=1).indices[:, 0]
    sure = logits.softmax(dim=1).gather(1, best[:, None])[:, 0]
    wrong = [at for at in range(100) if best[at] != labels[at]]
    expected = sorted(wrong, key=lambda at: (-float(sure[at]), at))[:MISTAKES]
    assert [row["position"] for row in found["mistakes"]] == expected
    assert [(row["label"], row["predicted"]) for row in found["mistakes"]] == [
        (int(labels[at]), int(best[at])) for at in expected
    ]
    assert [row["picture"] for row in found["mistakes"]] == as_data_uris(thumbnails(images[expected], MEAN, STD))


@pytest.mark.parametrize(("samples", "ranks", "batch"), [(100, 2, 8), (100, 3, 5), (101, 4, 16), (5, 3, 4), (2, 4, 1)])
def test_any_number_of_ranks_finds_the_same(
    monkeypatch: pytest.MonkeyPatch, samples: int, ranks: int, batch: int
) -> None:
    (alone,) = evaluate(monkeypatch, samples, ranks=1, batch=16)
    together = evaluate(monkeypatch, samples, ranks=ranks, batch=batch)
    assert together == [alone] * ranks


def test_a_gpu_which_is_not_asked_for_the_new_ones_has_the_same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    (asked,) = evaluate(monkeypatch, 100, ranks=1, batch=16)
    monkeypatch.setattr(evaluated_module, "_rows_to_fill", lambda is_new: torch.arange(len(is_new)))
    assert evaluate(monkeypatch, 100, ranks=1, batch=16) == [asked]


def test_it_draws_nothing_and_leaves_the_batch_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before = generators()
    images, logits, labels = split(10)
    kept = images.clone(), logits.clone(), labels.clone()
    monkeypatch.setattr(evaluated_module, "dist", world := Ranks(1))

    def work(_: int) -> Any:
        evaluated = Evaluated(MEAN, STD)
        evaluated.add(images, logits, labels)
        return evaluated.gather()

    world.run(work)
    assert all(torch.equal(*pair) for pair in zip((images, logits, labels), kept, strict=True))
    assert generators() == before


def test_an_evaluation_of_nothing_has_no_details() -> None:
    assert Evaluated(MEAN, STD).gather() == {}


def test_a_thumbnail_has_the_pixels_of_the_image() -> None:
    pixels = torch.randint(0, 256, (2, 3, PX, PX), generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    assert torch.equal(thumbnails((pixels - mean) / std, MEAN, STD), pixels.to(torch.uint8))
    assert thumbnails(torch.zeros(1, 3, 224, 224), MEAN, STD).shape == (1, 3, THUMBNAIL_PX, THUMBNAIL_PX)
    (uri,) = as_data_uris(torch.full((1, 3, 16, 24), 200, dtype=torch.uint8))
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))
    assert image.size == (24, 16) and image.format == "JPEG"


def test_crops_are_of_an_epochs_first_batch_also_after_a_resume() -> None:
    """In a new process the batch after a checkpoint is the first one, and its crops are not taken."""

    def batch_of(number: int) -> torch.Tensor:
        return torch.full((4, 3, PX, PX), float(number) / 10)

    undisturbed, resumed = TrainingCrops(), TrainingCrops()
    for number in range(7):
        if number == 5:
            state = undisturbed.state()
            resumed.load(state["batch"], state["image_px"], state["pictures"])  # type: ignore[arg-type]
        for crops in (undisturbed, resumed) if number >= 5 else (undisturbed,):
            for part in batch_of(number).split(2):  # as microbatches
                crops.take(part, MEAN, STD, batch=number, is_first=number % 4 == 0)
    expected = as_data_uris(thumbnails(batch_of(4), MEAN, STD))
    assert undisturbed.state() == resumed.state() == {"batch": 4, "image_px": PX, "pictures": expected}


def test_a_process_without_any_crops_takes_those_of_its_next_batch() -> None:
    crops = TrainingCrops()
    crops.take(torch.zeros(40, 3, PX, PX), MEAN, STD, batch=3, is_first=False)
    crops.take(torch.ones(40, 3, PX, PX), MEAN, STD, batch=4, is_first=False)
    state = crops.state()
    assert state["batch"] == 3 and len(state["pictures"]) == 24  # type: ignore[arg-type]
