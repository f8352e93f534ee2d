"""The algorithms that change one image at a time, in the loader's workers; imagestream/augment/ has what they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from train.config.algorithm import AlgorithmConfig
from train.config.sections import MAX_ALPHA, MIN_ALPHA, Pair

if TYPE_CHECKING:
    from imagestream.augment.policy import Policy


class PerSampleAlgorithm(AlgorithmConfig):
    """An algorithm that changes one image at a time, in the loader's workers, before it is in a batch."""

    composer_class = ""

    @property
    def runs_in_loader(self) -> bool:
        return True

    def policy(self, mean: Sequence[float]) -> Policy:
        """Return what changes the images.

        Args:
            mean: data.mean, RGB, 0-255.
        """
        raise NotImplementedError


AugmentationSet = Annotated[
    Literal["all", "safe", "original"],
    Field(description="all; safe: without those of ImageNet-C; original: with the first implementation's strengths"),
]


Interpolation = Annotated[
    Literal["nearest", "bilinear", "bicubic"],
    Field(description="of rotated, sheared and shifted images; torchvision's recipes: bilinear"),
]


class RandAugment(PerSampleAlgorithm):
    """`depth` random changes of each image, as in Composer (Cubuk et al. 2019, arXiv:1909.13719)."""

    name: Literal["randaugment"]
    augmentation_set: AugmentationSet = "all"
    severity: int = Field(9, ge=1, le=10, description="strength of a change, 1 to 10")
    depth: int = Field(2, ge=1, le=100, description="changes an image")

    def policy(self, mean: Sequence[float]) -> Policy:
        from imagestream.augment.composers import ComposerRandAugment

        return ComposerRandAugment(self.severity, self.depth, self.augmentation_set)


class TorchvisionRandAugment(PerSampleAlgorithm):
    """`num_ops` random changes of each image, all of one strength: torchvision's RandAugment (arXiv:1909.13719)."""

    name: Literal["torchvision_randaugment"]
    num_ops: int = Field(2, ge=1, le=100, description="changes an image")
    magnitude: int = Field(9, ge=0, le=30, description="strength of a change, 0 to 30")
    interpolation: Interpolation = "bilinear"

    def policy(self, mean: Sequence[float]) -> Policy:
        from imagestream.augment.spaces import RandAugment

        return RandAugment(self.num_ops, self.magnitude, self.interpolation)


class TimmRandAugment(PerSampleAlgorithm):
    """Up to `num_layers` random changes of each image: timm's rand-m7-mstd0.5-inc1 (arXiv:2110.00476)."""

    name: Literal["timm_randaugment"]
    magnitude: float = Field(7.0, ge=0, le=10, description="mean strength of a change, 0 to 10; timm's m")
    num_layers: int = Field(2, ge=1, le=100, description="changes an image, at most; timm's n")
    probability: float = Field(0.5, gt=0, le=1, description="of each of them; timm's p")
    magnitude_std: float = Field(0.5, ge=0, le=100, description="standard deviation of the strength; timm's mstd")
    interpolation: Literal["random", "bilinear", "bicubic"] = Field(
        "random", description="of rotated, sheared and shifted images; random: bilinear or bicubic by chance"
    )

    def policy(self, mean: Sequence[float]) -> Policy:
        from imagestream.augment.timms import TimmRandAugment

        red, green, blue = (min(255, round(level)) for level in mean)
        return TimmRandAugment(
            self.magnitude,
            self.num_layers,
            self.probability,
            self.magnitude_std,
            self.interpolation,
            fill=(red, green, blue),
        )


class AutoAugment(PerSampleAlgorithm):
    """One of 25 pairs of changes that were found for ImageNet: torchvision's AutoAugment (arXiv:1805.09501)."""

    name: Literal["auto_augment"]
    interpolation: Interpolation = "bilinear"

    def policy(self, mean: Sequence[float]) -> Policy:
        from imagestream.augment.spaces import AutoAugment

        return AutoAugment(self.interpolation)


class ThreeAugment(PerSampleAlgorithm):
    """Each image grey, solarised or blurred: DeiT III's 3-Augment (arXiv:2204.07118); its jitter is color_jitter."""

    name: Literal["three_augment"]

    def policy(self, mean: Sequence[float]) -> Policy:
        from imagestream.augment.colours import ThreeAugment

        return ThreeAugment()


class ColorJitter(PerSampleAlgorithm):
    """Brightness, contrast and saturation times random factors, in random order, as in torchvision."""

    name: Literal["color_jitter"]
    brightness: float = Field(0.3, ge=0, le=10, description="factors are within this of 1, and at least 0")
    contrast: float = Field(0.3, ge=0, le=10, description="likewise")
    saturation: float = Field(0.3, ge=0, le=10, validate_default=True, description="likewise")

    @field_validator("saturation")
    @classmethod
    def _something_changes(cls, value: float, info: ValidationInfo) -> float:
        if value == info.data.get("brightness", 1) == info.data.get("contrast", 1) == 0:
            raise ValueError("must be above 0 when brightness and contrast are 0; else remove color_jitter")
        return value

    def policy(self, mean: Sequence[float]) -> Policy:
        from imagestream.augment.colours import ColorJitter

        return ColorJitter(self.brightness, self.contrast, self.saturation)


class AugMix(PerSampleAlgorithm):
    """Each image mixed with `width` randomly changed copies, as in Composer (arXiv:1912.02781)."""

    name: Literal["augmix"]
    augmentation_set: AugmentationSet = "all"
    severity: int = Field(3, ge=1, le=10, description="strength of a change, 1 to 10")
    depth: int = Field(-1, ge=-1, le=100, description="changes a copy; -1: 1 to 3 at random")
    width: int = Field(3, ge=1, le=100, description="copies that are mixed")
    alpha: float = Field(
        1.0,
        ge=MIN_ALPHA,
        le=MAX_ALPHA,
        description="parameter of the Dirichlet and Beta that the shares are drawn from",
    )

    @field_validator("depth")
    @classmethod
    def _zero_means_nothing(cls, value: int) -> int:
        if value == 0:
            raise ValueError("must be at least 1, or -1 for 1 to 3 at random")
        return value

    def policy(self, mean: Sequence[float]) -> Policy:
        from imagestream.augment.composers import AugMix

        return AugMix(self.severity, self.depth, self.width, self.alpha, self.augmentation_set)


class TrivialAugment(PerSampleAlgorithm):
    """One random change of each image, of any strength: torchvision's TrivialAugmentWide (arXiv:2103.10158)."""

    name: Literal["trivial_augment"]
    interpolation: Interpolation = "bilinear"

    def policy(self, mean: Sequence[float]) -> Policy:
        from imagestream.augment.spaces import TrivialAugment

        return TrivialAugment(self.interpolation)


class RandomErasing(PerSampleAlgorithm):
    """A box of some images painted over with the mean colour (Zhong et al. 2017, arXiv:1708.04896); list it last."""

    name: Literal["random_erasing"]
    probability: float = Field(0.1, gt=0.0, le=1.0, description="of an image")
    scale: Pair = Field((0.02, 0.33), description="the box's area, fraction of the image: low, high")
    ratio: Pair = Field((0.3, 3.3), description="the box's height / width: low, high")

    @field_validator("scale", "ratio")
    @classmethod
    def _low_comes_first(cls, value: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        most = 1.0 if info.field_name == "scale" else 100.0
        if not 0 < value[0] <= value[1] <= most:
            raise ValueError(f"must be two numbers above 0 and at most {most:g}, the lower first")
        return value

    def policy(self, mean: Sequence[float]) -> Policy:
        from imagestream.augment.erasing import RandomErasing

        return RandomErasing(self.probability, self.scale, self.ratio, mean)
