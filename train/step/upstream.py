"""Functions of Composer 0.32.1 that a step takes differently; each says what upstream's does and why ours is there.

They are put in place of upstream's, in the module that calls them, where there is no hook for it. A test compares
upstream's source with the one that was replaced (`tests/unit/test_step_upstream.py`), so that an update is noticed.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import composer.loss.utils
import composer.trainer.trainer
import torch
from composer.algorithms.blurpool import blurpool_layers
from composer.core import Precision
from composer.devices import Device
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

# torch 2.15 has a new name for whether ranks get rank 0's buffers before each forward pass.
SENDS_BUFFERS = "forward_sync_buffers"
if SENDS_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    SENDS_BUFFERS = "broadcast_buffers"
AUTOCAST = {Precision.AMP_BF16: torch.bfloat16, Precision.AMP_FP16: torch.float16}


def replace_upstream() -> None:
    """Put what is here in upstream's place, in this process."""
    for place, function in replacements().items():
        setattr(*place, function)


def replacements() -> dict[tuple[Any, str], Callable[..., Any]]:
    """Return each function by the module that calls upstream's, and by the name under which it does."""
    return {
        (composer.trainer.trainer, "_validate_precision"): validate_precision,
        (composer.trainer.trainer, "get_precision_context"): precision_context,
        (composer.trainer.trainer, "prepare_ddp_module"): prepare_ddp_module,
        (composer.loss.utils, "_one_hot"): one_hot,
        (blurpool_layers, "_padding_for_filt_2d_same"): same_padding,
    }


def validate_precision(precision: Precision, device: Device) -> None:
    """Let a CPU train in bfloat16, which upstream refuses (`composer.core.precision._validate_precision`)."""
    if device.name == "cpu" and precision not in (Precision.FP32, Precision.AMP_BF16):
        raise ValueError(f"{precision} is not supported for CPU training.")


@contextlib.contextmanager
def precision_context(precision: Precision | str, *_: Any, **__: Any) -> Iterator[None]:
    """Run a block in a precision, on a CPU too, where upstream's says nothing and runs it in float32
    (`composer.core.precision.get_precision_context`)."""
    precision = Precision(precision)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.autocast(kind, dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST):
        yield


def prepare_ddp_module(module: nn.Module, find_unused_parameters: bool) -> nn.Module:
    """Return a model whose gradients are summed where they lie.

    Upstream's (`composer.distributed.dist_strategy.prepare_ddp_module`) copies each gradient out of what was summed,
    and sends BatchNorm's statistics at each step, which `share_buffers` does for those who read them.
    """
    settings: dict[str, Any] = {"gradient_as_bucket_view": True, SENDS_BUFFERS: False}
    return DistributedDataParallel(module, find_unused_parameters=find_unused_parameters, **settings)


def one_hot(tensor: Tensor, num_classes: int = -1, dim: int = -1) -> Tensor:
    """Return whole-number labels as zeros and ones along a new dimension.

    Upstream's (`composer.loss.utils._one_hot`) reads the largest and the smallest label back from the GPU at each
    step. The loader has compared every label with the number of classes (`imagestream.data.labels`).
    """
    shape = list(tensor.unsqueeze(dim).shape)
    shape[dim] = num_classes
    zeros = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    return zeros.scatter_(dim=dim, index=tensor.unsqueeze(dim), value=1)


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats. logits: (B, classes); labels: whole numbers (B,) or shares (B, classes).

    Upstream's (`composer.loss.soft_cross_entropy`) reads the sum of the shares back from the GPU at each step.
    """
    if labels.ndim == logits.ndim - 1:
        return functional.cross_entropy(logits, labels)
    losses = -(labels * functional.log_softmax(logits, dim=1)).sum(dim=1)
    return losses.mean() * (losses.numel() / labels.sum())


def same_padding(filt: Tensor) -> tuple[int, int]:
    """Return the padding, rows and columns, with which a filter (C, 1, H, W) of odd H and W keeps an image's size.

    Upstream's (`composer.algorithms.blurpool.blurpool_layers._padding_for_filt_2d_same`) makes a tensor of it at each
    of 14 layers, and reads it back. A subclass of BlurPool would not do: where a checkpoint names BlurPool, Composer
    adds its own beside whatever is not of exactly that class.
    """
    height, width = filt.shape[-2:]
    for name, edge in (("height", height), ("width", width)):
        if edge % 2 == 0:
            raise IndexError(f"Filter must have odd {name}; got {edge}")
    return height // 2, width // 2
