"""Passes over black images before the first step: how many fit a GPU's memory, and code compiled before it is needed.

They leave no trace: what a pass changes in the model, and in the random numbers to come, is put back.
"""

import contextlib
import logging
from collections.abc import Sequence

import torch
from composer import Trainer
from composer.utils import dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from train.step.upstream import precision_context

log = logging.getLogger(__name__)


def largest_microbatch(trainer: Trainer, px: int) -> int:
    """Return the images of a pass: the rank's batch, or the largest of its halves that fits every rank. Collective.

    Optimizer and averages have their memory by then.

    Args:
        px: the edge of the run's largest images.

    Raises:
        torch.OutOfMemoryError: one image does not fit.
    """
    count = total = len(trainer.state.batch[1])
    while True:
        fits = torch.tensor([int(_fits(trainer, count, px))])
        everywhere = trainer.state.device.tensor_to_device(fits)
        dist.all_reduce(everywhere, reduce_operation="MIN")
        if int(everywhere):
            log.info("%d of a batch's %d images go through each forward pass", count, total)
            return count
        if count == 1:
            raise torch.OutOfMemoryError(
                f"one image of {px} px does not fit the memory of a GPU beside the model; lower data.crop_size, or "
                "take a smaller model.name"
            )
        count = -(-count // 2)


def compile_ahead(trainer: Trainer, images: int, sizes_px: Sequence[int]) -> None:
    """Compile the training pass for each size, smallest first, so that no step of the run stands still for it.

    Args:
        images: of a pass.
        sizes_px: the edges of the run's images.
    """
    quiet = None if dist.get_global_rank() == 0 else True  # None: where nobody looks
    for px in tqdm(sorted(sizes_px), desc="compiling", unit=" sizes", disable=quiet):
        trial_pass(trainer, images, px)


def trial_pass(trainer: Trainer, count: int, px: int) -> None:
    """Run the first `count` images of `state.batch` forward and backward, black and of `px`.

    Raises:
        torch.OutOfMemoryError: they do not fit.
    """
    state, model = trainer.state, trainer._original_model
    images, labels = state.batch[0], state.batch[1][:count]
    layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    black = images.new_zeros((count, images.shape[1], px, px)).to(memory_format=layout)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    is_alone: contextlib.AbstractContextManager[None] = (
        contextlib.nullcontext()
    )  # no rank waits for another's gradients, should one have no memory
    if isinstance(state.model, DistributedDataParallel):
        is_alone = state.model.no_sync()
    with is_alone, torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        try:
            with precision_context(state.precision):
                loss = model.loss(state.model((black, labels)), (black, labels))
            assert isinstance(loss, Tensor)
            loss.backward()
        finally:
            for parameter in model.parameters():
                parameter.grad = None
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def _fits(trainer: Trainer, count: int, px: int) -> bool:
    try:
        trial_pass(trainer, count, px)
    except torch.OutOfMemoryError:
        return False
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True
