"""A network whose layers count and cast together computes what torch's own does, bit for bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.casting import logits_of
from tests.launches import Launches
from tests.small_network import constructor
from train.config.model import ModelConfig
from train.model import ImageClassifier, build_model
from train.optim import parameter_groups
from train.step.network import BatchNorm2d, LayersTogether

pytestmark = pytest.mark.slow


def networks() -> tuple[nn.Module, nn.Module]:
    """Two of the same weights: with our layers, and with torch's."""
    torch.manual_seed(0)
    mine, theirs = (constructor("resnet18")(10, layer) for layer in (BatchNorm2d, nn.BatchNorm2d))
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs


def passes(network: nn.Module, layers: LayersTogether | None, dtype: torch.dtype, *, count: int = 2) -> list[Tensor]:
    """Train forward and backward; return logits, gradients and everything that is saved."""
    generator = torch.Generator().manual_seed(1)
    found: list[Tensor] = []
    for _ in range(count):
        images = torch.randn(4, 3, 32, 32, generator=generator)
        logits = logits_of(network, layers, images, dtype)
        logits.float().square().mean().backward()
        found.append(logits)
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return [*found, *gradients, *network.state_dict().values()]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_has_torchs_bits(dtype: torch.dtype, layout: torch.memory_format) -> None:
    mine, theirs = (network.to(memory_format=layout) for network in networks())
    layers = LayersTogether(mine, casts_weights=True)
    for one, other in zip(passes(mine, layers, dtype), passes(theirs, None, dtype), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def test_it_launches_a_cast_for_each_stage_and_one_count() -> None:
    mine, theirs = networks()
    layers = LayersTogether(mine, casts_weights=True)
    counts = {}
    for name, network, together in (("mine", mine, layers), ("theirs", theirs, None)):
        with Launches() as launches:
            passes(network, together, torch.bfloat16, count=1)
        counts[name] = {part: launches.names.count(part) for part in ("add_", "_foreach_add_", "_foreach_copy_")}
        counts[name]["_to_copy"] = launches.names.count("_to_copy")
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in theirs.modules())
    assert counts["theirs"]["add_"] - counts["mine"]["add_"] == norms == 20
    assert counts["mine"]["_foreach_add_"] == 1 and counts["mine"]["_foreach_copy_"] == 2 * 4
    assert counts["theirs"]["_to_copy"] - counts["mine"]["_to_copy"] == 2 * 19  # 16 + 3 convolutions of four stages


def test_evaluation_counts_and_casts_nothing() -> None:
    mine, theirs = (network.eval() for network in networks())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(mine(images), theirs(images))
    assert not any(layer.uncounted for layer in mine.modules() if isinstance(layer, BatchNorm2d))


def test_layers_of_all_gpus_count_their_batches_once_and_keep_the_weights() -> None:
    """torch's conversion; with one process its layers compute what BatchNorm does."""
    values = {"name": "resnet18", "num_classes": 10, "loss": "cross_entropy", "init": "mosaic"}
    cfg = ModelConfig.model_validate(values)
    models: list[ImageClassifier] = []
    for syncs in (False, True):
        torch.manual_seed(0)
        models.append(build_model(cfg, 10, syncs_batchnorm=syncs))
    plain, synced = models
    norms = [layer for layer in synced.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 20 and all(type(layer) is nn.SyncBatchNorm for layer in norms)
    for _ in range(3):
        batch = torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64)
        assert torch.equal(plain(batch), synced(batch))
    assert [int(layer.num_batches_tracked or 0) for layer in norms] == [3] * 20
    assert plain.state_dict().keys() == synced.state_dict().keys()
    assert all(map(torch.equal, plain.state_dict().values(), synced.state_dict().values()))
    groups = parameter_groups(synced, decay_batchnorm=False)
    assert [len(group["params"]) for group in groups] == [20 + 2, 2 * 20]
    for both in (plain.eval(), synced.eval()):
        both(batch)
    assert [int(layer.num_batches_tracked or 0) for layer in norms] == [3] * 20


class HalfUsed(nn.Module):
    """A stage of which a pass leaves out one half, as StochasticDepth does."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 3, 1), BatchNorm2d(3)) for _ in range(2)])

    def forward(self, images: Tensor) -> Any:
        return self.stage[0](images)


def test_a_layer_that_takes_no_part_gets_no_gradient_and_no_count() -> None:
    network = HalfUsed()
    layers = LayersTogether(network, casts_weights=False)
    with torch.autocast("cpu", dtype=torch.bfloat16), layers.forward(torch.device("cpu")):
        network(torch.randn(2, 3, 8, 8)).sum().backward()
    used, unused = network.stage
    assert all(parameter.grad is not None for parameter in used.parameters())
    assert all(parameter.grad is None for parameter in unused.parameters())
    assert [int(half.state_dict()["1.num_batches_tracked"]) for half in (used, unused)] == [1, 0]


def test_the_weights_are_back_after_a_pass_that_failed() -> None:
    mine, _ = networks()
    before = dict(mine.named_parameters())
    layers = LayersTogether(mine, casts_weights=True)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(RuntimeError),
        layers.forward(torch.device("cpu")),
    ):
        mine(torch.zeros(4, 5, 32, 32))  # three channels are wanted
    after = dict(mine.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
