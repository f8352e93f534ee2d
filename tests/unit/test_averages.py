"""EMA has Composer's bits and a fraction of its launches."""

import pytest
import torch
from composer.algorithms.ema import ema as composer_ema
from torchvision.models import resnet18

from tests.launches import Launches
from train.step.averages import average


@pytest.mark.slow
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
