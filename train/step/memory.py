"""How many images of a batch fit the memory of a GPU in one forward and backward pass."""

import logging

import torch
from composer import Trainer
from composer.utils import dist

from train.step.upstream import precision_context

log = logging.getLogger(__name__)


def largest_microbatch(trainer: Trainer, px: int) -> int:
    """Return the images of a pass: the rank's batch, or the largest of its halves that fits every rank. Collective.

    It is found by passes over black images of the largest edge of the run, once; optimizer and averages have their
    memory by then. What a pass leaves behind in the model is put back.

    Args:
        px: that edge.

    Raises:
        torch.OutOfMemoryError: one image does not fit.
    """
    images, labels = trainer.state.batch[:2]
    count = len(images)
    while True:
        fits = _fits(trainer, images.new_zeros((count, images.shape[1], px, px)), labels[:count])
        everywhere = trainer.state.device.tensor_to_device(torch.tensor([int(fits)]))
        dist.all_reduce(everywhere, reduce_operation="MIN")
        if int(everywhere):
            log.info("%d of a batch's %d images go through each forward pass", count, len(images))
            return count
        if count == 1:
            raise torch.OutOfMemoryError(
                f"one image of {px} px does not fit the memory of a GPU beside the model; lower data.crop_size, or "
                "take a smaller model.name"
            )
        count = -(-count // 2)


def _fits(trainer: Trainer, images: torch.Tensor, labels: torch.Tensor) -> bool:
    state, model = trainer.state, trainer._original_model
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    is_gpu = images.is_cuda
    with torch.random.fork_rng(devices=[images.device] if is_gpu else []):
        try:
            with precision_context(state.precision):
                loss = model.loss(model((images, labels)), (images, labels))
            loss.backward()
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            for parameter in model.parameters():
                parameter.grad = None
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            if is_gpu:
                torch.cuda.empty_cache()
