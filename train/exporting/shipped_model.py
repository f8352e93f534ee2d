"""Load the network of this folder with torch, torchvision and safetensors (and timm, where it is one of timm's).

    from model import load, transform

    network = load()                                   # in evaluation mode
    pixels = transform()(PIL.Image.open("cat.jpg"))    # float32 (3, crop, crop)
    logits = network(pixels.unsqueeze(0))              # (1, classes)

This file is complete by itself, and belongs beside config.json and model.safetensors. The tensors have the names of
torchvision's network. A layer that blurs (BlurPool) or weights channels (Squeeze-and-Excitation) keeps its
convolution's name, so that nothing is renamed and nothing is left out.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import v2

HERE = Path(__file__).parent
CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
SQUEEZE = "se.pool_and_mlp"
BINOMIAL = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16


class Blur(nn.Module):
    """A 3 x 3 binomial filter over each channel, the edges padded with zeros (arXiv:1904.11486)."""

    kernel: Tensor

    def __init__(self, stride: Any = 1) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("kernel", BINOMIAL.clone(), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        channels = features.shape[1]
        kernel = self.kernel.repeat(channels, 1, 1, 1)
        return nn.functional.conv2d(features, kernel, None, self.stride, 1, 1, channels)


class BlurredMaxPool2d(nn.Module):
    """A maximum at each place, blurred before places are left out (arXiv:1904.11486)."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(pool.kernel_size, 1, pool.padding, pool.dilation, ceil_mode=pool.ceil_mode)
        self.blur = Blur(pool.stride)

    def forward(self, features: Tensor) -> Tensor:
        return self.blur(self.pool(features))


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole image shows (arXiv:1709.01507)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        first, second = nn.Linear(channels, inner, bias=False), nn.Linear(inner, channels, bias=False)
        self.pool_and_mlp = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), first, nn.ReLU(), second, nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        return features * self.pool_and_mlp(features).reshape(-1, features.shape[1], 1, 1)


class AlteredConv2d(nn.Conv2d):
    """A convolution with `blur` and `se` before or after it, in the order of `steps`; its tensors keep their names."""

    def __init__(self, conv: nn.Conv2d, steps: Sequence[str], inner: int | None) -> None:
        blurs_after = "blur" in steps and steps.index("blur") > steps.index("conv")
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=1 if blurs_after else conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=conv.bias is not None,
        )
        self.steps = tuple(steps)
        if "blur" in steps:
            self.blur = Blur(conv.stride if blurs_after else 1)
        if inner is not None:
            self.se = SqueezeExcite(conv.out_channels, inner)

    def forward(self, features: Tensor) -> Tensor:
        for step in self.steps:
            if step == "conv":
                features = self._conv_forward(features, self.weight, self.bias)
            elif step == "blur":
                features = self.blur(features)
            else:
                features = self.se(features)
        return features


class FromPixels(nn.Module):
    """A network behind its normalisation: uint8 RGB pixels (B, 3, H, W), 0 to 255, become logits (B, classes)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network((pixels.float() - self.mean) / self.std)
        return logits


def read_config(folder: str | Path = HERE) -> dict[str, Any]:
    """Return what config.json says of the network, its classes and its pixels."""
    config: dict[str, Any] = json.loads((Path(folder) / CONFIG_NAME).read_text(encoding="utf-8"))
    return config


def load(folder: str | Path = HERE) -> nn.Module:
    """Return the network, in evaluation mode: float32 (B, 3, H, W) as `transform` makes them become logits."""
    tensors = load_file(Path(folder) / WEIGHTS_NAME)
    network = build(read_config(folder), tensors)
    network.load_state_dict(tensors)  # strict: a tensor too many or too few is an error
    return network.eval()


def build(config: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """Return the network that config.json describes, freshly initialised; `tensors` give the width of some layers."""
    described, num_classes = config["network"], config["num_classes"]
    if described["library"] == "timm":
        import timm

        sized = {} if described["image_px"] is None else {"img_size": described["image_px"]}
        network: nn.Module = timm.create_model(described["name"], num_classes=num_classes, **sized)
    else:
        sized = {} if described["image_px"] is None else {"image_size": described["image_px"]}
        network = torchvision.models.get_model(described["name"], weights=None, num_classes=num_classes, **sized)
    for name, steps in described["layers"].items():
        found, inner = network.get_submodule(name), tensors.get(f"{name}.{SQUEEZE}.2.weight")
        altered: nn.Module
        if isinstance(found, nn.Conv2d):
            altered = AlteredConv2d(found, steps, None if inner is None else len(inner))
        else:
            assert isinstance(found, nn.MaxPool2d), f"{name} is {type(found).__name__}"
            altered = BlurredMaxPool2d(found)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, altered)
    return network


def transform(folder: str | Path = HERE) -> Callable[[Any], Tensor]:
    """Return what makes a PIL image into float32 (3, crop, crop): resized, the middle cut out, normalised."""
    pixels = read_config(folder)["pixels"]
    turn = [ImageOps.exif_transpose] if pixels.get("exif") == "apply" else []  # as the images that it was trained on
    return v2.Compose(
        [
            *turn,
            v2.RGB(),
            v2.Resize(pixels["resize_px"], interpolation=v2.InterpolationMode(pixels["interpolation"])),
            v2.CenterCrop(pixels["crop_px"]),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32),
            v2.Normalize(pixels["mean"], pixels["std"]),
        ]
    )


def class_names(folder: str | Path = HERE) -> list[str]:
    """Return the names of the classes, in the order of the logits."""
    names: list[str] = read_config(folder)["label_names"]
    return names
