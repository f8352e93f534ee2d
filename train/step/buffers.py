"""BatchNorm's statistics, the same on every rank for whoever reads them."""

import torch
from composer.utils import dist
from torch import nn


def share_buffers(model: nn.Module) -> None:
    """Give all ranks the first one's BatchNorm statistics; collective.

    Each rank updates its own by its own samples, and no training step reads them. An average of the weights, an
    evaluation and a checkpoint do, and have to see the same on every rank: rank 0's, which a checkpoint holds.
    """
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if dist.get_world_size() == 1 or not buffers:
        return
    flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
    dist.broadcast(flat, src=0)
    parts = torch.split(flat, [buffer.numel() for buffer in buffers])
    torch._foreach_copy_(buffers, [part.view_as(buffer) for buffer, part in zip(buffers, parts, strict=True)])
