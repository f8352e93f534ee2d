"""The network that the tests train differs from torchvision's in nothing but its channels."""

import pytest
import torchvision
from torch import nn

from tests.small_network import LAYERS, PART_BYTES, SHARE, constructor


@pytest.mark.parametrize("name", LAYERS)
def test_it_has_the_layers_of_torchvisions_with_a_quarter_of_the_channels(name: str) -> None:
    real, small = getattr(torchvision.models, name)(num_classes=8), constructor(name)(num_classes=8)
    modules = dict(small.named_modules())
    assert [(path, type(module)) for path, module in list(modules.items())[1:]] == [
        (path, type(module)) for path, module in list(real.named_modules())[1:]
    ]
    assert list(small.state_dict()) == list(real.state_dict())
    for path, module in real.named_modules():
        if isinstance(module, nn.Conv2d):
            same = ("kernel_size", "stride", "padding", "bias")
            assert [getattr(modules[path], key) for key in same] == [getattr(module, key) for key in same], path
            assert modules[path].out_channels * SHARE == module.out_channels, path


@pytest.mark.parametrize("name", LAYERS)
def test_a_checkpoint_of_weights_and_momentum_is_stored_in_s3_in_parts(name: str) -> None:
    weights = sum(parameter.numel() for parameter in constructor(name)(num_classes=4).parameters())
    assert 2 * 4 * weights > PART_BYTES
