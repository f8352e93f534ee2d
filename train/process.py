"""What a process of a run is: one of a group, on a device, with its arithmetic and kernels."""

import logging
import sys
import warnings
from collections.abc import Callable

import torch
from composer.core import Precision
from composer.devices import Device
from composer.utils import dist, get_device

from imagestream.cores import threads_per_rank
from train.config.run_config import Config, ConfigError
from train.fallback import refused_fallback
from train.resume.checkpoint_file import only_load_safely
from train.step.upstream import replace_upstream

HARMLESS_WARNINGS = (
    "No optimizer was specified",  # an evaluation needs none
    "Cannot split tensor of length",  # the last batch of an evaluation is a short one
    "Grad strides do not match bucket view strides",  # of 1 x 1 convolutions, along dimensions of one element
)


def start_process(dist_timeout: float) -> Device:
    """Join the process group, and set what holds for the whole process.

    Args:
        dist_timeout: seconds that a rank waits for the others before it gives up.

    Raises:
        ConfigError: the machine has GPUs, and torch cannot use them.
    """
    device = get_device(None)
    if device.name == "cpu" and (reason := refused_fallback()):
        if dist.get_global_rank() != 0 and dist.get_local_rank() == 0:  # the first rank of all says it by itself
            print(reason, file=sys.stderr)
        raise ConfigError(reason)
    if not dist.is_initialized():
        dist.initialize_dist(device, timeout=dist_timeout)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    for ours in ("train", "imagestream"):
        logging.getLogger(ours).setLevel(logging.INFO if dist.get_global_rank() == 0 else logging.WARNING)
    replace_upstream()
    for harmless in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=harmless)
    only_load_safely()
    if device.name == "cpu":
        torch.set_num_threads(threads_per_rank(dist.get_local_world_size()))
    return device


def choose_kernels(cfg: Config, device: Device) -> None:
    """Let cuDNN search for its fastest kernels, unless the result must be the same bit for bit.

    Where torch's kernels must be deterministic, torch also fills every tensor that it makes with NaN before a kernel
    writes there, so that a read of memory that nobody has written shows. That is a pass over all features, and 1,414
    operations in a step of a ResNet-50 (on a CPU, torch 2.15). It is turned off; on a CPU the result has the same bits.

    Raises:
        ConfigError: a setting that cannot give the same result twice goes with `deterministic: true`.
    """
    if cfg.deterministic:
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch's types lack it
    if device.name != "gpu":
        return
    if cfg.deterministic and cfg.device_train_microbatch_size == "auto":
        raise ConfigError(
            "device_train_microbatch_size: 'auto' depends on the memory that happens to be free, which "
            "deterministic: true rules out; give a number"
        )
    torch.backends.cudnn.benchmark = not cfg.deterministic


def torch_device(device: Device) -> torch.device:
    """Return this rank's device as torch names it."""
    return torch.device("cuda", dist.get_local_rank()) if device.name == "gpu" else torch.device("cpu")


def precision_on(device: Device, cfg: Config) -> Precision:
    """Return the arithmetic to train in.

    Raises:
        ConfigError: this device has no such arithmetic.
    """
    if cfg.precision == "auto":
        return Precision.AMP_BF16 if device.name == "gpu" else Precision.FP32
    if cfg.precision == "amp_fp16" and device.name != "gpu":
        raise ConfigError(
            f"precision: '{cfg.precision}' needs a GPU, and here is none; give precision=fp32, amp_bf16 or auto"
        )
    return Precision(cfg.precision)


SMALLEST_BF16_PX = 32
"""Of an image whose last but one features are more than a pixel: five times, networks halve it."""


def check_smallest_image(device: Device, cfg: Config, smallest_px: Callable[[], int]) -> None:
    """Refuse images for which torch's bfloat16 gradients on a CPU are not what they should be.

    Where features of one pixel go through a strided convolution, oneDNN (torch 2.7 to 2.15, on a processor with AVX-512
    BF16) computes the gradient of its weights from memory that nobody has written (tests/unit/test_step_upstream.py).

    Args:
        smallest_px: returns the edge of the run's smallest training images; asked only where it counts.

    Raises:
        ConfigError: there are such images.
    """
    if device.name == "gpu" or precision_on(device, cfg) != Precision.AMP_BF16:
        return
    if (px := smallest_px()) < SMALLEST_BF16_PX:
        raise ConfigError(
            f"precision: 'amp_bf16' on a CPU gives wrong gradients for images below {SMALLEST_BF16_PX} px, and this "
            f"run has some of {px} px; give precision=fp32, or larger images (data.crop_size, initial_scale)"
        )


def check_training_step(device: Device, cfg: Config) -> None:
    """Refuse a way of training that this device has not.

    Raises:
        ConfigError: CUDA graphs without CUDA, or BatchNorm over GPUs that are none or may run out of memory alone.
    """
    if cfg.training_step == "cuda_graphs" and device.name != "gpu":
        raise ConfigError("training_step: 'cuda_graphs' needs a GPU, and here is none; give training_step=eager")
    if not cfg.model.sync_batchnorm:
        return
    if device.name != "gpu":
        raise ConfigError(
            "model.sync_batchnorm: torch has it for GPUs alone, and here is none; give model.sync_batchnorm=false"
        )
    if dist.get_world_size() > 1 and searches_microbatch(device, cfg):
        raise ConfigError(
            "device_train_microbatch_size: 'auto' tries passes that may not fit one GPU, while with "
            "model.sync_batchnorm the others wait for it; give a number"
        )


def microbatch_size_of(cfg: Config) -> int | None:
    """Return images per forward pass; None is the whole device batch, which `auto` begins with."""
    wanted = cfg.device_train_microbatch_size
    return wanted if isinstance(wanted, int) else None


def searches_microbatch(device: Device, cfg: Config) -> bool:
    """Return whether the images of a forward pass are as many as fit: `auto`, where a device has memory of its own.

    CUDA graphs take the whole batch in one pass.
    """
    is_auto = cfg.device_train_microbatch_size == "auto" and cfg.training_step != "cuda_graphs"
    return is_auto and device.name == "gpu"
