"""A checkpoint whose hash is right, and of which a field is missing or wrong, is told by that field."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from composer.core import Timestamp

from train.resume.checkpoint_fields import fault_of_fields

Content = dict[str, Any]


def content() -> Content:
    """What a run of one small layer would save after two batches."""
    names = ("weight", "bias", "running_mean", "running_var")
    model: Content = {f"module.bn1.{name}": torch.ones(3) for name in names}
    model["module.bn1.num_batches_tracked"] = torch.tensor(2)
    momentum = {f"module.bn1.{name}": {"momentum_buffer": torch.ones(3)} for name in names[:2]}
    guard = {
        "contract": {"settings": {}, "environment": {}, "noted": {}, "is_bit_exact": True},
        "changes": [],
        "ledger": "a" * 64,
        "epoch_ledgers": [],
        "trail": {"samples": torch.tensor([1, 2]), "loss": torch.tensor([0.5, float("nan")])},
    }
    record = {"epochs": [], "curve": [], "evaluations": [], "epoch_losses": [0.0, 0], "point_losses": [0.0, 0]}
    keys = ("epoch", "sample_in_epoch", "num_canonical_nodes", "shuffle_seed", "initial_physical_nodes")
    place = dict.fromkeys(keys, 1)
    state = {
        "model": model,
        "optimizers": {"SGD": {"state": momentum, "param_groups": [{"lr": 0.1}]}},
        "schedulers": {"LambdaLR": {"last_epoch": 2}},
        "algorithms": [],
        "callbacks": {"ResumeGuard": guard, "BatchWatch": {"skipped": []}, "RunRecord": record | {"image_px": 32}},
        "timestamp": {"Timestamp": Timestamp().to_next_batch().to_next_batch().state_dict()},
        "rank_zero_seed": 17,
        "run_name": "tiny",
        "dataset_state": {"train": place},
    }
    return {"state": state, "rng": [{"python": 1}]}


def test_a_checkpoint_as_it_is_saved_has_no_fault() -> None:
    assert fault_of_fields(content()) == ""


def at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def paths(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of each entry of each map, to the bottom."""
    if not isinstance(value, dict):
        return []
    return [found for key, part in value.items() for found in ((*path, key), *paths(part, (*path, key)))]


def is_looked_at(path: tuple[str, ...]) -> bool:
    """Momentum is made anew where there is none, and the last ones are only compared."""
    return path != ("state",) and path[1:2] + path[3:4] != ("optimizers", "state") and path[-1] != "is_bit_exact"


PATHS = [path for path in paths(content()) if is_looked_at(path)] + [("state", "optimizers", "SGD", "state")]


LEFT_TO_COMPOSER = ("running_mean", "module.bn1.running_mean", "python")
"""It refuses a checkpoint that lacks one of these."""


@pytest.mark.parametrize("path", [path for path in PATHS if path[-1] not in LEFT_TO_COMPOSER], ids=".".join)
def test_each_field_that_is_missing_is_named(path: tuple[str, ...]) -> None:
    changed = content()
    del at(changed, path[:-1])[path[-1]]
    fault = fault_of_fields(changed)
    assert path[-1] in fault or path[-2] in fault, fault


def wrong_values(path: tuple[str, ...]) -> list[Any]:
    """Values of another kind than a field's; `{}` is none where a map is expected."""
    return [None, -1.5] if isinstance(at(content(), path), dict) else [None, -1.5, {}]


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        pytest.param(path, wrong, id=f"{'.'.join(path)}-{wrong}")
        for path in PATHS
        if path[-1] != "python"  # any number may be its own
        for wrong in wrong_values(path)
    ],
)
def test_each_field_of_another_kind_is_refused(path: tuple[str, ...], wrong: Any) -> None:
    changed = content()
    at(changed, path[:-1])[path[-1]] = wrong
    assert fault_of_fields(changed)


def with_lr(state: Content, lr: float) -> None:
    state["optimizers"]["SGD"]["param_groups"][0]["lr"] = lr


def with_trail(state: Content, samples: list[int]) -> None:
    state["callbacks"]["ResumeGuard"]["trail"]["samples"] = torch.tensor(samples)


def with_average(state: Content, without: str) -> None:
    """EMA's entry as a run of two processes has it, but for one part."""
    state["callbacks"]["ResumeGuard"]["contract"]["settings"]["algorithms"] = [{"name": "ema"}]
    held = {f"module.{name}": torch.ones(3) for name in state["model"] if not name.endswith(without)}
    average = {"named_parameters_dict": held, "named_buffers_dict": {}}
    entry = {"ema_model": average, "ema_weights_active": False, "ema_started": True}
    state["algorithms"].append(("EMA", {key: value for key, value in entry.items() if key != without}))


GUARD = "state.callbacks.ResumeGuard"
WRONG: dict[str, Callable[[Content], Any]] = {
    "state.model.module.bn1.bias has values that are not finite": lambda s: s["model"]["module.bn1.bias"].fill_(
        torch.nan
    ),
    "state.optimizers.SGD.param_groups is empty": lambda s: s["optimizers"]["SGD"].update(param_groups=[]),
    "state.optimizers.SGD.param_groups.0.lr must be a finite number": lambda s: with_lr(s, torch.nan),
    "state.algorithms.EMA.ema_started is missing": lambda s: with_average(s, "ema_started"),
    "state.algorithms.EMA.ema_model lacks bn1.bias": lambda s: with_average(s, "bn1.bias"),
    "state.algorithms.0 must be a name and a map": lambda s: s["algorithms"].append(1),
    f"{GUARD}.trail.samples has the shape (1,), and 2 batches are done": lambda s: with_trail(s, [1]),
}


def test_an_average_of_several_processes_has_no_fault() -> None:
    whole = content()
    with_average(whole["state"], "nothing")
    assert fault_of_fields(whole) == ""


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_is_named(fault: str) -> None:
    changed = content()
    WRONG[fault](changed["state"])
    assert fault_of_fields(changed) == fault


def page() -> Content:
    """What the record's page adds, of which checkpoints of before it have nothing."""
    return {"starts": [], "evaluated": {}, "crops": {"batch": 0, "image_px": 32, "pictures": []}}


def test_a_checkpoint_with_the_pages_part_has_no_fault() -> None:
    whole = content()
    whole["state"]["callbacks"]["RunRecord"]["page"] = page()
    assert fault_of_fields(whole) == ""


@pytest.mark.parametrize("path", paths(page()), ids=".".join)
@pytest.mark.parametrize("wrong", [None, -1.5])
def test_a_wrong_part_of_the_page_is_named(path: tuple[str, ...], wrong: Any) -> None:
    changed = content()
    changed["state"]["callbacks"]["RunRecord"]["page"] = page()
    at(changed["state"]["callbacks"]["RunRecord"]["page"], path[:-1])[path[-1]] = wrong
    assert f"state.callbacks.RunRecord.page.{'.'.join(path)} must be" in fault_of_fields(changed)
    del at(changed["state"]["callbacks"]["RunRecord"]["page"], path[:-1])[path[-1]]
    assert fault_of_fields(changed) == f"state.callbacks.RunRecord.page.{'.'.join(path)} is missing"
