"""A run's whole configuration: reading it from YAML, and saying all that is wrong with it at once.

    cfg = load_config('yamls/full.yaml', ['data.remote=s3://bucket/mds', 'seed=1'])

The sections are in `train.config.sections` and `train.config.algorithms`, the reading of files in
`train.config.config_file`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

import yaml
from pydantic import AfterValidator, BaseModel, Field, Strict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from imagestream.limits import MAX_SECONDS
from train.config.algorithm_pairs import fault_of_pairs
from train.config.algorithms import (
    SAM,
    Algorithm,
    CutOut,
    ProgressiveResizing,
    ResolutionRamp,
    SizeSchedule,
    StochasticDepth,
)
from train.config.augmentations import PerSampleAlgorithm
from train.config.config_file import Dumper, Fault, Mark, Node, describe, is_number, read_config_tree
from train.config.model import ModelConfig, fault_of_step
from train.config.network_faults import fault_of_algorithms, fault_of_decay, fault_of_model
from train.config.sections import (
    CheckpointConfig,
    DataConfig,
    Duration,
    LoggersConfig,
    Optimizer,
    PositiveIntOrAuto,
    Scheduler,
    Section,
)

if TYPE_CHECKING:
    from composer.core import Algorithm as ComposerAlgorithm


SMALLEST_PX = 16  # of a training image


class ConfigError(ValueError):
    """What is wrong with a configuration: one line per fault, with file, line, key, value and remedy."""


def _check_run_name(value: str) -> str:
    if not re.fullmatch(r"(?!\.)[A-Za-z0-9._-]{1,100}", value):
        raise ValueError("must be 1 to 100 letters, digits, dots, dashes or underscores, the first not a dot")
    return value


def _check_on_nonfinite(value: str) -> str:
    if not re.fullmatch(r"stop|skip [1-9]\d{0,5}", value):
        raise ValueError("must be 'stop' or 'skip N', such as 'skip 3'")
    return value


class Config(Section):
    """One training run. Batch sizes are global: over all GPUs of all nodes."""

    run_name: Annotated[str, AfterValidator(_check_run_name)] = Field(description="name of the run")
    seed: int = Field(ge=0, lt=2**32, description="seed of everything random, a whole number from 0")
    max_duration: Duration = Field(description="length of the run: epochs (90ep) or batches (500ba)")
    eval_interval: Duration = Field("1ep", description="time between evaluations; there is one at the end in any case")
    global_batch_size: int = Field(gt=0, description="images per optimizer step over all GPUs")
    scale_with_batch: int | None = Field(
        None,
        gt=0,
        description="global_batch_size for which learning rate, decay and times in batches are meant; at another one "
        "they are scaled; null: never",
    )
    device_train_microbatch_size: PositiveIntOrAuto = Field(
        description="images per forward pass and GPU; auto: the most that fit (CPU: the whole device batch)"
    )
    precision: Literal["auto", "fp32", "amp_bf16", "amp_fp16"] = Field(
        description="arithmetic; auto: amp_bf16 on GPU, fp32 on CPU"
    )
    training_step: Literal["eager", "compile", "cuda_graphs"] = Field(
        "eager", description="eager; compile: the forward pass by torch.compile; cuda_graphs: recorded once, replayed"
    )
    gradient_compression: Literal["none", "bf16", "fp16"] = Field(
        "none", description="in how many bits ranks exchange gradients: none (32), or 16 as bf16 or fp16"
    )
    on_nonfinite: Annotated[str, AfterValidator(_check_on_nonfinite)] = Field(
        description="when gradients are not finite: stop, or skip N (leave out at most N steps of the run)"
    )
    deterministic: bool = Field(description="bit-exact kernels on GPU, slower; CPU always is")
    data: DataConfig
    model: ModelConfig
    optimizer: Optimizer
    scheduler: Scheduler
    algorithms: Annotated[tuple[Algorithm, ...], Strict(False)] = Field(description="Composer's algorithms")
    checkpoint: CheckpointConfig
    loggers: LoggersConfig
    dist_timeout: float = Field(
        gt=0, le=MAX_SECONDS, description="seconds a rank waits for the others before the run fails"
    )

    @property
    def nonfinite_skips(self) -> int:
        """Steps that may be left out because their gradients are not finite."""
        return int(self.on_nonfinite.partition(" ")[2] or 0)

    @property
    def per_sample_algorithms(self) -> tuple[PerSampleAlgorithm, ...]:
        """The algorithms that the loader applies, in their order."""
        return tuple(algorithm for algorithm in self.algorithms if isinstance(algorithm, PerSampleAlgorithm))

    def build_algorithms(self) -> list[ComposerAlgorithm]:
        """Return Composer's algorithms: those that are not the loader's."""
        return [algorithm.build() for algorithm in self.algorithms if not algorithm.runs_in_loader]

    @property
    def size_schedule(self) -> SizeSchedule | None:
        """The algorithm that says at which size the loader decodes, if there is one."""
        sized = (algorithm for algorithm in self.algorithms if isinstance(algorithm, SizeSchedule))
        return next((algorithm for algorithm in sized if algorithm.runs_in_loader), None)

    @field_validator("dist_timeout")
    @classmethod
    def _the_loader_speaks_first(cls, value: float, info: ValidationInfo) -> float:
        stall = info.data["data"].stall_limit_s if "data" in info.data else 0.0
        if value <= stall:
            raise ValueError(f"must be above data.stall_limit_s, which is {stall:g}")
        return value

    @field_validator("checkpoint")
    @classmethod
    def _checkpoints_are_not_among_the_shards(cls, value: CheckpointConfig, info: ValidationInfo) -> CheckpointConfig:
        data = info.data.get("data")
        for key in ("local", "remote") if data and info.context is not None else ():
            place = getattr(data, key)
            if place is not None and _same_place(value.save_folder, place):
                raise _fault_at(value.save_folder, f"must be another folder than data.{key}", "save_folder")
        return value

    @field_validator("scheduler")
    @classmethod
    def _warmup_fits_the_run(cls, value: Scheduler, info: ValidationInfo) -> Scheduler:
        run = info.data.get("max_duration", "")
        if value.t_warmup[-2:] == run[-2:] and int(value.t_warmup[:-2]) > int(run[:-2]):
            raise _fault_at(value.t_warmup, f"must be at most max_duration, which is {run}", "t_warmup")
        return value

    @field_validator("model")
    @classmethod
    def _layers_fit_the_step(cls, value: ModelConfig, info: ValidationInfo) -> ModelConfig:
        if fault := fault_of_step(value, info.data.get("training_step", "eager")):
            raise _fault_at(*fault)
        if other := fault_of_model(value, info.data.get("data")):
            raise _fault_at(other[0], other[1], *other[2])
        return value

    @field_validator("optimizer")
    @classmethod
    def _decay_fits_the_network(cls, value: Optimizer, info: ValidationInfo) -> Optimizer:
        network = info.data["model"].name if "model" in info.data else ""
        if fault := fault_of_decay(network, decay_batchnorm=value.decay_batchnorm):
            raise _fault_at(fault[0], fault[1], *fault[2])
        return value

    @field_validator("algorithms")
    @classmethod
    def _each_algorithm_once(cls, value: tuple[Algorithm, ...]) -> tuple[Algorithm, ...]:
        names = [algorithm.name for algorithm in value]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise _fault_at(
                    name, f"is given twice, first as algorithms.{names.index(name)}; remove one of the two", i, "name"
                )
        return value

    @field_validator("algorithms")
    @classmethod
    def _sizes_reach_the_crop(cls, value: tuple[Algorithm, ...], info: ValidationInfo) -> tuple[Algorithm, ...]:
        # Sizes are rounded to the nearest multiple, so the last one would miss the crop size.
        crop_size = info.data["data"].crop_size if "data" in info.data else 0
        sized = [i for i, algorithm in enumerate(value) if isinstance(algorithm, SizeSchedule)]
        if len(sized) > 1:
            raise _fault_at(
                value[sized[1]].name,
                f"sets the images' size, as {value[sized[0]].name} does; keep one",
                sized[1],
                "name",
            )
        for i, algorithm in enumerate(value):
            if isinstance(algorithm, SizeSchedule) and crop_size % algorithm.size_increment:
                raise _fault_at(
                    algorithm.size_increment, f"must divide data.crop_size, which is {crop_size}", i, "size_increment"
                )
            if isinstance(algorithm, ResolutionRamp) and algorithm.start_px % algorithm.size_increment:
                raise _fault_at(
                    algorithm.start_px,
                    f"must be a multiple of size_increment, which is {algorithm.size_increment}",
                    i,
                    "start_px",
                )
            if isinstance(algorithm, ProgressiveResizing) and crop_size:
                first_px = algorithm.image_px(crop_size, epoch=0, elapsed_fraction=0.0)
                if not SMALLEST_PX <= first_px < crop_size:
                    words = (
                        f"gives first images of {first_px} px; they must have {SMALLEST_PX} px or more, and fewer than"
                    )
                    raise _fault_at(
                        algorithm.initial_scale, f"{words} data.crop_size, which is {crop_size}", i, "initial_scale"
                    )
            if isinstance(algorithm, CutOut) and crop_size and int(crop_size * algorithm.length) < 2:
                words = f"is less than two of the {crop_size} px of data.crop_size: nothing would be blacked out"
                raise _fault_at(algorithm.length, words, i, "length")
            if isinstance(algorithm, ResolutionRamp) and crop_size and algorithm.start_px > crop_size:
                raise _fault_at(
                    algorithm.start_px, f"must be at most data.crop_size, which is {crop_size}", i, "start_px"
                )
            if isinstance(algorithm, ResolutionRamp) and not _reaches(info.data.get("max_duration", ""), algorithm):
                words = f"must be below max_duration, which is {info.data['max_duration']}, or no batch has crop_size"
                raise _fault_at(algorithm.end_epoch, words, i, "end_epoch")
            if isinstance(algorithm, SAM) and info.data.get("on_nonfinite", "stop") != "stop":
                raise _fault_at(
                    "sam",
                    "goes with on_nonfinite: stop alone; its step is two, of which one cannot be left out",
                    i,
                    "name",
                )
        return value

    @field_validator("algorithms")
    @classmethod
    def _algorithms_go_together(cls, value: tuple[Algorithm, ...], info: ValidationInfo) -> tuple[Algorithm, ...]:
        if info.context is None:  # a stored configuration: what an earlier version has trained can be evaluated
            return value
        network = info.data["model"].name if "model" in info.data else ""
        if pair := fault_of_pairs(value, model=network):
            raise _fault_at(pair.value, pair.words, pair.place, pair.key)
        if "model" in info.data and (fault := fault_of_algorithms(info.data["model"], value)):
            raise _fault_at(fault[0], fault[1], *fault[2])
        step = info.data.get("training_step", "eager")
        is_synchronised = "model" in info.data and info.data["model"].sync_batchnorm
        for i, algorithm in enumerate(value):
            if step != "eager" and not algorithm.fits_any_step:
                words = f"cannot go with training_step: {step}, for which every step must be the same; give eager"
                raise _fault_at(algorithm.name, words, i, "name")
            if isinstance(algorithm, StochasticDepth) and algorithm.stochastic_method == "block" and is_synchronised:
                words = "cannot go with model.sync_batchnorm: a GPU would leave out a block in which the others wait "
                raise _fault_at("block", f"{words}for it; give sample", i, "stochastic_method")
        return value


def _same_place(one: str, other: str) -> bool:
    if "://" in one or "://" in other:
        return one.rstrip("/") == other.rstrip("/")
    return os.path.realpath(one) == os.path.realpath(other)


def _reaches(max_duration: str, ramp: ResolutionRamp) -> bool:
    return not max_duration.endswith("ep") or int(max_duration[:-2]) > ramp.end_epoch


def _fault_at(value: Any, words: str, *path: str | int) -> PydanticCustomError:
    """Return the error of a check that sees a whole section but blames the value at `path` inside it."""
    return PydanticCustomError("fault_at", "{words}", {"value": value, "words": words, "path": path})


# ---------------------------------------------------------------------------------------------------------
# Reading and writing
# ---------------------------------------------------------------------------------------------------------


def load_config(path: str | Path, overrides: Sequence[str] = (), *, check_paths: bool = True) -> Config:
    """Read and check a run's configuration.

    `overrides` are `key.path=value` strings. With `check_paths` local data folders must exist; relative ones
    are taken from the current directory. Raises ConfigError, which names every fault at once.
    """
    reading = read_config_tree(path, overrides)
    faults = reading.faults
    if reading.tree is not None:
        tree = _without_keys_of_other_kinds(reading.tree)
        try:
            config = Config.model_validate(tree.plain(), context={"check_paths": check_paths})
        except ValidationError as error:
            faults += _faults_of(error, tree, complete=reading.complete)
    if faults:
        raise _error_from(faults)
    return config


def _without_keys_of_other_kinds(tree: Node) -> Node:
    """Leave out what a base says of its own optimizer or schedule, and the one that is named has not."""
    content = dict(tree.content)
    for section in ("optimizer", "scheduler"):
        kinds = {_name_of(kind): kind.model_fields for kind in _sections_in(Config.model_fields[section].annotation)}
        node = content.get(section)
        fields = kinds.get(str(node.plain().get("name"))) if node and isinstance(node.content, dict) else None
        if node is None or fields is None:
            continue
        others = {key for of_kind in kinds.values() for key in of_kind} - fields.keys()
        kept = {key: value for key, value in node.content.items() if not (value.is_of_other_kind and key in others)}
        content[section] = replace(node, content=kept)
    return replace(tree, content=content)


def config_from_dict(stored: Mapping[str, Any]) -> Config:
    """Return the configuration that `Config.model_dump(mode='json')` gave; no paths are checked. Raises ConfigError."""
    try:
        return Config.model_validate(dict(stored))
    except ValidationError as error:
        raise faults_as_error(error, Node(None, Mark(False, "stored configuration", 0))) from None


def resolved_yaml(cfg: Config) -> str:
    """Return the whole configuration as YAML, in the order of the schema; `load_config` reads it back."""
    return yaml.dump(cfg.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def device_batch_size(cfg: Config, world_size: int) -> int:
    """Return the images per optimizer step on each of `world_size` ranks. Raises ConfigError if uneven."""
    size, rest = divmod(cfg.global_batch_size, world_size)
    if rest:
        nearest = " and ".join(str(n * world_size) for n in (size, size + 1) if n)
        ranks = " or ".join(map(str, _nearest_divisors(cfg.global_batch_size, world_size)))
        raise ConfigError(
            f"global_batch_size: {cfg.global_batch_size} must be a multiple of the {world_size} ranks; "
            f"nearest: {nearest}, as in global_batch_size={(size + 1) * world_size}; or keep it and run {ranks} ranks"
        )
    if size % cfg.data.aug_repeats:
        raise ConfigError(
            f"data.aug_repeats: {cfg.data.aug_repeats} must divide the {size} images that each of {world_size} ranks "
            "has of a global batch, for the copies of an image go to one rank"
        )
    return size


def _nearest_divisors(number: int, near: int) -> list[int]:
    """Return the next divisor of `number` below `near` and the next one above, if there is one."""
    below = max(n for n in range(1, near + 1) if number % n == 0)
    above = next((n for n in range(near, number + 1) if number % n == 0), None)
    return sorted({below, above or below})


def faults_as_error(error: ValidationError, tree: Node) -> ConfigError:
    """Return pydantic's faults, each with where in `tree` it stands, as one error."""
    return _error_from(_faults_of(error, tree))


def _error_from(faults: Iterable[Fault]) -> ConfigError:
    return ConfigError("\n".join(str(fault) for fault in sorted(set(faults))))


# ---------------------------------------------------------------------------------------------------------
# From pydantic's errors to faults
# ---------------------------------------------------------------------------------------------------------

_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a map",
    "model_attributes_type": "a map",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "text that is not empty",
    "string_too_long": "text of at most {max_length} characters",
}


class _Place(NamedTuple):
    """Where in the schema an error lies."""

    path: tuple[str | int, ...]  # as the file has it; pydantic adds a tag after each union: ('optimizer', 'sgd', 'lr')
    section: type[BaseModel]  # the section that the last key belongs to
    field: FieldInfo | None  # None: that section has no such key
    choices: list[str]  # names to choose from, if the field is a union of sections

    def nearest_key(self) -> str | None:
        return _nearest(str(self.path[-1]), self.section.model_fields)


def _locate(loc: tuple[str | int, ...]) -> _Place:
    path: list[str | int] = []
    section: type[BaseModel] = Config
    field: FieldInfo | None = None
    candidates: list[type[BaseModel]] = [Config]
    for item in loc:
        if isinstance(item, str) and len(candidates) > 1:
            candidates = [candidate for candidate in candidates if _name_of(candidate) == item]
            continue
        path.append(item)
        if isinstance(item, str):
            section = candidates[0]
            field = section.model_fields.get(item)
            candidates = _sections_in(field.annotation) if field else []
    return _Place(tuple(path), section, field, [_name_of(c) for c in candidates] if len(candidates) > 1 else [])


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]


def _name_of(section: type[BaseModel]) -> str:
    name: str = get_args(section.model_fields["name"].annotation)[0]
    return name


def _faults_of(error: ValidationError, tree: Node, *, complete: bool = True) -> list[Fault]:
    # With a base that could not be read, what is not in the tree may well be in that base.
    details = [(detail, _locate(detail["loc"])) for detail in error.errors(include_url=False)]
    # A misspelt key that has to be there is one fault, not two: it need not be called missing as well.
    misspelt = {
        (*place.path[:-1], place.nearest_key()) for detail, place in details if detail["type"] == "extra_forbidden"
    }
    faults = []
    for detail, place in details:
        if detail["type"] == "missing" and place.path in misspelt:
            continue
        path, words = _phrase(detail, place)
        mark, found = tree.find(path)
        if found or complete:
            faults.append(Fault(mark, ".".join(map(str, path)), words))
    return faults


def _phrase(detail: ErrorDetails, place: _Place) -> tuple[tuple[str | int, ...], str]:
    """Return the path to blame and what is wrong there: the value seen, what is allowed, what to do."""
    kind, ctx, path = detail["type"], detail.get("ctx", {}), place.path
    seen = describe(detail["input"])
    meaning = f" ({place.field.description})" if place.field and place.field.description else ""
    if kind == "fault_at":
        return (*path, *ctx["path"]), f"{describe(ctx['value'])} {ctx['words']}"
    if kind == "value_error":
        return path, f"{seen} {ctx['error']}"
    if kind == "extra_forbidden":
        return path, f"unknown key; {_right_key(place)}"
    if kind == "union_tag_invalid":
        return (*path, "name"), _choice(ctx["tag"], place.choices)
    if kind == "union_tag_not_found":
        return (*path, "name"), f"is missing; add one of {', '.join(place.choices)}"
    if kind == "literal_error" and place.field:
        return path, _choice(detail["input"], get_args(place.field.annotation))
    if kind == "too_short":
        return path, f"{seen} must have at least {ctx['min_length']} entries{meaning}".replace("1 entries", "one entry")
    if place.field and (kind == "too_long" or (kind == "missing" and isinstance(path[-1], int))):
        whole = path[:-1] if isinstance(path[-1], int) else path
        return whole, f"must have {len(get_args(place.field.annotation))} entries{meaning}"
    if kind == "missing":
        return path, f"is missing; add it{meaning}"
    if kind in _KINDS:
        limits = {
            name: f"{int(limit):,}" if limit == int(limit) and limit < 1e12 else f"{limit:g}"
            for name, limit in ctx.items()
        }
        return path, f"{seen} must be {_KINDS[kind].format(**limits)}{_remedy(kind, detail['input'])}{meaning}"
    return path, f"{seen}: {detail['msg']}{meaning}"


def _remedy(kind: str, value: Any) -> str:
    if kind in ("int_type", "float_type") and isinstance(value, str) and is_number(value):
        return " without quotes"
    if kind == "string_type" and isinstance(value, (bool, int, float)):
        return " in quotes"
    return " such as [a, b]" if kind == "tuple_type" else ""


def _choice(value: Any, choices: Sequence[str]) -> str:
    words = (
        f"{describe(value)} must be one of {', '.join(choices)}"
        if len(choices) > 1
        else (f"{describe(value)} must be {choices[0]}")
    )
    nearest = _nearest(str(value), choices)
    return f"{words}; did you mean '{nearest}'?" if nearest and len(choices) > 1 else words


def _right_key(place: _Place) -> str:
    key = str(place.path[-1])
    if nearest := place.nearest_key():
        return f"did you mean '{nearest}'?"
    elsewhere = [f"{name}.{key}" for name, field in Config.model_fields.items() if _has_key(field, key)]
    if key in Config.model_fields:
        elsewhere.append(key)
    here = ".".join(map(str, place.path))
    if here in elsewhere:  # another member of the same union has it
        parent = place.path[-2]
        names = [
            _name_of(s) for s in _sections_in(Config.model_fields[str(parent)].annotation) if key in s.model_fields
        ]
        return f"it goes with {parent}.name: {' or '.join(names)} alone"
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"remove it, or use one of {', '.join(place.section.model_fields)}"


def _has_key(field: FieldInfo, key: str) -> bool:
    return field.annotation is not None and any(
        key in section.model_fields for section in _sections_in(field.annotation)
    )


def _nearest(word: str, words: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(words), n=1)), None)
