"""A tensor's name in the network as its library has it, whatever an algorithm has put around its layer.

Composer's BlurPool puts a strided convolution `X` into a `BlurConv2d` (`X.conv.weight`, with a constant
`X.blur_filter`), and a max pool into a `BlurMaxPool2d` (a constant `filt2d`). Its SqueezeExcite puts a convolution
into another layer (`X.conv.weight`, with new weights in `X.se`). By its plain name a tensor of a network with them is
known to be the same as that of a network without.
"""

import re
from collections.abc import Iterable

from torch import Tensor

BLUR_FILTERS = (".blur_filter", ".filt2d")
SQUEEZE = ".se.pool_and_mlp."
WRAPPERS = ("module.", "model.", "_orig_mod.")
"""What DistributedDataParallel, Lightning and torch.compile put before every name."""
FORMER = (
    (re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..+)"), r"\1\2"),
    (re.compile(r"(.*\.mlp)\.linear_1(\..+)"), r"\1.0\2"),
    (re.compile(r"(.*\.mlp)\.linear_2(\..+)"), r"\1.3\2"),
)
"""What torchvision's own files of DenseNet and ViT still call layers that it has renamed since (it does the same in
`torchvision.models.densenet._load_state_dict` and `vision_transformer.MLPBlock`)."""


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return each tensor's own name by its plain, present one; without BlurPool's filters, which are constants."""
    names = list(names)
    wrapped = {name.removesuffix(".blur_filter") for name in names if name.endswith(".blur_filter")}
    wrapped |= {name.partition(SQUEEZE)[0] for name in names if SQUEEZE in name}
    innermost_first = sorted(wrapped, key=len, reverse=True)
    return {_without(innermost_first, name): name for name in names if not name.endswith(BLUR_FILTERS)}


def _without(wrapped: Iterable[str], name: str) -> str:
    for layer in wrapped:
        if name.startswith(f"{layer}.conv."):
            name = f"{layer}.{name.removeprefix(f'{layer}.conv.')}"
    for former, now in FORMER:
        name = former.sub(now, name)
    return name


def without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by name without what a wrapper has put before all of them."""
    while tensors:
        wrapper = next((each for each in WRAPPERS if all(name.startswith(each) for name in tensors)), None)
        if wrapper is None:
            return tensors
        tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors
