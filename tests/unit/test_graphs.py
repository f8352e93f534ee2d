"""What is recorded of a network, when anew, and that recording leaves no trace.

There is no GPU here: a stand-in for torch's recording runs a stage thrice, as torch's warm-up does, and then has each
stage refuse another size of input than it was given, as a graph would take wrong memory without a word.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from train.config.model import ModelConfig
from train.model import build_model
from train.step.graphs import RecordedStages
from train.step.network import BatchNorm2d

pytestmark = pytest.mark.slow


class Recorder:
    def __init__(self) -> None:
        self.sizes: list[list[int]] = []

    def __call__(self, stages: tuple[nn.Module, ...], inputs: tuple[tuple[Tensor], ...]) -> None:
        assert not torch.is_autocast_cache_enabled()
        self.sizes.append([given.shape[-1] for (given,) in inputs])
        for stage, (given,) in zip(stages, inputs, strict=True):
            assert given.requires_grad and given.is_leaf and not given.grad_fn
            assert "forward" not in stage.__dict__
            for _ in range(3):
                torch.autograd.grad(stage(given).float().sum(), [given, *stage.parameters()])
            stage.forward = self._replay(stage, given)

    @staticmethod
    def _replay(stage: nn.Module, recorded: Tensor) -> Callable[[Tensor], Any]:
        def replay(given: Tensor) -> Any:
            wanted = (recorded.shape, recorded.dtype, recorded.stride())
            assert (given.shape, given.dtype, given.stride()) == wanted
            return type(stage).forward(stage, given)

        return replay


def batch_of(px: int) -> Tensor:
    images = torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(px))
    return images.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_size_is_recorded_when_it_comes_and_the_results_are_the_networks_own(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network: nn.Module = resnet18(num_classes=10, norm_layer=BatchNorm2d).to(memory_format=torch.channels_last)
    plain: nn.Module = resnet18(num_classes=10, norm_layer=BatchNorm2d).to(memory_format=torch.channels_last)
    plain.load_state_dict(network.state_dict())
    recorder = Recorder()
    recorded = RecordedStages(network, recorder)
    for px in (32, 32, 48, 48, 32):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            mine, theirs = recorded.forward(batch_of(px)), plain(batch_of(px))
        assert torch.equal(mine, theirs)
        for one, other in zip(network.buffers(), plain.buffers(), strict=True):
            assert torch.equal(one, other)
    assert recorder.sizes == [[8, 8, 4, 2], [12, 12, 6, 3], [8, 8, 4, 2]]


def test_batches_that_are_replayed_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecordedStages.__init__, "__defaults__", (Recorder(),))
    wanted = ModelConfig(name="resnet18", num_classes=10, loss="cross_entropy", init="torchvision")
    model = build_model(wanted, 10, training_step="cuda_graphs")
    model.train()
    for px in (32, 48):
        model((batch_of(px), torch.zeros(2, dtype=torch.int64)))
    counters = {int(value) for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counters == {2}
