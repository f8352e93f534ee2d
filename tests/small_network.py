"""The network that the tests train: a ResNet of the same layers with a quarter of the channels.

What the tests ask of a run (is it exact, does it end, what does it say) does not depend on the number of weights, while
its time does: ResNet-18's checkpoint has 134 MB, and this one's 9. Each process that `tests.processes` starts takes it,
`train.main` and `train.evaluate` alike, whatever its `model.name`, so that one test never compares two networks. Tests
that start the commands as a user does (`composer`, `python train/main.py`) train the real one, and pass
`real_network=True` for what they compare with; so does one that stores a checkpoint in S3 in parts of the real size.

ResNet-18's checkpoint goes to S3 in three parts of 64 MB at most, this one's in two of 5 MiB, so that a run is still
killed in the middle of an upload.

The record's picture, which takes matplotlib a fifth of such a run's time, is a blank one.
"""

import io
from collections.abc import Callable, Mapping
from typing import Any

import torchvision
from boto3.s3.transfer import TransferConfig
from PIL import Image
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from imagestream.storage import s3
from train.record import report

SHARE = 4
"""A ResNet's channels to this network's: 64 to 16 after the first layer."""

LAYERS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
"""What torchvision makes those of (torchvision/models/resnet.py)."""

PART_BYTES = 5 << 20
"""The smallest part of an upload that S3 takes."""


class SmallResNet(ResNet):
    """torchvision's, each of its layers with fewer channels; the layers' names, kinds and order are the same."""

    def __init__(
        self, block: type[BasicBlock | Bottleneck], layers: list[int], num_classes: int, norm_layer: Callable[..., Any]
    ) -> None:
        super().__init__(block, layers, num_classes, norm_layer=norm_layer)
        first, last = 64 // SHARE, 512 // SHARE * block.expansion
        self.conv1 = nn.Conv2d(3, first, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(first)
        self.fc = nn.Linear(last, num_classes)

    def _make_layer(self, block: type[BasicBlock | Bottleneck], planes: int, *more: int, **named: int) -> nn.Sequential:
        if planes == 64:  # the first of four, behind conv1
            self.inplanes = 64 // SHARE
        return super()._make_layer(block, planes // SHARE, *more, **named)


def small_efficientnet(num_classes: int) -> nn.Module:
    """With Dropout and StochasticDepth, as the real one, in which both draw random numbers."""
    settings = [MBConvConfig(1, 3, 1, 16, 8, 1), MBConvConfig(4, 3, 2, 8, 16, 2), MBConvConfig(4, 5, 2, 16, 24, 2)]
    return EfficientNet(settings, dropout=0.2, stochastic_depth_prob=0.2, num_classes=num_classes, last_channel=64)


def small_regnet(num_classes: int) -> nn.Module:
    """With squeeze-and-excitation."""
    params = BlockParams.from_init_params(depth=6, w_0=16, w_a=8.0, w_m=2.0, group_width=8, se_ratio=0.25)
    return RegNet(params, num_classes=num_classes)


def small_convnext(num_classes: int) -> nn.Module:
    settings = [CNBlockConfig(16, 32, 2), CNBlockConfig(32, 48, 2), CNBlockConfig(48, None, 1)]
    return ConvNeXt(settings, stochastic_depth_prob=0.2, num_classes=num_classes)


def small_swin(num_classes: int) -> nn.Module:
    return SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], stochastic_depth_prob=0.2, num_classes=num_classes)


def small_vit(num_classes: int, image_size: int = 32) -> nn.Module:
    return VisionTransformer(image_size, 16, 3, 2, 32, 64, dropout=0.1, num_classes=num_classes)


OTHERS: dict[str, Callable[..., nn.Module]] = {
    "convnext_tiny": small_convnext,
    "efficientnet_b0": small_efficientnet,
    "regnet_y_400mf": small_regnet,
    "swin_t": small_swin,
    "vit_b_16": small_vit,
}
"""One of each family, of torchvision's layers, and of few of them."""


def install() -> None:
    """Let this process build small networks from now on, under the names of the real ones, and store them in parts."""
    report.draw = draw_nothing
    for name in LAYERS:
        setattr(torchvision.models, name, constructor(name))
    for name, other in OTHERS.items():
        setattr(torchvision.models, name, other)
    s3.TRANSFER = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=8)


def draw_nothing(record: Mapping[str, Any]) -> bytes:
    """Stand in for `train.record.report.draw`."""
    png = io.BytesIO()
    Image.new("RGB", (1, 1)).save(png, "PNG")
    return png.getvalue()


def constructor(name: str) -> Callable[..., nn.Module]:
    """Return what stands in for torchvision's function of that name."""
    return lambda num_classes, norm_layer=nn.BatchNorm2d: SmallResNet(*LAYERS[name], num_classes, norm_layer)
