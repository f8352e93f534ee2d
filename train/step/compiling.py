"""A network's training forward pass by torch.compile, with the same bits in every process of a run."""

from collections.abc import Callable

import torch
import torch._dynamo.config
from torch import Tensor, nn

MOST_SIZES = 64
"""Image sizes of a run, each compiled by itself: from 32 to 512 px in steps of 16 are 31."""


def compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the network's forward pass, compiled for each size of images when it first comes.

    torch would have a second size compiled for any size ("dynamic"), and after eight of them run what is not compiled,
    without a word. A process that is started again sees other sizes first, so that it would compute otherwise than the
    one before it: so each size is compiled by itself, and one too many is an error.
    """
    torch._dynamo.config.recompile_limit = MOST_SIZES
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    forward: Callable[[Tensor], Tensor] = torch.compile(network.forward, dynamic=False)
    return forward
