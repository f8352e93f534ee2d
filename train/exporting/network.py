"""The tensors of a trained network under torchvision's names, and which of its layers torchvision's has otherwise."""

from composer.algorithms.blurpool.blurpool_layers import BlurConv2d, BlurMaxPool2d
from composer.algorithms.squeeze_excite.squeeze_excite import SqueezeExciteConv2d
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from train.weights.names import plain_names


def plain_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return copies of a network's tensors on the CPU, each under its name in the network as its library builds it.

    Composer's stochastic depth multiplies what a block adds by the share of steps in which it was there. The last
    BatchNorm of the block is multiplied instead, so that the plain network is the same function.
    """
    state = network.state_dict()
    found = {plain: state[name].detach().cpu().clone().contiguous() for plain, name in plain_names(state).items()}
    for name, rate in _drop_rates(network).items():
        for part in ("weight", "bias"):
            found[f"{name}.bn3.{part}"] *= 1 - rate
    return found


def is_folded(network: nn.Module) -> bool:
    """Return whether `plain_tensors` changes a network's tensors."""
    return bool(_drop_rates(network))


def _drop_rates(network: nn.Module) -> dict[str, float]:
    blocks = {name: layer for name, layer in network.named_modules() if isinstance(layer, Bottleneck)}
    return {name: float(layer.drop_rate) for name, layer in blocks.items() if hasattr(layer, "drop_rate")}


def altered_layers(network: nn.Module) -> dict[str, list[str]]:
    """Return the layers that BlurPool and SqueezeExcite have put others around, by the name of what was there.

    Each with its steps in their order, of `conv`, `pool`, `blur` and `se`.
    """
    found: dict[str, list[str]] = {}
    for name, layer in network.named_modules():
        is_inner = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(layer, (BlurConv2d, SqueezeExciteConv2d, BlurMaxPool2d)) and not is_inner:
            found[name] = _steps(layer)
    return found


def _steps(layer: nn.Module) -> list[str]:
    if isinstance(layer, BlurMaxPool2d):
        return ["pool", "blur"]
    if isinstance(layer, BlurConv2d):
        inner = _steps(layer.conv)
        return ["blur", *inner] if layer.blur_first else [*inner, "blur"]
    if isinstance(layer, SqueezeExciteConv2d):
        return [*_steps(layer.conv), "se"]
    return ["conv"]
