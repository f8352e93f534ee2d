"""The model: exact metrics, Mosaic's initial weights, and a hash that tells two sets of weights apart."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from composer.core import Time, Timestamp
from composer.functional import apply_blurpool
from pydantic import ValidationError
from torch import nn

from imagestream.data.dataset import IGNORED_LABEL
from train.config.model import ModelConfig
from train.config.sections import (
    AdamWConfig,
    CosineSchedule,
    DecoupledSGDWConfig,
    LambConfig,
    LinearSchedule,
    Scheduler,
    SGDConfig,
    StepSchedule,
)
from train.model import MeanLoss, SampleCount, TopK, build_model, weights_sha256
from train.optim import OF_GROUPS, build_optimizer, build_scheduler


def config(**changes: object) -> ModelConfig:
    values = {"name": "resnet18", "num_classes": 10, "loss": "cross_entropy", "init": "mosaic"}
    return ModelConfig.model_validate(values | changes)


def test_metrics_are_exact_over_uneven_batches_and_leave_out_repeats() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(301, 10), torch.randint(0, 10, (301,))
    top1, top5, loss, count = TopK(1), TopK(5), MeanLoss(), SampleCount()
    for start in range(0, 301, 64):
        batch = logits[start : start + 64], labels[start : start + 64]
        for metric in (top1, top5, loss, count):
            metric.update(*batch)
    repeats = logits[:7] * 100, torch.full((7,), IGNORED_LABEL)
    for metric in (top1, top5, loss, count):
        metric.update(*repeats)
    order = logits.argsort(dim=1, descending=True)
    assert top1.compute().item() == sum(int(order[i, 0] == labels[i]) for i in range(301)) / 301
    assert top5.compute().item() == sum(labels[i] in order[i, :5] for i in range(301)) / 301
    assert count.compute().item() == 301
    assert loss.compute().item() == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)


def test_top5_of_fewer_than_five_classes_is_always_right() -> None:
    metric = TopK(5)
    metric.update(torch.randn(8, 3), torch.randint(0, 3, (8,)))
    assert metric.compute().item() == 1.0


def test_mosaic_initialisation_is_kaiming_and_uniform_batchnorm() -> None:
    torch.manual_seed(0)
    model: Any = build_model(config(loss="binary_cross_entropy"), 10).module
    conv = model.layer4[1].conv2.weight
    assert conv.std().item() == pytest.approx(math.sqrt(2 / (512 * 9)), rel=0.01)
    gains = torch.cat([m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    assert 0 <= gains.min() < 0.01
    assert 0.99 < gains.max() <= 1
    assert torch.equal(model.fc.bias, torch.full((10,), -math.log(10)))


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet50",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet34", "resnet101", "resnet152")),
    ],
)
def test_the_last_gammas_that_begin_at_zero_are_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    mine = build_model(config(name=name, init="torchvision", zero_init_last_gamma=True), 10).module
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(num_classes=10, zero_init_residual=True)
    assert all(map(torch.equal, mine.state_dict().values(), theirs.state_dict().values()))


@pytest.mark.parametrize(("name", "last", "blocks"), [("resnet18", "bn2", 8), ("resnet50", "bn3", 16)])
def test_they_begin_at_zero_although_mosaics_initialisation_draws_gammas(name: str, last: str, blocks: int) -> None:
    torch.manual_seed(0)
    zeroed = build_model(config(name=name, zero_init_last_gamma=True), 10).module.state_dict()
    torch.manual_seed(0)
    drawn = build_model(config(name=name), 10).module.state_dict()
    found = [key for key, value in zeroed.items() if not torch.equal(value, drawn[key])]
    assert len(found) == blocks and all(key.endswith(f".{last}.weight") for key in found)
    assert not any(zeroed[key].any() for key in found)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet18", 11.69), ("resnet34", 21.80), ("resnet50", 25.56), ("resnet101", 44.55), ("resnet152", 60.19)],
)
def test_each_resnet_has_its_published_size(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = build_model(config(name=name, init="torchvision"), 1000)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


def test_equal_weights_hash_alike_and_any_difference_shows() -> None:
    torch.manual_seed(0)
    model = build_model(config(), 10)
    torch.manual_seed(0)
    twin: Any = build_model(config(), 10)
    assert weights_sha256(model) == weights_sha256(twin)
    twin.metrics["samples"].update(torch.zeros(1, 10), torch.zeros(1))
    assert weights_sha256(model) == weights_sha256(twin)
    twin.module.bn1.running_mean[3] += 1e-7
    assert weights_sha256(model) != weights_sha256(twin)


MOMENTUM: dict[str, Any] = {"lr": 0.1, "weight_decay": 1e-4, "momentum": 0.9, "nesterov": False}
OPTIMIZERS: list[Any] = [
    SGDConfig(name="sgd", **MOMENTUM),
    DecoupledSGDWConfig(name="decoupled_sgdw", **MOMENTUM),
    AdamWConfig(name="adamw", lr=0.1, weight_decay=1e-4),
    LambConfig(name="lamb", lr=0.1, weight_decay=1e-4),
]


@pytest.mark.parametrize("section", OPTIMIZERS, ids=lambda section: str(section.name))
def test_each_optimizer_holds_every_parameter_once(section: Any) -> None:
    model = build_model(config(), 10)
    optimizer = build_optimizer(model, section, is_fused=False)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in model.parameters()]
    (group,) = optimizer.param_groups
    settings = section.model_dump(exclude={"name", *OF_GROUPS})
    assert {key: group[key] for key in settings} == settings


@pytest.mark.parametrize("section", OPTIMIZERS, ids=lambda section: str(section.name))
def test_batchnorm_may_go_without_decay_and_nothing_else(section: Any) -> None:
    model = build_model(config(name="resnet50"), 1000)
    section = section.model_copy(update={"decay_batchnorm": False})
    decayed, free = build_optimizer(model, section, is_fused=False).param_groups
    # 53 convolutions and the last layer's weight and bias; 53 BatchNorms, those of the shortcuts as well, of two each
    assert (len(decayed["params"]), len(free["params"])) == (53 + 2, 2 * 53)
    assert (decayed["weight_decay"], free["weight_decay"]) == (1e-4, 0.0)
    assert decayed["lr"] == free["lr"] == 0.1
    assert {p.dim() for p in free["params"]} == {1}


def test_layers_that_algorithms_replace_stay_in_their_group() -> None:
    model = build_model(config(), 10)
    values: dict[str, Any] = {
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "nesterov": False,
        "decay_batchnorm": False,
    }
    optimizer = build_optimizer(model, SGDConfig(name="sgd", **values), is_fused=False)
    before = [len(group["params"]) for group in optimizer.param_groups]
    apply_blurpool(model, optimizers=optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == before
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


def share_of_peak(section: Scheduler, batch: int) -> float:
    """The learning rate after some of 110 batches, as a share of the highest."""
    now = SimpleNamespace(
        timestamp=Timestamp(batch=batch), max_duration=Time.from_timestring("110ba"), dataloader_len=None
    )
    return build_scheduler(section)(now)


def test_a_cosine_rises_linearly_and_falls_to_alpha() -> None:
    section = CosineSchedule(name="cosine_with_warmup", t_warmup="10ba", alpha_f=0.1)
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 100)) / 2 for step in (0, 25, 50, 100)]
    shares = [share_of_peak(section, batch) for batch in (0, 5, 10, 35, 60, 110)]
    assert shares == pytest.approx([0, 0.5, *cosine])


def test_a_line_rises_and_falls_linearly() -> None:
    section = LinearSchedule(name="linear_with_warmup", t_warmup="10ba", alpha_f=0.0)
    assert [share_of_peak(section, batch) for batch in (0, 5, 10, 35, 60, 110)] == pytest.approx(
        [0, 0.5, 1, 0.75, 0.5, 0]
    )


def test_steps_fall_by_one_factor_each_and_reach_alpha() -> None:
    section = StepSchedule(name="steps_with_warmup", t_warmup="0ba", milestones=("30ba", "60ba"), alpha_f=0.01)
    assert section.gamma == 0.1
    assert [share_of_peak(section, batch) for batch in (0, 29, 30, 59, 60, 110)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


@pytest.mark.parametrize(
    ("milestones", "alpha_f", "words"),
    [
        (("60ep", "30ep"), 0.01, "must rise from one to the next"),
        (("30ep", "60ba"), 0.01, "must all be in epochs or all in batches"),
        (("30ep",), 0.0, "must be above 0 and below 1 for steps"),
    ],
)
def test_steps_that_make_no_sense_are_refused(milestones: tuple[str, ...], alpha_f: float, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        StepSchedule(name="steps_with_warmup", t_warmup="0ba", milestones=milestones, alpha_f=alpha_f)


def test_a_samples_logits_depend_on_nothing_but_the_sample() -> None:
    torch.manual_seed(0)
    model = build_model(config(), 10).eval()
    images, labels = torch.randn(40, 3, 32, 32), torch.zeros(40, dtype=torch.int64)
    with torch.no_grad():
        together = model.eval_forward((images, labels))
        for at in (0, 31, 32, 39):
            alone = model.eval_forward((images[at : at + 1], labels[at : at + 1]))
            assert torch.equal(alone[0], together[at])


def test_mirrored_an_evaluation_sees_both_sides_of_an_image() -> None:
    torch.manual_seed(0)
    model = build_model(config(), 10).eval()
    images, labels = torch.randn(5, 3, 32, 32), torch.zeros(5, dtype=torch.int64)
    with torch.no_grad():
        one, other = (model.eval_forward((seen, labels)) for seen in (images, images.flip(3)))
        model.averages_mirrored = True
        both = model.eval_forward((images, labels))
        assert torch.equal(both, (one + other) / 2) and not torch.equal(both, one)
        assert torch.equal(both, model.eval_forward((images.flip(3), labels)))
