"""A ResNet's stages recorded as CUDA graphs, so that the processor launches each stage's kernels by one call.

Recorded are a stage's forward and backward pass, for one size of images (`torch.cuda.make_graphed_callables`). Each
stage is recorded by itself, so that the gradients of several GPUs are summed beside the backward pass. What comes
before and after the stages, the loss and the optimizer are launched as ever. A graph reads and writes the same memory
each time; so gradients cannot be accumulated over several passes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class RecordedStages:
    """The stages of a network, recorded anew whenever the images have another size.

    Args:
        network: a torchvision ResNet, of which the children that are sequences are the stages.
        record: what records them; torch's, or a test's where there is no GPU.
    """

    def __init__(
        self,
        network: nn.Module,
        record: Callable[..., object] = torch.cuda.make_graphed_callables,
    ) -> None:
        self._network, self._record = network, record
        self._children = list(network.children())
        self.stages = [child for child in self._children if isinstance(child, nn.Sequential)]
        self._shape: torch.Size | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes) of a training batch (B, 3, H, W)."""
        if images.shape != self._shape:
            self._record_for(images)
            self._shape = images.shape
        logits: Tensor = self._network(images)
        return logits

    def _record_for(self, images: Tensor) -> None:
        """Record each stage; the passes that this takes leave no trace in BatchNorm's statistics."""
        for stage in self.stages:
            stage.__dict__.pop("forward", None)  # which replays what was recorded before
        buffers = [(buffer, buffer.clone()) for buffer in self._network.buffers()]
        kind = images.device.type
        is_autocast, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        # A cast weight that autocast keeps would be of the recording's memory.
        with torch.autocast(kind, dtype=dtype, enabled=is_autocast, cache_enabled=False):
            inputs = self._inputs_of_stages(images)
            self._record(tuple(self.stages), tuple((stage_input,) for stage_input in inputs))
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)

    @torch.no_grad()
    def _inputs_of_stages(self, images: Tensor) -> list[Tensor]:
        """Return what each stage is given, as tensors that take gradients."""
        inputs, left, given = [], len(self.stages), images
        for child in self._children:
            if child in self.stages:
                inputs.append(given.detach().clone().requires_grad_())
                left -= 1
            if not left:
                break
            given = child(given)
        return inputs
