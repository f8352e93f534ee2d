"""A recipe at another batch: learning rate, decay and what is counted in batches change together."""

import math

import pytest

from tests.conftest import REPOSITORY
from train.config.algorithms import EMA, SWA
from train.config.batch_scale import scaled, scaled_time, scaling_in_words
from train.config.run_config import Config, ConfigError, config_from_dict, load_config, resolved_yaml

FULL, BASE = REPOSITORY / "yamls/full.yaml", REPOSITORY / "yamls/base.yaml"


def load(*overrides: str, path: object = FULL) -> Config:
    return load_config(str(path), ["data.local=x", *overrides], check_paths=False)


def test_full_yaml_at_a_batch_of_256_has_the_figures_that_follow_from_the_published_ones() -> None:
    """Worked out by hand from MosaicML's figures for 2,048 images, of which 256 are an eighth.

    lr 2.048 / 8 (arXiv:1706.02677). An epoch of 1,281,167 images has 5,004 steps and not 625, each of which decays the
    weights once (arXiv:1711.05101), so 5e-4 / 8. An average over 100 batches of 2,048 is over 800 of 256.
    """
    cfg = scaled(load("global_batch_size=256"))
    assert cfg.optimizer.lr == 0.256
    assert cfg.optimizer.weight_decay == 6.25e-5
    (ema,) = (algorithm for algorithm in cfg.algorithms if isinstance(algorithm, EMA))
    assert (ema.half_life, ema.update_interval, ema.ema_start) == ("800ba", "160ba", "0.0dur")
    assert (cfg.max_duration, cfg.scheduler.t_warmup, cfg.optimizer.model_dump()["momentum"]) == ("90ep", "8ep", 0.875)


def test_an_epoch_decays_the_weights_as_much_at_any_batch() -> None:
    images = 1_281_167
    kept = {
        batch: (1 - scaled(load(f"global_batch_size={batch}")).optimizer.weight_decay) ** (images / batch)
        for batch in (256, 512, 1024, 2048, 4096)
    }
    assert kept == pytest.approx(dict.fromkeys(kept, math.exp(-5e-4 * images / 2048)), rel=2e-3)
    by_lr_alone = (1 - 5e-4) ** (images / 256)  # what changing the learning rate alone would give
    assert by_lr_alone == pytest.approx(kept[256] ** 8, rel=1e-3)


@pytest.mark.parametrize("name", ["mosaic-baseline", "mosaic-mild", "mosaic-medium", "mosaic-hot"])
def test_mosaicmls_recipes_are_meant_for_their_own_batch(name: str) -> None:
    cfg = load(path=REPOSITORY / f"yamls/recipes/{name}.yaml")
    assert cfg.scale_with_batch == cfg.global_batch_size == 2048
    assert scaled(cfg) == cfg and scaling_in_words(cfg, scaled(cfg)) == ""


def test_of_sgd_only_the_learning_rate_is_scaled_for_its_decay_goes_through_that() -> None:
    """torchvision's reference: 0.1 and 1e-4 for 256 images, so Goyal's 0.8 and the same 1e-4 for 2,048."""
    cfg = load("scale_with_batch=256", "global_batch_size=2048", path=REPOSITORY / "yamls/recipes/torchvision-v1.yaml")
    after = scaled(cfg).optimizer
    assert (after.lr, after.weight_decay) == (0.8, 1e-4)


def test_without_it_no_figure_changes() -> None:
    cfg = load("scale_with_batch=null", "global_batch_size=256")
    assert scaled(cfg) is cfg


def test_times_in_batches_keep_their_images_and_others_stay() -> None:
    steps = "scheduler={name: steps_with_warmup, alpha_f: 0.1, t_warmup: 30ba, milestones: [300ba, 600ba]}"
    averages = "algorithms=[{name: swa, swa_start: 0.3dur, swa_end: 0.9dur, update_interval: 6ba}]"
    cfg = load("scale_with_batch=512", "max_duration=900ba", steps, averages, path=BASE)  # at 256: twice as many
    after = scaled(cfg)
    assert (after.max_duration, after.scheduler.t_warmup) == ("1800ba", "60ba")
    assert after.scheduler.model_dump()["milestones"] == ("600ba", "1200ba")
    (swa,) = after.algorithms
    assert isinstance(swa, SWA) and (swa.swa_start, swa.swa_end, swa.update_interval) == ("0.3dur", "0.9dur", "12ba")
    assert [scaled_time(time, 0.5) for time in ("0ba", "8ep", "0.1dur", "5ba")] == ["0ba", "8ep", "0.1dur", "10ba"]
    assert [scaled_time("1ba", share) for share in (2.0, 0.7, 0.1)] == ["1ba", "1ba", "10ba"]
    for unit in ("ep", "ba"):
        ema = scaled(load(f"algorithms=[{{name: ema, half_life: 4{unit}}}]", "global_batch_size=256")).algorithms[0]
        assert isinstance(ema, EMA) and (ema.half_life, ema.update_interval) == (
            "4ep" if unit == "ep" else "32ba",
            None,
        )


@pytest.mark.parametrize("batch", [256, 1536, 2048 * 32])
def test_an_average_by_smoothing_looks_back_on_as_many_images(batch: int) -> None:
    average = "algorithms=[{name: ema, smoothing: 0.999, update_interval: 20ba}]"
    ema = scaled(load(average, f"global_batch_size={batch}")).algorithms[0]
    assert isinstance(ema, EMA) and ema.smoothing is not None and ema.update_interval is not None
    images = batch * int(ema.update_interval[:-2]) * math.log(0.5) / math.log(ema.smoothing)
    assert images == pytest.approx(2048 * 20 * math.log(0.5) / math.log(0.999))
    if batch == 256:
        assert (ema.smoothing, ema.update_interval) == (0.999, "160ba")


def test_what_was_scaled_is_said_and_is_not_scaled_again() -> None:
    before = load("global_batch_size=256")
    after = scaled(before)
    assert scaling_in_words(before, after) == (
        "optimizer.lr 2.048 -> 0.256, optimizer.weight_decay 0.0005 -> 6.25e-05, "
        "algorithms.4.half_life 100ba -> 800ba, algorithms.4.update_interval 20ba -> 160ba"
    )
    assert scaled(after) == after == config_from_dict(after.model_dump(mode="json"))
    assert "scale_with_batch: 256\n" in resolved_yaml(after)


def test_a_batch_that_leads_out_of_a_figures_range_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        scaled(load(f"global_batch_size={2048 * 2000}"))
    assert str(caught.value) == (
        "scaled from a batch of 2,048 to 4,096,000: optimizer.weight_decay: 1.0 must be below 1 "
        "(weight decay, decoupled: scaled by the schedule, not by lr)"
    )
