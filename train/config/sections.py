"""The sections of a run's configuration: every key, its type, its unit and what it may hold.

A section is a small frozen pydantic model. Types are strict: `true` is no number, `'0.1'` is no float; a
whole number may stand where a float is expected. A check of our own raises `ValueError` with words that
follow the value ("must be a multiple of 16; nearest are 224 and 240"); `train.config.run_config` adds file, line, key
and value. Nothing here imports torch or composer, so reading a configuration takes milliseconds.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    field_validator,
)

from imagestream.limits import (
    MAX_CACHE_GB,
    MAX_PREFETCH_FACTOR,
    MAX_SAMPLES,
    MAX_SECONDS,
    MAX_WORKERS,
    ShuffleAlgo,
)

# Streaming checks with any hash of hashlib or xxhash (streaming/base/hashing.py) except the shake family.
HASHES = [
    *("xxh64", "xxh32", "xxh128", "xxh3_64", "xxh3_128"),
    *sorted(name for name in hashlib.algorithms_guaranteed if not name.startswith("shake_")),
]
PLACEHOLDER = "YOUR-BUCKET"  # stands in yamls/ where only the user knows the value
CROP_MULTIPLE_PX, CROP_MIN_PX, CROP_MAX_PX = 16, 32, 512
EVAL_MAX_PX = 1024
MAX_CLASSES = 100_000  # ImageNet-21k has 21,841
MIN_ALPHA, MAX_ALPHA = 0.001, 1000.0  # numpy's Beta gives NaN or loops where they are extreme


class Section(BaseModel):
    """Base of all sections: strict, frozen, no unknown keys, no inf or nan."""

    # defer_build: schemas are built once, as part of Config, instead of once for each section at import.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)


# ---------------------------------------------------------------------------------------------------------
# Types used in more than one section
# ---------------------------------------------------------------------------------------------------------


def time_string(*units: Literal["ep", "ba", "dur"], zero: bool = False) -> AfterValidator:
    """Accept a Composer time string in `units`: whole epochs, whole batches, or a fraction of the run."""
    example = {"ep": "8ep", "ba": "500ba", "dur": "0.1dur"}
    wanted = f"a time such as {' or '.join(example[unit] for unit in units)}"

    def check(value: str) -> str:
        match = re.fullmatch(r"(\d+)(ep|ba)|(\d+(?:\.\d+)?)(dur)", value)
        if match and len(match[1] or "") > 9:
            raise ValueError("must be below 1,000,000,000")
        if match is None or (match[2] or match[4]) not in units:
            raise ValueError(f"must be {wanted}")
        if float(match[1] or match[3]) == 0 and not zero:
            raise ValueError(f"must be above zero: {wanted}")
        if match[4] and float(match[3]) > 1:
            raise ValueError("must be at most 1dur, the whole run")
        return value

    return AfterValidator(check)


def expected(words: str) -> WrapValidator:
    """Turn the faults of a union, one per member, into a single 'must be {words}'."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"must be {words}") from None

    return WrapValidator(check)


def check_location(value: str) -> str:
    if "://" in value and not re.fullmatch(r"s3://[^/]+(/.*)?", value):
        raise ValueError("must be a folder or s3://bucket/path")
    if not value:
        raise ValueError("must be a folder or s3://bucket/path; write null for none")
    return value


def check_placeholder(value: str, info: ValidationInfo) -> str:
    if paths_are_checked(info) and PLACEHOLDER in value:
        raise ValueError(f"must name your own bucket; put its name in place of {PLACEHOLDER}")
    return value


def paths_are_checked(info: ValidationInfo) -> bool:
    return bool(info.context and info.context.get("check_paths"))


Duration = Annotated[str, time_string("ep", "ba")]
Location = Annotated[str, AfterValidator(check_location), AfterValidator(check_placeholder)]
PositiveIntOrAuto = Annotated[
    Annotated[int, Field(gt=0)] | Literal["auto"], expected("a whole number above 0, or 'auto'")
]
CountOrAuto = Annotated[
    Annotated[int, Field(ge=0, le=MAX_WORKERS)] | Literal["auto"],
    expected(f"a whole number from 0 to {MAX_WORKERS}, or 'auto'"),
]
Pair = Annotated[tuple[float, float], Strict(False)]  # YAML has lists, not tuples; the numbers stay strict
Triple = Annotated[tuple[float, float, float], Strict(False)]


# ---------------------------------------------------------------------------------------------------------
# data
# ---------------------------------------------------------------------------------------------------------


class ColumnsConfig(Section):
    """What the shards' columns are called."""

    image: str = Field("x", min_length=1, description="column of the images")
    label: str = Field("y", min_length=1, description="column of the labels, whole numbers from 0")

    @field_validator("label")
    @classmethod
    def _two_columns(cls, value: str, info: ValidationInfo) -> str:
        if value == info.data.get("image"):
            raise ValueError("must be another column than the image's")
        return value


class DataConfig(Section):
    """Where the shards are, and how they become batches."""

    remote: Location | None = Field(
        None, description="where the shards are: s3://bucket/path or a folder; null: local already holds them"
    )
    local: str | None = Field(
        None,
        validate_default=True,
        description="folder the shards are read from: the dataset itself, or a cache filled from remote",
    )
    train_split: str = Field("train", description="subfolder of the training shards; '' for none")
    val_split: str = Field("val", description="subfolder of the validation shards; '' for none")
    columns: ColumnsConfig = Field(
        {"image": "x", "label": "y"},
        validate_default=True,
        description="names of the shards' columns, e.g. {image: x, label: y}",
    )
    crop_size: int = Field(description="training crop in px, a multiple of 16 from 32 to 512")
    eval_resize_size: int = Field(
        ge=CROP_MIN_PX, le=EVAL_MAX_PX, description="short side in px before the centre crop at evaluation"
    )
    eval_crop_size: int = Field(
        ge=CROP_MIN_PX, le=EVAL_MAX_PX, description="centre crop in px at evaluation, at most eval_resize_size"
    )
    crop_scale: Pair = Field(description="area of the random crop as a fraction of the image: [low, high]")
    crop_ratio: Pair = Field(description="width / height of the random crop: [low, high]")
    flip_prob: float = Field(ge=0, le=1, description="probability of a horizontal flip")
    aug_repeats: int = Field(1, ge=1, le=64, description="how often each image is in its batch, cut and changed anew")
    crop_interpolation: Literal["bilinear", "bicubic"] = Field(
        "bilinear", description="how the random crop is resized: bilinear or bicubic, both antialiased"
    )
    eval_interpolation: Literal["bilinear", "bicubic"] = Field(
        "bilinear", description="how images are resized at evaluation: bilinear or bicubic, both antialiased"
    )
    mean: Triple = Field(description="per-channel mean, RGB, 0-255")
    std: Triple = Field(description="per-channel standard deviation, RGB, 0-255")
    decoder: Literal["auto", "native", "pillow"] = Field(
        description="JPEG decoder: native, pillow, or auto (native where it is built)"
    )
    resize_in: Literal["rgb", "ycbcr", "dct"] = Field(
        "rgb",
        description="where crops shrink: rgb, Pillow's pixels; ycbcr, before the colours: faster, at about 53 dB; "
        "dct, also in the DCT where a crop is at least twice its target: fastest, at about 46 dB",
    )
    num_workers: CountOrAuto = Field(
        description="loader processes per GPU; auto: cores / ranks on the node, at most 12"
    )
    prefetch_factor: int = Field(ge=1, le=MAX_PREFETCH_FACTOR, description="batches each worker keeps ready")
    eval_batch_size: int = Field(gt=0, le=1_000_000, description="images per evaluation step over all GPUs")
    shuffle_algo: ShuffleAlgo = Field(description="streaming's shuffle")
    shuffle_block_size: int = Field(gt=0, le=MAX_SAMPLES, description="samples shuffled together")
    num_canonical_nodes: int = Field(gt=0, le=MAX_SAMPLES, description="sample order is fixed for this many nodes")
    predownload: int | None = Field(
        gt=0, le=MAX_SAMPLES, description="samples each worker downloads ahead; null: streaming's default, 8 batches"
    )
    validate_hash: str | None = Field(
        description="hash each shard is checked by; 'auto': one of the index's own, xxh64 first; null: none"
    )
    hash_found_shards: bool = Field(
        description="hash each shard that is found in data.local at its first use in a job; false: only its size"
    )
    download_timeout_s: float = Field(
        gt=0, le=MAX_SECONDS, description="seconds before one attempt to fetch a shard counts as failed"
    )
    download_patience_s: float = Field(
        gt=0, le=MAX_SECONDS, description="seconds for which a failing download is tried again"
    )
    stall_limit_s: float = Field(
        ge=1, le=MAX_SECONDS, description="seconds without a batch before the run fails; above download_patience_s"
    )
    cache_limit_gb: float | None = Field(
        gt=0, le=MAX_CACHE_GB, description="most that data.local keeps of a split, in GB of 10^9 bytes; null: all of it"
    )

    @field_validator("remote")
    @classmethod
    def _remote_folder_exists(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and "://" not in value and paths_are_checked(info) and not os.path.isdir(value):
            raise ValueError("is not a folder; give the folder or s3://bucket/path that holds the shards")
        return value

    @field_validator("local")
    @classmethod
    def _shards_are_somewhere(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value == "" or (value is not None and "://" in value):
            raise ValueError("must be a folder; a bucket goes into data.remote")
        if "remote" not in info.data:  # remote is at fault itself
            return value
        if value is None and info.data["remote"] is None:
            raise ValueError("must be the folder that holds the shards when data.remote is null too")
        if value is None:
            raise ValueError("must be a cache folder when data.remote is given, e.g. /tmp/mds-cache")
        if info.data["remote"] is None and paths_are_checked(info) and not os.path.isdir(value):
            raise ValueError("is not a folder; give the folder that holds the shards, or set data.remote")
        return value

    @field_validator("crop_size")
    @classmethod
    def _crop_size_is_a_multiple(cls, value: int) -> int:
        step, low, high = CROP_MULTIPLE_PX, CROP_MIN_PX, CROP_MAX_PX
        if value < low or value > high:
            raise ValueError(f"must be from {low} to {high}; nearest is {low if value < low else high}")
        if value % step:
            below = value // step * step
            raise ValueError(f"must be a multiple of {step}; nearest are {below} and {below + step}")
        return value

    @field_validator("eval_crop_size")
    @classmethod
    def _eval_crop_fits(cls, value: int, info: ValidationInfo) -> int:
        resize = info.data.get("eval_resize_size", value)
        if value > resize:
            raise ValueError(f"must be at most data.eval_resize_size, which is {resize}")
        return value

    @field_validator("resize_in")
    @classmethod
    def _bicubic_crops_are_of_colours(cls, value: str, info: ValidationInfo) -> str:
        bicubic = [key for key in ("crop_interpolation", "eval_interpolation") if info.data.get(key) == "bicubic"]
        if value != "rgb" and bicubic:
            raise ValueError(f"must be rgb, which is the only place to resize in when data.{bicubic[0]} is bicubic")
        return value

    @field_validator("crop_scale")
    @classmethod
    def _scale_is_a_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("must be [low, high] with 0 < low <= high <= 1")
        return value

    @field_validator("crop_ratio")
    @classmethod
    def _ratio_is_a_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be [low, high] with 0 < low <= high")
        return value

    @field_validator("mean", "std")
    @classmethod
    def _statistics_are_in_range(
        cls, value: tuple[float, float, float], info: ValidationInfo
    ) -> tuple[float, float, float]:
        low = 1 if info.field_name == "std" else 0
        on_scale_of_1 = 0 <= min(value) <= max(value) <= 1 and max(value) > low
        if not low <= min(value) <= max(value) <= 255 or on_scale_of_1:
            remedy = "; multiply them by 255" if 0 < max(value) <= 1 else ""
            raise ValueError(f"must be three numbers on the 0-255 scale, from {low}{remedy}")
        return value

    @field_validator("stall_limit_s")
    @classmethod
    def _stall_is_longer_than_patience(cls, value: float, info: ValidationInfo) -> float:
        patience = info.data.get("download_patience_s", 0.0)
        if value <= patience:
            raise ValueError(f"must be above data.download_patience_s, which is {patience:g}")
        return value

    @field_validator("cache_limit_gb")
    @classmethod
    def _only_a_cache_is_limited(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("remote", "") is None:
            raise ValueError("must be null when data.remote is null: data.local holds the only copy of the shards")
        return value

    @field_validator("validate_hash")
    @classmethod
    def _hash_is_known(cls, value: str | None) -> str | None:
        if value not in (None, "auto", *HASHES):
            raise ValueError(f"must be auto, null or one of {', '.join(HASHES)}")
        return value


# ---------------------------------------------------------------------------------------------------------
# optimizer, scheduler
# ---------------------------------------------------------------------------------------------------------


class _SGD(Section):
    lr: float = Field(gt=0, le=1e30, description="peak learning rate")
    momentum: float = Field(ge=0, lt=1, description="momentum, 0 to below 1")
    weight_decay: float = Field(ge=0, lt=1, description="weight decay")
    nesterov: bool = Field(description="Nesterov momentum")
    decay_batchnorm: bool = Field(True, description="false: BatchNorm's weights and biases, go without decay")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of each layer as a fraction of the next one's; 1: all have lr"
    )

    @field_validator("nesterov")
    @classmethod
    def _nesterov_has_momentum(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("momentum") == 0:
            raise ValueError("must be false when momentum is 0")
        return value


class SGDConfig(_SGD):
    """torch.optim.SGD: the decay is added to the gradient, so it is scaled by lr and by momentum."""

    name: Literal["sgd"]


class DecoupledSGDWConfig(_SGD):
    """composer.optim.DecoupledSGDW: each step multiplies the weights by 1 - weight_decay * lr_t / lr.

    The decay follows the schedule but not the size of lr (Loshchilov & Hutter 2019, arXiv:1711.05101).
    `weight_decay` here equals `weight_decay / (lr / (1 - momentum))` of plain SGD.
    """

    name: Literal["decoupled_sgdw"]
    weight_decay: float = Field(ge=0, lt=1, description="weight decay, decoupled: scaled by the schedule, not by lr")


class _Adam(Section):
    lr: float = Field(gt=0, le=1e30, description="peak learning rate")
    betas: Pair = Field((0.9, 0.999), description="shares that the means of gradients and of their squares keep a step")
    eps: float = Field(1e-8, gt=0, le=1, description="added to the root of the mean square")
    weight_decay: float = Field(ge=0, lt=1, description="weight decay, decoupled: scaled by lr and its schedule")
    decay_batchnorm: bool = Field(True, description="false: BatchNorm's weights and biases, go without decay")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of each layer as a fraction of the next one's; 1: all have lr"
    )

    @field_validator("betas")
    @classmethod
    def _betas_are_shares(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("must be two numbers, each from 0 to below 1")
        return value


class AdamWConfig(_Adam):
    """torch.optim.AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101): a step multiplies weights by 1 - lr_t * decay."""

    name: Literal["adamw"]


class LambConfig(_Adam):
    """Adam's updates, each made as long as the tensor that it changes (You et al. 2019, arXiv:1904.00962)."""

    name: Literal["lamb"]
    eps: float = Field(1e-6, gt=0, le=1, description="added to the root of the mean square")
    max_grad_norm: float | None = Field(
        1.0, gt=0, le=1e6, description="norm to which all gradients together are clipped; null: they are not"
    )


Optimizer = Annotated[AdamWConfig | DecoupledSGDWConfig | LambConfig | SGDConfig, Field(discriminator="name")]


class _Schedule(Section):
    t_warmup: Annotated[str, time_string("ep", "ba", "dur", zero=True)] = Field(
        description="warm-up: epochs (8ep), batches (500ba) or a fraction of the run (0.1dur)"
    )
    alpha_f: float = Field(ge=0, le=1, description="final learning rate as a fraction of lr")


class CosineSchedule(_Schedule):
    """Learning rate over the run: linear from 0 to lr over t_warmup, then a cosine down to alpha_f * lr."""

    name: Literal["cosine_with_warmup"]


class LinearSchedule(_Schedule):
    """Linear from 0 to lr over t_warmup, then linear to alpha_f * lr at the run's end."""

    name: Literal["linear_with_warmup"]


class StepSchedule(_Schedule):
    """Linear from 0 to lr over t_warmup, then down by the same factor at each milestone, to alpha_f * lr."""

    name: Literal["steps_with_warmup"]
    milestones: Annotated[tuple[Duration, ...], Strict(False)] = Field(
        min_length=1, description="when the learning rate drops, e.g. [30ep, 60ep]"
    )

    @field_validator("alpha_f")
    @classmethod
    def _a_step_goes_down(cls, value: float) -> float:
        if value in (0, 1):
            words = "must be above 0 and below 1 for steps: each one multiplies by alpha_f to the power 1 / milestones"
            raise ValueError(words)
        return value

    @field_validator("milestones")
    @classmethod
    def _milestones_rise(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len({time[-2:] for time in value}) > 1:
            raise ValueError("must all be in epochs or all in batches")
        times = [int(time[:-2]) for time in value]
        if sorted(set(times)) != times:
            raise ValueError("must rise from one to the next")
        return value

    @property
    def gamma(self) -> float:
        """What the learning rate is multiplied by at each milestone."""
        return float(self.alpha_f ** (1 / len(self.milestones)))


Scheduler = Annotated[CosineSchedule | LinearSchedule | StepSchedule, Field(discriminator="name")]


# ---------------------------------------------------------------------------------------------------------
# checkpoint, loggers
# ---------------------------------------------------------------------------------------------------------


def _best_of_before(value: Any) -> Any:
    """Take true and false, which checkpoints of before hold, for what they meant."""
    return {True: "top1", False: None}[value] if isinstance(value, bool) else value


class CheckpointConfig(Section):
    """Where the run's state is kept, and how often."""

    save_folder: Location = Field(description="folder or s3://bucket/path")
    save_interval: Duration = Field(description="time between checkpoints: epochs (1ep) or batches (500ba)")
    keep: int = Field(ge=1, description="newest checkpoints kept")
    keep_best: Annotated[Literal["top1"] | None, BeforeValidator(_best_of_before), expected("'top1' or null")] = Field(
        None, description="top1: keep the one with the highest top-1 of the evaluations as well; null: the newest alone"
    )
    autoresume: bool = Field(description="continue from the newest checkpoint in save_folder")


def _check_project(value: str) -> str:
    if len(value) > 128 or set(value) & set("/\\#?%:"):  # wandb refuses it only once the model is built
        raise ValueError("must be a name of 1 to 128 characters, none of them / \\ # ? % :")
    return value


class WandbConfig(Section):
    """Weights & Biases."""

    project: Annotated[str, AfterValidator(_check_project)] = Field(min_length=1, description="project name")
    mode: Literal["online", "offline"] = Field("online", description="online or offline")
    entity: str | None = Field(None, min_length=1, description="user or team; null: the account's own")
    tags: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Strict(False)] = Field(
        (), description="labels of the run, of 1 to 64 characters"
    )


def _check_tracking_uri(value: str | None) -> str | None:
    if value and re.search(r"://[^/]*:[^/]*@", value):  # run.json and report.html show the configuration
        raise ValueError(
            "must be without a password; give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
        )
    return value


class MlflowConfig(Section):
    """MLflow, where it is installed."""

    experiment: str = Field(min_length=1, description="experiment's name; made where there is none")
    tracking_uri: Annotated[str | None, AfterValidator(_check_tracking_uri)] = Field(
        None, min_length=1, description="server or folder; null: what MLFLOW_TRACKING_URI says"
    )


class LoggersConfig(Section):
    """Where metrics go."""

    progress_bar: Annotated[bool | Literal["auto"], expected("true, false or 'auto'")] = Field(
        description="one bar for the run; auto: only in a terminal"
    )
    console_interval: Duration | None = Field(
        description="without a bar, time between lines of figures (1ep, 100ba); null: none"
    )
    file: bool = Field(description="the run's log as a file")
    tensorboard: bool = Field(description="TensorBoard events")
    wandb: WandbConfig | None = Field(description="Weights & Biases: null, or a map with project")
    mlflow: MlflowConfig | None = Field(None, description="MLflow: null, or a map with experiment")
