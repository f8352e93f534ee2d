"""Which algorithms do not go together: those that Composer 0.32.1 runs side by side with a wrong result.

Each pair was found by comparing the loss with that of the classes that the pixels show
(`tests/unit/test_algorithm_pairs.py`). All other pairs of a recipe's algorithms act on different things.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from train.config.algorithm import AlgorithmConfig
from train.config.algorithms import (
    EMA,
    SWA,
    CutMix,
    LabelSmoothing,
    MixUp,
    MixUpOrCutMix,
    StochasticDepth,
)
from train.config.networks import BOTTLENECK_MODELS

Mixing = MixUp | CutMix | MixUpOrCutMix
MIXING = (MixUp, CutMix, MixUpOrCutMix)


class PairFault(NamedTuple):
    """What is wrong with an algorithm beside another: where it is listed, its key and value, and what to do."""

    place: int
    key: str
    value: Any
    words: str


def fault_of_pairs(algorithms: Sequence[AlgorithmConfig], *, model: str) -> PairFault | None:
    """Return the first thing that keeps these algorithms from being used together, or in this model."""
    for place, algorithm in enumerate(algorithms):
        before, after = algorithms[:place], algorithms[place + 1 :]
        if isinstance(algorithm, MIXING):
            fault = _fault_of_mixing(algorithm, place, before, after)
            if fault:
                return fault
        if isinstance(algorithm, (EMA, SWA)) and (other := _first(before, (EMA, SWA))):
            words = f"cannot go with {other.name}: both average the weights, and only one average can be kept; keep one"
            return PairFault(place, "name", algorithm.name, words)
        if isinstance(algorithm, StochasticDepth) and model and model not in BOTTLENECK_MODELS:
            words = f"does nothing in a {model}: it leaves out bottleneck blocks, which resnet50, resnet101 and "
            return PairFault(place, "name", algorithm.name, f"{words}resnet152 have")
    return None


def _fault_of_mixing(
    algorithm: Mixing, place: int, before: Sequence[AlgorithmConfig], after: Sequence[AlgorithmConfig]
) -> PairFault | None:
    if other := _first(before, MIXING):
        words = f"cannot go with {other.name}: both would mix each batch; keep one, or take mixup_or_cutmix, which "
        return PairFault(place, "name", algorithm.name, f"{words}draws one of the two for each batch")
    of_losses = isinstance(algorithm, (MixUp, CutMix)) and algorithm.interpolate_loss
    if of_losses and _first((*before, *after), (LabelSmoothing,)):
        # Composer works out the second loss itself, at BEFORE_BACKWARD, when the labels are as they were.
        words = "must be false beside label_smoothing: the loss that is mixed in would be of targets that are not "
        return PairFault(place, "interpolate_loss", True, f"{words}smoothed")
    return None


def _first(algorithms: Sequence[AlgorithmConfig], kinds: tuple[type[Any], ...]) -> Any:
    return next((algorithm for algorithm in algorithms if isinstance(algorithm, kinds)), None)
