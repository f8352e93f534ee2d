"""What replaces parts of Composer has their bits, their states and a fraction of their launches."""

import hashlib
import inspect
from typing import Any

import pytest
import torch
from composer.algorithms.blurpool import blurpool_layers
from composer.algorithms.ema import ema as composer_ema
from composer.optim import DecoupledSGDW as ComposerDecoupledSGDW
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import resnet18

from train.lean import DecoupledSGDW, average, same_padding

STEPS = 200
UPSTREAMS_PADDING = blurpool_layers._padding_for_filt_2d_same
UPSTREAM = {  # SHA-256 of the source, 12 digits: another one has to be looked at before its replacement is kept
    ComposerDecoupledSGDW.sgdw: "2679c2bf52d6",
    composer_ema.compute_ema: "5cc97193b4ab",
    composer_ema.EMA.apply: "0036a7b43dc2",
    UPSTREAMS_PADDING: "346595909226",
}
TORCHS_OWN = 2  # operations by which a profiler is told of `step`, and which launch nothing


class Launches(TorchDispatchMode):
    """Counts the operations that a block launches."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def optimized(kind: Any, steps: int, **settings: Any) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Parameters of many shapes after as many steps of gradients that follow from the step, now and then one less."""
    shapes = [(64, 3, 7, 7), (64,), (1,), (17, 33), (128, 64, 3, 3), (1000, 5)]
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    groups = [{"params": parameters[:4]}, {"params": parameters[4:], "weight_decay": 0.0}]
    optimizer = kind(groups, **settings)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] * (1 - step / STEPS)
        for at, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if (at, step % 5) == (2, 0) else gradient
        optimizer.step()
    return [parameter.detach() for parameter in parameters], optimizer.state_dict()


def buffers_of(state: dict[str, Any]) -> dict[int, torch.Tensor | None]:
    assert all(of_one.keys() == {"momentum_buffer"} for of_one in state["state"].values())
    return {place: of_one["momentum_buffer"] for place, of_one in state["state"].items()}


@pytest.mark.parametrize("momentum", [0.0, 0.875])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
def test_the_optimizer_has_composers_bits_over_200_steps(momentum: float, nesterov: bool, weight_decay: float) -> None:
    settings = {"lr": 2.048, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov and momentum > 0}
    mine, my_state = optimized(DecoupledSGDW, STEPS, **settings)
    theirs, their_state = optimized(ComposerDecoupledSGDW, STEPS, **settings)
    assert all(map(torch.equal, mine, theirs))
    assert my_state["param_groups"] == their_state["param_groups"]
    buffers, their_buffers = buffers_of(my_state), buffers_of(their_state)
    assert buffers.keys() == their_buffers.keys() == set(range(6))
    for place, buffer in buffers.items():
        other = their_buffers[place]
        assert buffer is other if buffer is None or other is None else torch.equal(buffer, other)
        assert (buffer is None) == (momentum == 0)


def test_a_step_of_resnet_18_takes_four_launches_of_the_optimizer() -> None:
    counts = {}
    for kind in (DecoupledSGDW, ComposerDecoupledSGDW):
        model = resnet18()
        optimizer = kind(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        for _ in range(2):  # the first makes the momentum
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            with Launches() as launches:
                optimizer.step()
        counts[kind] = launches.count - TORCHS_OWN
    assert counts == {DecoupledSGDW: 4, ComposerDecoupledSGDW: 4 * len(list(model.parameters()))}


def test_the_average_has_composers_bits_and_a_few_launches() -> None:
    torch.manual_seed(0)
    model = resnet18()
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    mine, theirs = composer_ema.EMAParameters(model), composer_ema.EMAParameters(model)
    averages = mine.named_parameters_dict | mine.named_buffers_dict
    for step in range(20):
        with torch.no_grad():
            for tensor in tensors.values():
                tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.tensor(97 * step))
        pairs = [(averages[name], tensor.data) for name, tensor in tensors.items()]
        with Launches() as of_theirs:
            composer_ema.compute_ema(model, theirs, smoothing=0.99)
        with Launches() as of_mine:
            average(pairs, 0.99)
    for part in ("named_parameters_dict", "named_buffers_dict"):
        one, other = getattr(mine, part), getattr(theirs, part)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert of_mine.count == 12 and of_theirs.count > 3 * len(tensors)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 3), (3, 5), (7, 1)])
def test_half_a_filter_is_as_much_as_composers(height: int, width: int) -> None:
    filt = torch.zeros(4, 1, height, width)
    assert same_padding(filt) == UPSTREAMS_PADDING(filt)
    with pytest.raises(IndexError, match=f"odd height; got {height + 1}"):
        same_padding(torch.zeros(4, 1, height + 1, width))


def test_upstream_is_what_was_replaced() -> None:
    seen = {part: hashlib.sha256(inspect.getsource(part).encode()).hexdigest()[:12] for part in UPSTREAM}
    assert seen == UPSTREAM
