"""Weights out of a file: a checkpoint of ours, what torch.save wrote, or safetensors; plain tensors, nothing else."""

import argparse
import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.resume.checkpoint_file import HASH_BYTES, MAGIC, SAFE_GLOBALS, CheckpointError, load, one_line
from train.weights.names import without_wrappers

AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "module_ema")
TRAINED = ("state_dict", "model", "model_state_dict", "module")
"""Under which names checkpoints of torchvision, timm, Lightning and others hold their weights."""
NOT_WEIGHTS = "n_averaged"  # how many weights torch's AveragedModel has averaged


class WeightsError(ValueError):
    """model.weights cannot be used; the message says what was seen, and where."""


@dataclass(frozen=True)
class StoredWeights:
    """What a file holds of a network.

    Attributes:
        tensors: by name, without what wraps the network.
        kind: of weights, as a person reads it: "averaged weights", "trained weights" or "weights".
        classes: names of the classes of its outputs, where the file says so.
        drops_blocks: whether they are of a network with Composer's stochastic depth, which scales what blocks add.
        sha256: of all tensors with their names; of a run's checkpoint it is `weights_sha256` in that run's run.json.
    """

    tensors: dict[str, Tensor]
    kind: str
    classes: tuple[str, ...] | None
    sha256: str
    drops_blocks: bool = False


def read_weights(path: Path, shown: str, *, wants_average: bool) -> StoredWeights:
    """Read a file.

    Args:
        shown: the file's name for messages.
        wants_average: of a file that has both, the averaged weights, not those that were trained.

    Raises:
        WeightsError: it is damaged or holds something else; or it could run code when it is loaded.
    """
    try:
        if shown.endswith(".safetensors"):
            return stored(_read_safetensors(path), "weights", shown)
        if _is_ours(path):
            content = load(path)
            try:
                return _of_checkpoint(content, shown, wants_average=wants_average)
            except (AttributeError, KeyError, TypeError) as error:
                raise WeightsError(
                    f"model.weights: {shown} is not what a run of ours has saved: {one_line(error)}"
                ) from error
        content = _load(path, shown)
    except CheckpointError as error:
        raise WeightsError(f"model.weights: {str(error).replace(str(path), shown)}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise WeightsError(f"model.weights: {shown} cannot be read: {reason}") from error
    tensors, kind = _weights_in(content, shown, wants_average=wants_average)
    return stored(tensors, kind, shown)


def stored(
    tensors: Mapping[str, Any], kind: str, shown: str, *, classes: tuple[str, ...] | None = None
) -> StoredWeights:
    """Return weights with their hash.

    Raises:
        WeightsError: there are none, or something among them is no tensor of finite numbers.
    """
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise WeightsError(
                f"model.weights: {shown} holds {name}, which is not a tensor but {type(tensor).__name__}; give a state "
                f"dict, or a map with one under {', '.join((*TRAINED, *AVERAGED))}"
            )
        if not bool(tensor.isfinite().all()):
            raise WeightsError(f"model.weights: {shown}: {name} has values that are not finite")
    named = without_wrappers({name: tensor for name, tensor in tensors.items() if name != NOT_WEIGHTS})
    if not named:
        raise WeightsError(f"model.weights: {shown} holds no tensors; give a file of weights")
    return StoredWeights(named, kind, classes, tensors_sha256({f"module.{name}": named[name] for name in named}))


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) over tensors, each with its name, dtype, shape and bytes, in order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _is_ours(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - HASH_BYTES - len(MAGIC)))
        return file.read(len(MAGIC)) == MAGIC


def _of_checkpoint(content: dict[str, Any], shown: str, *, wants_average: bool) -> StoredWeights:
    """Return the weights of a run of ours: those of the model, or those that EMA has set aside."""
    state = content["state"]
    model = {name: tensor for name, tensor in state["model"].items() if name.startswith("module.")}
    ema = dict(entry for entry in state["algorithms"] if entry[0] == "EMA").get("EMA", {})
    kind = "weights"
    if ema.get("ema_started"):
        kind = "averaged weights" if wants_average else "trained weights"
        if bool(ema["ema_weights_active"]) is not wants_average:
            other = ema["ema_model"]["named_parameters_dict"] | ema["ema_model"]["named_buffers_dict"]
            model |= {f"module.{name}": tensor for name, tensor in without_wrappers(dict(other)).items()}
    record = state["callbacks"].get("RunRecord", {})
    classes = record.get("classes")
    found = stored(model, kind, shown, classes=None if classes is None else tuple(classes))
    algorithms = record.get("config", {}).get("algorithms", [])
    return replace(found, drops_blocks=any(one["name"] == "stochastic_depth" for one in algorithms))


def _load(path: Path, shown: str) -> Any:
    """Return what torch.save wrote, if it is plain data."""
    safe = [*SAFE_GLOBALS, argparse.Namespace]  # of torchvision's and timm's scripts: the arguments of the command
    try:
        with torch.serialization.safe_globals(safe):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if foreign := _foreign_types(path, safe, error):
            words = f"holds {', '.join(foreign)}; loading it could run code, so it is refused. Give a file of tensors "
            raise WeightsError(f"model.weights: {shown} {words}alone, such as a state dict or .safetensors") from error
        # torch's own words on what is not plain data advise to load it all the same
        reason = "it is not plain data" if isinstance(error, pickle.UnpicklingError) else one_line(error)
        raise WeightsError(
            f"model.weights: {shown} cannot be loaded: {reason}; give what torch.save wrote of a state dict, or "
            ".safetensors"
        ) from error


def _foreign_types(path: Path, safe: list[Any], error: Exception) -> list[str]:
    """Return what a file holds beside plain data: of a zip archive all of it, of an older file the first."""
    try:
        with torch.serialization.safe_globals(safe):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not a zip archive, or a damaged one
        return re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]


def _weights_in(content: Any, shown: str, *, wants_average: bool) -> tuple[Mapping[str, Any], str]:
    """Return the weights in what a training script has saved, and what kind they are."""
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"model.weights: {shown} holds {type(content).__name__}, not a map of tensors; save the "
            "network's state_dict()"
        )
    if isinstance(state := content.get("state"), Mapping) and isinstance(state.get("model"), Mapping):
        content = state  # plain Composer's
    found = {name: content[name] for name in (*AVERAGED, *TRAINED) if isinstance(content.get(name), Mapping)}
    averaged = next((found[name] for name in AVERAGED if name in found), None)
    trained = next((found[name] for name in TRAINED if name in found), None)
    if averaged is not None and (wants_average or trained is None):
        return averaged, "averaged weights"
    if trained is not None:
        return trained, "weights" if averaged is None else "trained weights"
    return content, "weights"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(one_line(error)) from error
    return tensors
