"""The order in which gradients are summed over ranks, the same in every process from its first step on.

DistributedDataParallel sums gradients in buckets. A sum of three or more floats depends on its order, and in a bucket
that order depends on where in the bucket a gradient is. torch (2.7, torch/nn/parallel/distributed.py,
`_ddp_init_helper`) begins with one bucket for all gradients and, after a process's first backward pass, lays them out
anew, in the order in which that pass gave them. So the first step after a restart would be summed in another order
than the same step of a run that was not interrupted. (Two ranks do not show it: a + b is b + a.)
"""

from functools import partial

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def fix_gradient_buckets(model: nn.Module) -> None:
    """Have the buckets laid out before the first step, in an order that no batch decides; collective.

    The pass that the layout follows has a stand-in for the network's forward, by which each parameter gets a gradient
    of zeros, the last one first. It needs no batch, draws no random number and changes no buffer.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    network = model.module
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.forward = partial(_zero, parameters)
    try:
        model().backward()
    finally:
        del network.forward
    for parameter in parameters:
        parameter.grad = None


def _zero(parameters: list[nn.Parameter]) -> torch.Tensor:
    """Return 0 times the sum of all parameters, whose gradients are zeros. (Infinite weights would make them NaN: they
    are dropped.)"""
    return torch.stack([(0 * parameter).sum() for parameter in parameters]).sum()
