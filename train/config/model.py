"""The network of a run: which one, what its weights begin as, and which of them stay."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Strict

from train.config.networks import RESNETS, check_network
from train.config.sections import (
    MAX_CLASSES,
    Section,
    check_location,
    check_placeholder,
    expected,
)

NAMED_WEIGHTS = ("torchvision", "timm")
"""What may stand before the colon in model.weights; anything else is a file."""


def _check_weights(value: str) -> str:
    source, colon, name = value.partition(":")
    if colon and source in NAMED_WEIGHTS:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            example = {"torchvision": "torchvision:IMAGENET1K_V2", "timm": "timm:resnet50.a1_in1k"}[source]
            raise ValueError(f"must be such as {example}")
        return value
    check_location(value)
    if value.endswith("/"):
        raise ValueError("must be a file, local or s3://bucket/path, or torchvision:NAME or timm:NAME")
    return value


def _check_part(value: str) -> str:
    if not re.fullmatch(r"\w+(\.\w+)*", value, re.ASCII):
        raise ValueError("must be stem, backbone, or the name of a layer or parameter such as layer1 or layer2.0.conv1")
    return value


Part = Annotated[str, AfterValidator(_check_part)]


class ModelConfig(Section):
    """The network and its loss."""

    name: Annotated[str, AfterValidator(check_network)] = Field(description="network")
    num_classes: Annotated[
        Annotated[int, Field(gt=1, le=MAX_CLASSES)] | Literal["auto"],
        expected(f"a whole number from 2 to {MAX_CLASSES:,}, or 'auto'"),
    ] = Field(description="classes; auto: from the dataset's manifest")
    loss: Literal["cross_entropy", "binary_cross_entropy"] = Field(description="training loss")
    target_threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="above it a class of a mixed target counts as 1, else as 0; null: as it was mixed",
    )
    init: Literal["mosaic", "torchvision"] = Field(description="initial weights, where model.weights has none")
    zero_init_last_gamma: bool = Field(
        False, description="true: the last BatchNorm's weight of each residual block begins at zero, whatever init"
    )
    sync_batchnorm: bool = Field(
        False, description="true: BatchNorm's statistics in training are those of all GPUs' images in a forward pass"
    )
    weights: Annotated[str, AfterValidator(_check_weights), AfterValidator(check_placeholder)] | None = Field(
        None,
        description="weights to begin with: a file, local or s3://, torchvision:NAME or timm:NAME; null: those of init",
    )
    weights_ema: bool = Field(
        True, description="of a file that has both: true: the averaged weights (EMA's); false: those that were trained"
    )
    freeze: Annotated[tuple[Part, ...], Strict(False)] = Field(
        (), description="parts that are not trained: stem, backbone (all but the last layer), or names such as layer1"
    )


def fault_of_step(model: ModelConfig, step: str) -> tuple[Any, str, str] | None:
    """Return the value, what is wrong with it, and its key, where these layers cannot take such a training_step."""
    if model.sync_batchnorm and step != "eager":
        words = f"cannot go with training_step: {step}, for its layers wait for the other GPUs; give eager"
        return True, words, "sync_batchnorm"
    if step != "eager" and model.name not in RESNETS:
        return (
            model.name,
            f"cannot go with training_step: {step}, which is tested with ResNets alone; give eager",
            "name",
        )
    if model.freeze and step == "cuda_graphs":
        words = "cannot go with training_step: cuda_graphs, which records the gradients of all weights; give eager"
        return list(model.freeze), words, "freeze"
    return None
