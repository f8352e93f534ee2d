"""Two algorithms at once: what a configuration allows trains on the right targets, and what would not is refused.

Images are painted with their class: channel c is 1 everywhere for class c. So whatever mixes them, the share of each
class in the pixels is the target that the loss must be of.
"""

import itertools
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.core import Callback, State
from composer.loggers import Logger
from torch import nn
from torch.nn.functional import cross_entropy

from train.config.run_config import Config, ConfigError, load_config
from train.model import ImageClassifier

pytestmark = pytest.mark.slow

CLASSES, PX, SMOOTHING = 3, 16, 0.3
ON_TARGETS = {
    "label_smoothing": f"{{name: label_smoothing, smoothing: {SMOOTHING}}}",
    "mixup": "{name: mixup, alpha: 1.0}",
    "mixup_of_losses": "{name: mixup, alpha: 1.0, interpolate_loss: true}",
    "cutmix": "{name: cutmix}",
    "cutmix_of_losses": "{name: cutmix, interpolate_loss: true}",
    "mixup_or_cutmix": "{name: mixup_or_cutmix, mixup_alpha: 1.0}",
    "sam": "{name: sam, interval: 1}",
    "gradient_clipping": "{name: gradient_clipping, clipping_type: norm, clipping_threshold: 1.0}",
    "ema": "{name: ema, half_life: 4ba}",
}
REFUSED = {
    *itertools.permutations(("label_smoothing", "mixup_of_losses")),
    *itertools.permutations(("label_smoothing", "cutmix_of_losses")),
    *itertools.product(("mixup", "mixup_of_losses"), ("cutmix", "cutmix_of_losses")),
    *itertools.product(("cutmix", "cutmix_of_losses"), ("mixup", "mixup_of_losses")),
}
MIXED = ("mixup", "mixup_of_losses", "cutmix", "cutmix_of_losses")
REFUSED |= {pair for other in MIXED for pair in itertools.permutations(("mixup_or_cutmix", other))}
MIXED_TWICE = {
    pair for pair in REFUSED if {*pair} in ({"mixup_or_cutmix", "mixup"}, {"mixup_or_cutmix", "mixup_of_losses"})
}
"""Their targets are right; but nobody asks for images of four others."""
HALF_SMOOTHED = [("label_smoothing", "mixup"), ("label_smoothing", "cutmix")]
PAIRS = [
    pair
    for pair in itertools.permutations(ON_TARGETS, 2)
    if pair[0].partition("_of")[0] != pair[1].partition("_of")[0] and pair not in HALF_SMOOTHED
]


def config(*algorithms: str, more: tuple[str, ...] = ()) -> Config:
    return load_config(
        "yamls/tiny.yaml", [f"algorithms=[{', '.join(algorithms)}]", "data.local=.", *more], check_paths=False
    )


class _Losses(Callback):
    """Compares the loss of each forward pass with that of the targets that its pixels show."""

    def __init__(self, *, smoothing: float) -> None:
        self.smoothing, self.errors = smoothing, list[float]()

    def after_backward(self, state: State, logger: Logger) -> None:
        shares = state.batch[0].mean(dim=(2, 3))
        targets = (1 - self.smoothing) * shares + self.smoothing / CLASSES
        assert isinstance(state.outputs, torch.Tensor) and isinstance(state.loss, torch.Tensor)
        self.errors.append(abs(float(state.loss) - float(cross_entropy(state.outputs, targets))))


def loss_errors(cfg: Config) -> list[float]:
    """How far the loss of each forward pass of some steps is from that of the pixels' targets."""
    torch.manual_seed(3)
    labels = torch.arange(32) % CLASSES
    images = nn.functional.one_hot(labels, CLASSES).float()[:, :, None, None].expand(-1, -1, PX, PX).clone()
    smoothing = SMOOTHING if any(algorithm.name == "label_smoothing" for algorithm in cfg.algorithms) else 0.0
    losses = _Losses(smoothing=smoothing)
    samples: Any = list(zip(images, labels, strict=True))
    model = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(CLASSES * PX * PX, CLASSES)), "cross_entropy")
    model.num_classes = CLASSES
    trainer = Trainer(
        model=model,
        train_dataloader=torch.utils.data.DataLoader(samples, batch_size=8),
        max_duration="3ba",
        optimizers=torch.optim.SGD(model.parameters(), lr=0.001),
        algorithms=cfg.build_algorithms(),
        callbacks=losses,
        device="cpu",
        progress_bar=False,
        seed=5,
    )
    trainer.fit()
    trainer.close()
    return losses.errors


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_the_loss_is_that_of_what_the_pixels_show_or_the_pair_is_refused(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [ON_TARGETS[name] for name in pair]
    if pair in REFUSED:
        with pytest.raises(ConfigError, match=r"algorithms\.[01]\.(name|interpolate_loss): "):
            config(*wanted)
        return
    errors = loss_errors(config(*wanted))
    assert len(errors) >= 3
    assert max(errors) < 1e-5


@pytest.mark.parametrize("pair", HALF_SMOOTHED, ids="+".join)
def test_label_smoothing_before_a_mix_smooths_only_what_is_not_mixed_in(pair: tuple[str, str]) -> None:
    """MosaicML's medium and hot recipes are so, and it changes no class's share by more than the smoothing."""
    errors = loss_errors(config(*(ON_TARGETS[name] for name in pair)))
    assert 1e-3 < max(errors) < SMOOTHING


@pytest.mark.parametrize("pair", sorted(REFUSED - MIXED_TWICE), ids="+".join)
def test_what_is_refused_would_have_wrong_targets(pair: tuple[str, str]) -> None:
    """So that no pair is refused for nothing: Composer's algorithms, put together without the check."""
    parts = [config(ON_TARGETS[name]).algorithms[0] for name in pair]
    together = config().model_copy(update={"algorithms": tuple(parts)})
    assert max(loss_errors(together)) > 1e-3


@pytest.mark.parametrize(
    ("algorithms", "more", "message"),
    [
        (
            ["{name: mixup}", "{name: cutmix}"],
            (),
            "algorithms.1.name: 'cutmix' cannot go with mixup: both would mix each batch; keep one, or take "
            "mixup_or_cutmix",
        ),
        (
            ["{name: cutmix, interpolate_loss: true}", "{name: label_smoothing}"],
            (),
            "algorithms.0.interpolate_loss: true must be false beside label_smoothing: the loss that is mixed in would "
            "be of targets that are not smoothed",
        ),
        (
            ["{name: ema, half_life: 4ba}", "{name: swa}"],
            (),
            "algorithms.1.name: 'swa' cannot go with ema: both average the weights, and only one average can be kept; "
            "keep one",
        ),
        (
            ["{name: stochastic_depth}"],
            ("model.name=resnet18",),
            "algorithms.0.name: 'stochastic_depth' does nothing in a resnet18: it leaves out bottleneck blocks, which "
            "resnet50, resnet101 and resnet152 have",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_to_do(
    algorithms: list[str], more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        config(*algorithms, more=more)
    assert message in str(raised.value)


def test_a_stored_configuration_can_be_read_whatever_it_has() -> None:
    """A checkpoint of an earlier version is evaluated as it is."""
    from train.config.run_config import config_from_dict

    stored: dict[str, Any] = config().model_dump(mode="json")
    stored["algorithms"] = [config(ON_TARGETS[name]).algorithms[0].model_dump() for name in ("mixup", "cutmix")]
    assert [algorithm.name for algorithm in config_from_dict(stored).algorithms] == ["mixup", "cutmix"]
