"""The size at which the loader decodes each batch: a pure function of the batch's index.

A small image costs less to decode, to copy and to train on. Because only the index counts, it does not matter how far
ahead a worker reads, how many there are, or where a run was interrupted.
"""

from dataclasses import dataclass
from typing import Protocol


class ImageSizes(Protocol):
    """An algorithm of a recipe that says how large images are; see `train.config.algorithms`."""

    def image_px(self, crop_size: int, *, epoch: int, elapsed_fraction: float) -> int:
        """Return the edge of a batch's images in px.

        Args:
            crop_size: the edge at the run's end, px.
            epoch: of the batch, from 0.
            elapsed_fraction: of the run, before the batch; 0 to below 1.
        """


@dataclass(frozen=True)
class Resolution:
    """The edge, in px, of the images of each batch of a run.

    Args:
        crop_size: data.crop_size, px.
        schedule: None: every batch has crop_size.
        max_duration: of the run, as configured: `90ep` or `500ba`.
    """

    crop_size: int
    steps_per_epoch: int
    max_duration: str
    schedule: ImageSizes | None = None

    def __call__(self, step: int) -> int:
        """Return the edge of the images of batch `step`, counted from 0 over the whole run."""
        if self.schedule is None:
            return self.crop_size
        epoch, length = step // self.steps_per_epoch, int(self.max_duration[:-2])
        # As Composer counts it (State.get_elapsed_duration): in whole epochs where the run's length is in epochs.
        elapsed = epoch / length if self.max_duration.endswith("ep") else step / length
        return self.schedule.image_px(self.crop_size, epoch=epoch, elapsed_fraction=elapsed)


def growing_px(
    crop_size: int,
    elapsed_fraction: float,
    *,
    initial_scale: float,
    delay_fraction: float,
    finetune_fraction: float,
    multiple_px: int,
) -> int:
    """Return Composer's size: initial_scale at first, then growing linearly, and full for the last part of the run.

    Source: composer/algorithms/progressive_resizing (0.32.1), rounding included.
    """
    growing = 1 - finetune_fraction - delay_fraction
    grown = min(max(elapsed_fraction - delay_fraction, 0.0) / growing, 1.0)
    scale = initial_scale + (1 - initial_scale) * grown
    return round(crop_size * scale / multiple_px) * multiple_px


def ramp_px(crop_size: int, epoch: int, *, start_px: int, start_epoch: int, end_epoch: int, multiple_px: int) -> int:
    """Return FFCV's size: start_px up to start_epoch, crop_size from end_epoch on, a ramp in between.

    Source: `get_resolution` of github.com/libffcv/ffcv-imagenet, train_imagenet.py.
    """
    done = min(max((epoch - start_epoch) / (end_epoch - start_epoch), 0.0), 1.0)
    return round((start_px + (crop_size - start_px) * done) / multiple_px) * multiple_px
