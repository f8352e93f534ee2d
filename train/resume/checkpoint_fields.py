"""Does a checkpoint that is whole hold what a run needs to continue?

Its hash tells that no bit has changed since it was written, and not by what. One that another tool has opened and saved
again can lack a field, and Composer 0.32.1 would end in a traceback, or continue with weights that are not numbers.
"""

import datetime
import math
import re
from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from composer.core import Timestamp

BATCH_NORM = ("weight", "bias", "running_var", "num_batches_tracked")  # beside each running_mean
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "blur_filter", "filt2d")
COMPOSERS = {
    "model": dict,
    "optimizers": dict,
    "schedulers": dict,
    "algorithms": list,
    "callbacks": dict,
    "dataset_state": dict,
    "rank_zero_seed": int,
    "run_name": str,
}
OURS = {
    "ResumeGuard.contract": dict,
    "ResumeGuard.contract.settings": dict,
    "ResumeGuard.contract.environment": dict,
    "ResumeGuard.contract.noted": dict,
    "ResumeGuard.changes": list,
    "ResumeGuard.ledger": str,
    "ResumeGuard.epoch_ledgers": list,
    "ResumeGuard.trail": dict,
    "ResumeGuard.trail.samples": torch.Tensor,
    "ResumeGuard.trail.loss": torch.Tensor,
    "BatchWatch.skipped": list,
    "RunRecord": dict,
    "RunRecord.epochs": list,
    "RunRecord.curve": list,
    "RunRecord.evaluations": list,
    "RunRecord.epoch_losses": list,
    "RunRecord.point_losses": list,
    "RunRecord.image_px": int,
}
OURS_WHERE_THERE = {  # checkpoints of before the run's page have none
    "RunRecord.page": dict,
    "RunRecord.page.starts": list,
    "RunRecord.page.evaluated": dict,
    "RunRecord.page.crops": dict,
    "RunRecord.page.crops.batch": int,
    "RunRecord.page.crops.image_px": int,
    "RunRecord.page.crops.pictures": list,
}
OF_AVERAGES = {  # by the recipe's name: Composer's, and what it takes up again
    "ema": ("EMA", ("ema_model", "ema_weights_active", "ema_started")),
    "swa": ("SWA", ("swa_model", "swa_completed", "swa_started", "step_counter")),
}
IN_WORDS = {dict: "a map", list: "a list", int: "a whole number", str: "text", torch.Tensor: "a tensor"}


def fault_of_fields(content: Mapping[str, Any]) -> str:
    """Return the first field that is missing or wrong, and how, or '' where a run can resume from this content."""
    return next(_faults(content), "")


def _faults(content: Mapping[str, Any]) -> Iterator[str]:
    state = content["state"]
    if not isinstance(state, dict):
        yield "state must be a map"
        return
    wanted: dict[str, Any] = COMPOSERS | {f"callbacks.{path}": kind for path, kind in OURS.items()}
    yield from _faults_of_kinds(state, wanted)
    if "page" in state["callbacks"]["RunRecord"]:
        yield from _faults_of_kinds(state, {f"callbacks.{path}": kind for path, kind in OURS_WHERE_THERE.items()})
    yield from _faults_of_time(state)
    yield from _faults_of_trail(state)
    yield from _faults_of_weights(state["model"], state["optimizers"])
    yield from _faults_of_averages(state)
    for key in ("optimizers", "schedulers"):
        if not state[key]:
            yield f"state.{key} is empty"
    for name, schedule in state["schedulers"].items():
        if not isinstance(schedule, dict) or not _is_count(schedule.get("last_epoch")):
            yield f"state.schedulers.{name}.last_epoch must be a whole number from 0"
    yield from _faults_of_kinds(state, {"dataset_state.train": dict})
    for key in ("epoch", "sample_in_epoch", "num_canonical_nodes", "shuffle_seed", "initial_physical_nodes"):
        if not _is_count(state["dataset_state"]["train"].get(key)):
            yield f"state.dataset_state.train.{key} must be a whole number from 0"
    if not isinstance(content.get("rng"), list) or not content["rng"]:
        yield "rng must be a list that is not empty"


def _faults_of_kinds(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for path, kind in wanted.items():
        value: Any = state
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                yield f"state.{path} is missing"
                return
            value = value[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            yield f"state.{path} must be {IN_WORDS[kind]}, and is {type(value).__name__}"
            return


def _faults_of_time(state: Mapping[str, Any]) -> Iterator[str]:
    yield from _faults_of_kinds(state, {"timestamp": dict, "timestamp.Timestamp": dict})
    stamp = state["timestamp"]["Timestamp"]
    for key, example in Timestamp().state_dict().items():
        value = stamp.get(key)
        if isinstance(example, datetime.timedelta):
            if not isinstance(value, datetime.timedelta):
                yield f"state.timestamp.Timestamp.{key} must be a duration, and is {type(value).__name__}"
        elif not _is_count(value):
            yield f"state.timestamp.Timestamp.{key} must be a whole number from 0, and is {value!r}"


def _faults_of_trail(state: Mapping[str, Any]) -> Iterator[str]:
    guard, batch = state["callbacks"]["ResumeGuard"], state["timestamp"]["Timestamp"]["batch"]
    for key in ("samples", "loss"):
        shape = tuple(guard["trail"][key].shape)
        if shape != (batch,):
            yield f"state.callbacks.ResumeGuard.trail.{key} has the shape {shape}, and {batch} batches are done"
    for ledger in (guard["ledger"], *guard["epoch_ledgers"]):
        if not isinstance(ledger, str) or not re.fullmatch("[0-9a-f]{64}", ledger):
            yield "state.callbacks.ResumeGuard has a ledger that is not a SHA-256"


def _faults_of_averages(state: Mapping[str, Any]) -> Iterator[str]:
    """An average that is missing would begin anew without a word."""
    held = {}
    for place, entry in enumerate(state["algorithms"]):
        if not isinstance(entry, (tuple, list)) or len(entry) != 2 or not isinstance(entry[1], dict):
            yield f"state.algorithms.{place} must be a name and a map"
            return
        held[entry[0]] = entry[1]
    for algorithm in state["callbacks"]["ResumeGuard"]["contract"]["settings"].get("algorithms", ()):
        name, keys = OF_AVERAGES.get(algorithm["name"], ("", ()))
        for key in keys:
            if key not in held.get(name, {}):
                yield f"state.algorithms.{name}.{key} is missing"
    yield from _faults_of_ema(held.get("EMA", {}).get("ema_model"), state["model"], _frozen(state))


def _frozen(state: Mapping[str, Any]) -> set[str]:
    """Return the weights that the run does not train: of those there is no average."""
    if not state["callbacks"]["ResumeGuard"]["contract"]["settings"].get("model.freeze"):
        return set()
    groups = [group for kind in state["optimizers"].values() for group in kind["param_groups"]]
    trained = {_without_wrappers(name) for group in groups for name in group.get("params", ())}
    weights = {_without_wrappers(name) for name in state["model"] if not name.endswith(BUFFERS)}
    return weights - trained


def _faults_of_ema(average: Any, model: Mapping[str, Any], frozen: Set[str]) -> Iterator[str]:
    place = "state.algorithms.EMA.ema_model"
    if average is None:
        return
    kinds = ("named_parameters_dict", "named_buffers_dict")
    tensors: dict[str, Any] = {}
    for part in [average.get(kind) for kind in kinds] if isinstance(average, dict) else [None]:
        if not isinstance(part, dict):
            yield f"{place} must have maps of parameters and of buffers"
            return
        tensors |= {_without_wrappers(name): tensor for name, tensor in part.items()}
    names = {_without_wrappers(name) for name in model}
    for name in sorted((names - frozen) ^ tensors.keys()):
        yield f"{place} has {name} alone" if name in tensors else f"{place} lacks {name}"
    for name, tensor in tensors.items():
        if fault := _fault_of_tensor(tensor):
            yield f"{place}.{name} {fault}"


def _without_wrappers(name: str) -> str:
    """Return a parameter's name without what DistributedDataParallel puts before it."""
    return re.sub(r"^(module\.)+", "", name)


def _faults_of_weights(model: Mapping[str, Any], optimizers: Mapping[str, Any]) -> Iterator[str]:
    if not model:
        yield "state.model is empty"
    for name, tensor in model.items():
        if fault := _fault_of_tensor(tensor):
            yield f"state.model.{name} {fault}"
        layer, _, last = name.rpartition(".")
        for other in BATCH_NORM if last == "running_mean" else ():
            if f"{layer}.{other}" not in model:
                yield f"state.model.{layer}.{other} is missing"
    for kind, optimizer in optimizers.items():
        place = f"state.optimizers.{kind}"
        parts = optimizer if isinstance(optimizer, dict) else {}
        if not isinstance(parts.get("state"), dict) or not isinstance(parts.get("param_groups"), list):
            yield f"{place} must have a map called state, and a list called param_groups"
            continue
        for number, group in enumerate(parts["param_groups"]):
            lr = group.get("lr") if isinstance(group, dict) else None
            if not isinstance(lr, (int, float)) or not math.isfinite(lr):
                yield f"{place}.param_groups.{number}.lr must be a finite number"
        if not parts["param_groups"]:
            yield f"{place}.param_groups is empty"
        for name, buffers in parts["state"].items():
            if name not in model:
                yield f"state.model.{name} is missing"
            for key, tensor in buffers.items() if isinstance(buffers, dict) else ():
                if isinstance(tensor, torch.Tensor) and (fault := _fault_of_tensor(tensor)):
                    yield f"{place}.state.{name}.{key} {fault}"


def _fault_of_tensor(tensor: Any) -> str:
    if not isinstance(tensor, torch.Tensor):
        return f"must be a tensor, and is {type(tensor).__name__}"
    return "" if bool(tensor.isfinite().all()) else "has values that are not finite"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
