"""What a run's network begins as: read on the first rank, given to all, and put in before there is an optimizer."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from composer.functional import apply_blurpool, apply_squeeze_excite
from composer.utils import dist
from torch import nn

from train.config.algorithm import AlgorithmConfig
from train.config.algorithms import BlurPool, SqueezeExcite, StochasticDepth
from train.config.model import ModelConfig
from train.model import ImageClassifier
from train.weights.freezing import freeze
from train.weights.loading import Matched, load_into
from train.weights.reading import StoredWeights, WeightsError
from train.weights.source import read_location

log = logging.getLogger(__name__)

REPLACED = {BlurPool: apply_blurpool, SqueezeExcite: apply_squeeze_excite}


@dataclass(frozen=True)
class InitialWeights:
    """The weights that model.weights names, the same on all ranks but for the tensors, which rank 0 holds.

    Attributes:
        location: model.weights.
        sha256: of the tensors; '' where they cannot be read.
        fault: why they cannot be read, or ''. A run that resumes does not need them.
    """

    location: str
    sha256: str
    fault: str
    stored: StoredWeights | None = None

    def on_all_ranks(self) -> StoredWeights:
        """Return the tensors; collective.

        Raises:
            WeightsError: they cannot be read; on all ranks alike.
        """
        if self.fault:
            raise WeightsError(self.fault)
        held = [self.stored]
        dist.broadcast_object_list(held)
        assert held[0] is not None
        return held[0]


def read_initial_weights(cfg: ModelConfig) -> InitialWeights | None:
    """Read model.weights on rank 0, where it is given; collective."""
    if cfg.weights is None:
        return None
    held: StoredWeights | None = None
    outcome = ["", ""]
    if dist.get_global_rank() == 0:
        try:
            held = read_location(cfg.weights, cfg.name, wants_average=cfg.weights_ema)
            outcome = [held.sha256, ""]
        except WeightsError as error:
            outcome = ["", str(error)]
    dist.broadcast_object_list(outcome)
    sha256, fault = outcome
    return InitialWeights(cfg.weights, sha256, fault, held)


def begin(
    model: ImageClassifier,
    cfg: ModelConfig,
    algorithms: Sequence[AlgorithmConfig],
    weights: InitialWeights | None,
    *,
    num_classes: int,
    classes: Sequence[str] | None,
) -> Matched | None:
    """Give a model its weights, and freeze what is not trained; collective. Return what the file has given it.

    Algorithms put layers around the network's, and others in; Composer would do so only once there is an optimizer,
    and what is frozen must never be in it. It then finds it done.

    Args:
        weights: None: the model keeps those that it has, as a run does that resumes from a checkpoint.

    Raises:
        WeightsError: they are not there, or of another network.
        ConfigError: nothing would be trained.
    """
    replace_layers(model, algorithms)
    if weights is None and not cfg.freeze:
        return None
    matched = None
    if weights is not None:
        stored = weights.on_all_ranks()
        matched = load_into(model.module, stored, num_classes=num_classes, classes=classes, shown=weights.location)
        if stored.drops_blocks and not any(isinstance(one, StochasticDepth) for one in algorithms):
            log.warning(
                "warning: weights: %s is of a run with stochastic_depth, whose evaluation scales what each block adds; "
                "without it the network begins as another function. List stochastic_depth, or begin from what "
                "train/export.py makes of it, which has the factors in its weights",
                weights.location,
            )
        log.info("weights: %s (%s, sha256 %s): %s", weights.location, stored.kind, stored.sha256[:16], matched)
    model.as_evaluated = freeze(model.module, cfg.freeze, num_classes=num_classes)
    return matched


def replace_layers(model: nn.Module, algorithms: Sequence[AlgorithmConfig]) -> None:
    """Do what Composer's algorithms do to the layers at the start; done again, it changes nothing more."""
    for algorithm in algorithms:
        if apply := REPLACED.get(type(algorithm)):
            apply(model, **algorithm.model_dump(exclude={"name"}))
