"""Parts of a network that are not trained: no gradients, no decay, and the same computation as in an evaluation."""

from torch import nn

from train.config.run_config import ConfigError
from train.layers import depths, head_of

STEM, BACKBONE = "stem", "backbone"


def freeze(network: nn.Module, parts: tuple[str, ...], *, num_classes: int) -> list[nn.Module]:
    """Have a network's parts take no gradients; return the layers that stay as in an evaluation while it trains.

    Those are the ones of which every parameter is frozen, with all that is in them: BatchNorm takes its stored
    statistics and leaves them as they are, and nothing is dropped at random.

    Args:
        network: with the layers that algorithms have replaced.
        parts: `stem`, what comes before the first stage or block; `backbone`, all but the layer that gives the logits;
            or names of layers or parameters.

    Raises:
        ConfigError: there is no such part, or nothing would be trained.
    """
    if not parts:
        return []
    parameters = dict(network.named_parameters())
    for part in parts:
        names = _names_of(part, list(parameters), head_of(network, num_classes))
        if not names:
            children = [name for name, child in network.named_children() if list(child.parameters())]
            raise ConfigError(
                f"model.freeze: the network has no {part}; it has {', '.join((STEM, BACKBONE, *children))}, and "
                "what is in these"
            )
        for name in names:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError(f"model.freeze: [{', '.join(parts)}] is the whole network, so nothing would be trained")
    return _wholly_frozen(network)


def _names_of(part: str, names: list[str], head: str) -> list[str]:
    if part == STEM:
        return [name for name, depth in depths(names).items() if depth == 0]
    if part == BACKBONE:
        return [name for name in names if head and not name.startswith(f"{head}.")]
    return [name for name in names if name == part or name.startswith(f"{part}.")]


def _wholly_frozen(layer: nn.Module) -> list[nn.Module]:
    """Return the outermost layers of which every parameter is frozen."""
    parameters = list(layer.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return [layer]
    return [found for child in layer.children() for found in _wholly_frozen(child)]
