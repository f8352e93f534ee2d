"""The algorithms that a recipe may name: Composer's, each with its arguments, their defaults, ranges and source.

Defaults are Composer's own. Nothing here imports torch or composer until an algorithm is built.
"""

from __future__ import annotations

from math import ceil
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from train.config.algorithm import AlgorithmConfig
from train.config.augmentations import (
    AugMix,
    AutoAugment,
    ColorJitter,
    RandAugment,
    RandomErasing,
    ThreeAugment,
    TimmRandAugment,
    TorchvisionRandAugment,
    TrivialAugment,
)
from train.config.sections import MAX_ALPHA, MIN_ALPHA, Duration, time_string
from train.resolution import growing_px, ramp_px


class BlurPool(AlgorithmConfig):
    """Anti-aliased strided convolutions and pools (Zhang 2019, arXiv:1904.11486)."""

    composer_class = "BlurPool"
    name: Literal["blurpool"]
    replace_convs: bool = Field(True, description="blur strided convolutions")
    replace_maxpools: bool = Field(True, description="blur max pools")
    blur_first: bool = Field(True, description="blur before the convolution")
    min_channels: int = Field(16, ge=1, le=256, description="convolutions with fewer input channels stay as they are")

    @field_validator("replace_maxpools")
    @classmethod
    def _something_is_replaced(cls, value: bool, info: ValidationInfo) -> bool:
        if not value and not info.data.get("replace_convs", True):
            raise ValueError("must be true when replace_convs is false; else remove blurpool")
        return value


class ChannelsLast(AlgorithmConfig):
    """Weights and activations as NHWC in memory, which GPUs convolve faster."""

    composer_class = "ChannelsLast"
    name: Literal["channels_last"]


class LabelSmoothing(AlgorithmConfig):
    """Targets (1 - smoothing) * y + smoothing / classes (Szegedy et al. 2016, arXiv:1512.00567)."""

    composer_class = "LabelSmoothing"
    name: Literal["label_smoothing"]
    smoothing: float = Field(0.1, gt=0, lt=1, description="share of a target that is spread over all classes")


class SizeSchedule(AlgorithmConfig):
    """An algorithm that says how large a batch's images are."""

    size_increment: int

    def image_px(self, crop_size: int, *, epoch: int, elapsed_fraction: float) -> int:
        """Return the edge of a batch's images in px; see `train.resolution.ImageSizes`."""
        raise NotImplementedError


class ProgressiveResizing(SizeSchedule):
    """Train on small images first and grow them to crop_size.

    With `mode: decode` the loader decodes at the size, antialiased; it then needs less time, too. Composer's own modes
    work on the device on batches of crop_size: `resize` takes the nearest pixels, `crop` cuts.
    """

    composer_class = "ProgressiveResizing"
    name: Literal["progressive_resizing"]
    mode: Literal["resize", "crop", "decode"] = Field(
        "resize", description="how images are made smaller: decode (by the loader), resize or crop (by Composer)"
    )
    initial_scale: float = Field(0.5, gt=0, lt=1, description="first size as a fraction of crop_size, below 1")
    delay_fraction: float = Field(0.5, ge=0, lt=1, description="fraction of the run at the first size")
    finetune_fraction: float = Field(0.2, ge=0, lt=1, description="fraction of the run, at its end, at full size")
    size_increment: int = Field(4, ge=1, description="sizes are multiples of this many px")

    @field_validator("finetune_fraction")
    @classmethod
    def _there_is_time_to_grow(cls, value: float, info: ValidationInfo) -> float:
        delay = info.data.get("delay_fraction", 0)
        if value + delay >= 1:
            raise ValueError(f"must be below {1 - delay:g}, what delay_fraction {delay:g} leaves of the run")
        return value

    @property
    def runs_in_loader(self) -> bool:
        return self.mode == "decode"

    def image_px(self, crop_size: int, *, epoch: int, elapsed_fraction: float) -> int:
        return growing_px(
            crop_size,
            elapsed_fraction,
            initial_scale=self.initial_scale,
            delay_fraction=self.delay_fraction,
            finetune_fraction=self.finetune_fraction,
            multiple_px=self.size_increment,
        )


class ResolutionRamp(SizeSchedule):
    """The loader decodes at start_px, then at sizes growing by epoch, then at crop_size (FFCV's schedule)."""

    composer_class = ""  # the loader does it all
    name: Literal["resolution_ramp"]
    start_px: int = Field(160, ge=32, le=512, description="first size in px")
    start_epoch: int = Field(ge=0, description="epoch up to which images have the first size, from 0")
    end_epoch: int = Field(ge=1, description="epoch from which images have crop_size")
    size_increment: int = Field(32, ge=1, description="sizes are multiples of this many px")

    @field_validator("end_epoch")
    @classmethod
    def _the_ramp_ascends(cls, value: int, info: ValidationInfo) -> int:
        start = info.data.get("start_epoch", -1)
        if value <= start:
            raise ValueError(f"must be above start_epoch, which is {start}")
        return value

    @property
    def runs_in_loader(self) -> bool:
        return True

    def image_px(self, crop_size: int, *, epoch: int, elapsed_fraction: float) -> int:
        return ramp_px(
            crop_size,
            epoch,
            start_px=self.start_px,
            start_epoch=self.start_epoch,
            end_epoch=self.end_epoch,
            multiple_px=self.size_increment,
        )


class EMA(AlgorithmConfig):
    """Moving average of the weights, used for evaluation and in checkpoints."""

    composer_class = "EMA"
    name: Literal["ema"]
    half_life: Duration | None = Field(None, description="time after which old weights count half, e.g. 100ba")
    smoothing: float | None = Field(
        None, gt=0, lt=1, validate_default=True, description="share the average keeps at each update"
    )
    update_interval: Duration | None = Field(
        None, validate_default=True, description="time between updates, e.g. 20ba; null: every 1 of half_life's unit"
    )
    ema_start: Annotated[str, time_string("ep", "ba", "dur", zero=True)] = Field(
        "0.0dur", description="when averaging starts"
    )

    @field_validator("smoothing")
    @classmethod
    def _one_of_two(cls, value: float | None, info: ValidationInfo) -> float | None:
        half_life = info.data.get("half_life", "")  # '': at fault itself
        if value is None and half_life is None:
            raise ValueError("must be a number when half_life is null; give one of the two")
        if value is not None and half_life:
            raise ValueError(f"must be null when half_life is given ({half_life}); give one of the two")
        return value

    @field_validator("update_interval")
    @classmethod
    def _units_match(cls, value: str | None, info: ValidationInfo) -> str | None:
        half_life = info.data.get("half_life")
        if value is None and info.data.get("smoothing") is not None:
            raise ValueError("must be given with smoothing, e.g. 1ba")
        if value is not None and half_life is not None and value[-2:] != half_life[-2:]:
            raise ValueError(f"must be in the unit of half_life, which is {half_life}")
        return value


class MixUp(AlgorithmConfig):
    """Each image and target mixed with another of the batch (Zhang et al. 2018, arXiv:1710.09412)."""

    composer_class = "MixUp"
    name: Literal["mixup"]
    alpha: float = Field(
        0.2, ge=MIN_ALPHA, le=MAX_ALPHA, description="parameter of the Beta(alpha, alpha) the share is drawn from"
    )
    interpolate_loss: bool = Field(False, description="mix the losses, not the targets")


class CutMix(AlgorithmConfig):
    """A box of each image replaced by another image's (Yun et al. 2019, arXiv:1905.04899)."""

    composer_class = "CutMix"
    name: Literal["cutmix"]
    alpha: float = Field(
        1.0, ge=MIN_ALPHA, le=MAX_ALPHA, description="parameter of the Beta(alpha, alpha) the box area is drawn from"
    )
    interpolate_loss: bool = Field(False, description="mix the losses, not the targets")
    uniform_sampling: bool = Field(False, description="every pixel equally likely to be cut")


class MixUpOrCutMix(AlgorithmConfig):
    """MixUp or CutMix, drawn for each batch; on another number of GPUs the same images are mixed (train/mixing.py)."""

    composer_class = "MixUpOrCutMix"
    name: Literal["mixup_or_cutmix"]
    mixup_alpha: float = Field(
        0.2, ge=MIN_ALPHA, le=MAX_ALPHA, description="MixUp's Beta(alpha, alpha), of which an image's share is drawn"
    )
    cutmix_alpha: float = Field(
        1.0, ge=MIN_ALPHA, le=MAX_ALPHA, description="CutMix's Beta(alpha, alpha), of which the box's area is drawn"
    )
    mixup_fraction: float = Field(0.5, ge=0.0, le=1.0, description="of the mixed batches, those by MixUp")
    mixed_fraction: float = Field(1.0, gt=0.0, le=1.0, description="of all batches, those that are mixed")


class GradientClipping(AlgorithmConfig):
    """Gradients clipped by norm, by value or by their ratio to the weights (arXiv:2102.06171)."""

    composer_class = "GradientClipping"
    name: Literal["gradient_clipping"]
    clipping_type: Literal["norm", "value", "adaptive"] = Field(description="norm, value or adaptive")
    clipping_threshold: float = Field(
        ge=1e-6, le=1e6, description="largest norm, value or gradient/weight ratio left as it is"
    )


class CutOut(AlgorithmConfig):
    """Squares of each image blacked out, the same in the whole batch (DeVries & Taylor 2017, arXiv:1708.04552)."""

    composer_class = "CutOut"
    name: Literal["cutout"]
    num_holes: int = Field(1, ge=1, le=100, description="squares an image")
    length: float = Field(0.5, gt=0, lt=1, description="side of a square as a fraction of the image's shorter side")
    uniform_sampling: bool = Field(False, description="every pixel equally likely to be cut")


class ColOut(AlgorithmConfig):
    """Rows and columns dropped at random, the same in the whole batch (MosaicML)."""

    composer_class = "ColOut"
    name: Literal["colout"]
    p_row: float = Field(0.15, ge=0, le=0.5, description="fraction of rows dropped")
    p_col: float = Field(0.15, ge=0, le=0.5, description="fraction of columns dropped")

    @field_validator("p_col")
    @classmethod
    def _something_is_dropped(cls, value: float, info: ValidationInfo) -> float:
        if value == 0 and info.data.get("p_row") == 0:
            raise ValueError("must be above 0 when p_row is 0; else remove colout")
        return value


class StochasticDepth(AlgorithmConfig):
    """Residual blocks left out at random (Huang et al. 2016, arXiv:1603.09382); ResNet-50 and deeper."""

    composer_class = "StochasticDepth"
    fits_any_step = False
    name: Literal["stochastic_depth"]
    target_layer_name: Literal["ResNetBottleneck"] = Field("ResNetBottleneck", description="ResNetBottleneck")
    stochastic_method: Literal["block", "sample"] = Field("block", description="leave out a block, or samples in it")
    drop_rate: float = Field(0.2, gt=0, lt=1, description="probability of leaving out; the last block's if linear")
    drop_distribution: Literal["linear", "uniform"] = Field("linear", description="over the depth: linear or uniform")


class SqueezeExcite(AlgorithmConfig):
    """Channels weighted by what the whole image shows (Hu et al. 2018, arXiv:1709.01507)."""

    composer_class = "SqueezeExcite"
    name: Literal["squeeze_excite"]
    latent_channels: float = Field(
        64, gt=0, le=4096, description="width of the inner layer; below 1: a fraction of the channels"
    )
    min_channels: int = Field(
        128,
        ge=1,
        le=512,
        validate_default=True,
        description="convolutions with fewer channels, in or out, go without",
    )

    @field_validator("min_channels")
    @classmethod
    def _the_inner_layer_has_a_channel(cls, value: int, info: ValidationInfo) -> int:
        latent = info.data.get("latent_channels", 1)
        if latent < 1 and latent * value < 1:
            raise ValueError(f"must be at least {ceil(1 / latent):,}, for latent_channels {latent:g} to be one or more")
        return value


class SAM(AlgorithmConfig):
    """Steps that look for flat minima (Foret et al. 2020, arXiv:2010.01412); one that does costs two."""

    composer_class = "SAM"
    fits_any_step = False
    name: Literal["sam"]
    rho: float = Field(0.05, gt=0, le=100, description="radius of the neighbourhood")
    epsilon: float = Field(1.0e-12, gt=0, le=1, description="added to the gradient's norm")
    interval: int = Field(1, ge=1, le=10_000, description="every how many steps; those between are plain ones")


class SWA(AlgorithmConfig):
    """The mean of the weights late in the run, put in their place (Izmailov et al. 2018, arXiv:1803.05407)."""

    composer_class = "SWA"
    name: Literal["swa"]
    swa_start: Annotated[str, time_string("ep", "dur")] = Field("0.7dur", description="when averaging starts")
    swa_end: Annotated[str, time_string("ep", "dur")] = Field(
        "0.97dur",
        validate_default=True,
        description="when the mean replaces the weights; leave an epoch after it for BatchNorm",
    )
    update_interval: Duration = Field("1ep", description="time between the weights that are averaged")

    @field_validator("swa_end")
    @classmethod
    def _end_follows_start(cls, value: str, info: ValidationInfo) -> str:
        start = info.data.get("swa_start", value)
        unit = "dur" if start.endswith("dur") else "ep"
        if not value.endswith(unit):
            raise ValueError(f"must be in the unit of swa_start, which is {start}")
        if "swa_start" in info.data and float(value.removesuffix(unit)) <= float(start.removesuffix(unit)):
            raise ValueError(f"must be above swa_start, which is {start}")
        return value


Algorithm = Annotated[
    AugMix
    | AutoAugment
    | BlurPool
    | ChannelsLast
    | ColorJitter
    | ColOut
    | CutMix
    | CutOut
    | EMA
    | GradientClipping
    | LabelSmoothing
    | MixUp
    | MixUpOrCutMix
    | ProgressiveResizing
    | RandAugment
    | RandomErasing
    | ResolutionRamp
    | SAM
    | SqueezeExcite
    | StochasticDepth
    | SWA
    | ThreeAugment
    | TimmRandAugment
    | TorchvisionRandAugment
    | TrivialAugment,
    Field(discriminator="name"),
]
