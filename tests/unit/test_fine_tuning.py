"""Layer-wise learning rates, frozen parameters in the optimizer and in averages, and what a resumed run compares."""

from typing import Any

import pytest
import torch
from composer.algorithms.ema.ema import EMAParameters
from torch import nn
from torchvision.models import resnet18

from tests.casting import logits_of
from tests.small_network import constructor
from tests.unit.test_resume import changes, contract
from train.config.model import ModelConfig
from train.config.run_config import ConfigError, load_config
from train.config.sections import AdamWConfig, SGDConfig
from train.model import ImageClassifier
from train.optim import build_optimizer
from train.resume.contract import ResumeError
from train.step.averages import average, moving_tensors
from train.step.network import BatchNorm2d, LayersTogether
from train.weights.beginning import InitialWeights
from train.weights.freezing import freeze
from train.weights.reading import WeightsError

SGD = SGDConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=False)


def model_of() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(resnet18(num_classes=10, norm_layer=BatchNorm2d), "cross_entropy")


def groups(**changes: Any) -> list[tuple[float, float, int]]:
    """Learning rate, decay and parameters of each group."""
    found = build_optimizer(model_of(), SGD.model_copy(update=changes), is_fused=False).param_groups
    return [(round(group["lr"], 6), group["weight_decay"], len(group["params"])) for group in found]


def test_each_stage_learns_at_a_fraction_of_the_next_ones_rate_and_the_head_at_lr() -> None:
    # Head: weight and bias; stages 4 to 1: of two convolutions and BatchNorms a block, two blocks, and a shortcut.
    assert groups(layer_decay=0.5) == [
        *((0.1, 1e-4, 2), (0.05, 1e-4, 15), (0.025, 1e-4, 15), (0.0125, 1e-4, 15)),
        *((0.00625, 1e-4, 12), (0.003125, 1e-4, 3)),
    ]
    assert groups(layer_decay=0.5, decay_batchnorm=False)[:3] == [(0.1, 1e-4, 2), (0.05, 1e-4, 5), (0.05, 0.0, 10)]
    assert groups() == [(0.1, 1e-4, 62)]


def test_a_schedule_keeps_the_ratios() -> None:
    optimizer = build_optimizer(model_of(), SGD.model_copy(update={"layer_decay": 0.5}), is_fused=False)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05 * 0.5**depth for depth in range(6)]


@pytest.mark.parametrize("section", [SGD, AdamWConfig(name="adamw", lr=0.1, weight_decay=1e-4)])
def test_what_is_frozen_is_in_no_optimizer_and_never_moves(section: Any) -> None:
    model = model_of()
    model.as_evaluated = freeze(model.module, ("stem", "layer1"), num_classes=10)
    optimizer = build_optimizer(model, section, is_fused=False)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 62 - 3 - 12
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    for _ in range(3):
        batch = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
        optimizer.zero_grad()
        model.train().loss(model(batch), batch).backward()
        optimizer.step()
    after = model.module.state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {name for name in before if name.startswith(("conv1.", "bn1.", "layer1."))}


def test_the_average_of_frozen_weights_is_they_themselves() -> None:
    model = model_of()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor)
    model.as_evaluated = freeze(model.module, ("backbone",), num_classes=10)
    moving = [name for name, _ in moving_tensors(model)]
    assert moving == ["module.fc.weight", "module.fc.bias"]
    ema: Any = EMAParameters(model)
    averages = ema.named_parameters_dict | ema.named_buffers_dict
    for _ in range(3):
        average([(averages[name], tensor.data) for name, tensor in moving_tensors(model)], 0.9)
    assert all(torch.equal(averages[name], buffer) for name, buffer in model.named_buffers())
    whole = dict([*model_of().named_parameters(), *model_of().named_buffers()])
    assert [name for name, _ in moving_tensors(model_of())] == list(whole)


@pytest.mark.parametrize("parts", [("stem", "layer1"), ("layer2.0.conv1",), ("backbone",)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_cast_together_give_torchs_gradients_where_some_are_frozen(
    parts: tuple[str, ...], dtype: torch.dtype
) -> None:
    found = []
    for together in (True, False):
        torch.manual_seed(0)
        network = constructor("resnet18")(10, BatchNorm2d if together else nn.BatchNorm2d)
        for layer in [network.train(), *freeze(network, parts, num_classes=10)][1:]:
            layer.eval()
        layers = LayersTogether(network, casts_weights=True) if together else None
        for stage in layers._stages if layers else ():
            assert all(layer.weight.requires_grad for layer in stage)  # else gradients would be computed for nobody
        for seed in range(2):
            images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
            logits = logits_of(network, layers, images, dtype)
            logits.float().square().mean().backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        found.append((gradients, network.state_dict()))
    (mine, my_state), (theirs, their_state) = found
    assert {name for name in mine if mine[name] is None} == {name for name in theirs if theirs[name] is None}
    assert any(gradient is None for gradient in mine.values())
    for name, gradient in mine.items():
        other = theirs[name]
        assert gradient is None or (other is not None and torch.equal(gradient, other)), name
    assert all(map(torch.equal, my_state.values(), their_state.values()))


A, B = InitialWeights("a.pth", "a" * 64, ""), InitialWeights("b.pth", "b" * 64, "")
GONE = InitialWeights("a.pth", "", "model.weights: a.pth is not a file that exists")


def test_other_weights_are_refused_and_the_same_at_another_place_are_noted() -> None:
    with pytest.raises(ResumeError, match=f'  model.weights: "{"a" * 64}" there, "{"b" * 64}" here'):
        changes(contract(weights=A), contract(weights=B))
    with pytest.raises(ResumeError, match=f'  model.weights: null there, "{"b" * 64}" here'):
        changes(contract(), contract(weights=B))
    moved = InitialWeights("elsewhere/a.pth", A.sha256, "")
    assert changes(contract(weights=A), contract(weights=moved)) == [
        ("model.weights_location", "a.pth", "elsewhere/a.pth")
    ]


def test_a_run_that_goes_on_needs_its_file_no_more_and_one_that_begins_does() -> None:
    saved, now = contract(weights=A), contract(weights=GONE)
    assert changes(saved, now.with_weights_of(saved.as_dict())) == []
    with pytest.raises(ResumeError, match=r"a\.pth is not a file that exists"):
        changes(contract(weights=B), now.with_weights_of(contract(weights=B).as_dict()))
    with pytest.raises(WeightsError, match=r"a\.pth is not a file that exists"):
        now.need_weights()
    contract(weights=A).need_weights()


@pytest.mark.parametrize("override", ["model.freeze=[stem]", "optimizer.layer_decay=0.7"])
def test_what_is_frozen_and_the_layers_rates_are_in_the_contract(override: str) -> None:
    with pytest.raises(ResumeError, match=override.partition("=")[0]):
        changes(contract(), contract(override))
    saved = contract()
    for key in ("model.freeze", "model.weights", "optimizer.layer_decay"):
        del saved.settings[key]  # as an earlier version's checkpoint
    assert changes(saved, contract()) == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.weights=gcs://x/y.pt", "model.weights: 'gcs://x/y.pt' must be a folder or s3://bucket/path"),
        ("model.weights=weights/", "must be a file, local or s3://bucket/path, or torchvision:NAME or timm:NAME"),
        ("model.weights='torchvision:'", "'torchvision:' must be such as torchvision:IMAGENET1K_V2"),
        ("model.weights='timm:../x'", "must be such as timm:resnet50.a1_in1k"),
        ("model.freeze=stem", "must be a list such as"),
        ("model.freeze=[../x]", "must be stem, backbone, or the name of a layer or parameter"),
        ("optimizer.layer_decay=0", "0 must be above 0"),
        ("optimizer.layer_decay=1.1", "must be at most 1"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_key(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("yamls/tiny.yaml", ["data.local=shards", override], check_paths=False)
    assert words in str(error.value) and override.partition("=")[0] in str(error.value)


def test_frozen_layers_are_not_recorded() -> None:
    overrides = ["data.local=shards", "model.freeze=[stem]", "training_step=cuda_graphs"]
    with pytest.raises(ConfigError, match=r"model.freeze: \['stem'\] cannot go with training_step: cuda_graphs"):
        load_config("yamls/tiny.yaml", overrides, check_paths=False)
    assert ModelConfig.model_fields["freeze"].default == ()
