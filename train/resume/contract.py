"""What must stay the same for a resumed run to be the same run, and what is only noted when it changes."""

import json
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, replace
from typing import Any

from imagestream.decode import crops
from train.config.run_config import Config
from train.weights.beginning import InitialWeights
from train.weights.reading import WeightsError

NOT_PART_OF_THE_CONTRACT = {
    *("run_name", "eval_interval", "checkpoint", "loggers", "dist_timeout", "deterministic"),
    "scale_with_batch",  # the figures that it has scaled are part of it
}
DATA_PART_OF_THE_CONTRACT = (
    "columns",
    "crop_size",
    "crop_scale",
    "crop_ratio",
    "flip_prob",
    "aug_repeats",
    "crop_interpolation",
    "mean",
    "std",
    "shuffle_algo",
    "shuffle_block_size",
    "num_canonical_nodes",
)
DATA_THAT_IS_NOTED = ("val_split", "eval_resize_size", "eval_crop_size", "eval_interpolation")
WHAT_WAS_BEFORE = {
    "training_step": "eager",
    "gradient_compression": "none",
    "model.zero_init_last_gamma": False,
    "model.sync_batchnorm": False,
    "data.aug_repeats": 1,
    "data.crop_interpolation": "bilinear",
    "model.target_threshold": None,
    "model.weights": None,
    "model.freeze": [],
    "optimizer.layer_decay": 1.0,
}
"""Settings that a checkpoint of an earlier version lacks, with what it was trained by."""
WHAT_WAS_NOTED_BEFORE = {"data.eval_interpolation": "bilinear"}
WEIGHTS_LOCATION = "model.weights_location"
_ABSENT = object()


class ResumeError(ValueError):
    """A checkpoint belongs to a run that this one cannot continue; the message shows each difference."""


@dataclass(frozen=True)
class Contract:
    """What the result of a run follows from, as plain JSON by dotted key.

    Attributes:
        settings: a run with others is another run.
        environment: versions and hardware (`train.resume.environment`). With others the result is as good, but not
            the same bit for bit.
        noted: what changes how weights are rounded, or what figures are about, and not which run it is.
        is_bit_exact: whether a run in this environment ends with the same bits each time.
        unread_weights: why model.weights cannot be read; "" where it can, or is not given.
    """

    settings: dict[str, Any]
    environment: dict[str, Any]
    noted: dict[str, Any]
    is_bit_exact: bool
    unread_weights: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "unread_weights"}

    def with_threads_of(self, saved: Mapping[str, Any]) -> "Contract":
        """Return the contract with as many threads a rank as a checkpoint's, where they can be had as well as others.

        On a CPU the number of threads decides how sums are rounded. It follows from the machine's cores, but threads
        can be more, or fewer, than those.
        """
        theirs = saved.get("environment", {}).get("threads_per_rank", "")
        if "threads_per_rank" not in self.environment or not theirs.isdecimal() or self._has_other_ranks(saved):
            return self
        return replace(self, environment=self.environment | {"threads_per_rank": theirs})

    def with_weights_of(self, saved: Mapping[str, Any]) -> "Contract":
        """Return the contract with the weights that a checkpoint's run began with, where their file cannot be read any
        more. It is not needed any more either; but another one by name could be another one."""
        there = saved.get("noted", {}).get(WEIGHTS_LOCATION)
        if self.unread_weights and there == self.noted[WEIGHTS_LOCATION]:
            settings = self.settings | {"model.weights": saved["settings"]["model.weights"]}
            return replace(self, settings=settings, unread_weights="")
        return self

    def need_weights(self) -> None:
        """Refuse to begin a run whose model.weights cannot be read.

        Raises:
            WeightsError: saying why.
        """
        if self.unread_weights:
            raise WeightsError(self.unread_weights)

    def changes_since(self, saved: Mapping[str, Any], *, allowed: Set[str], where: str) -> list[dict[str, Any]]:
        """Return what has changed since a checkpoint was saved and may, as `{key, before, after}`.

        Args:
            saved: the checkpoint's contract, by `as_dict`.
            allowed: keys that the user has named as free to differ.
            where: the checkpoint, for the message.

        Raises:
            ResumeError: something has changed that may not; one line for each difference.
        """
        settings = _differences(WHAT_WAS_BEFORE | saved.get("settings", {}), self.settings, "")
        environment = _differences(saved.get("environment", {}), self.environment, "environment.")
        noted = _differences(WHAT_WAS_NOTED_BEFORE | saved.get("noted", {}), self.noted, "")
        # With another number of ranks sums are rounded otherwise in any case.
        decisive = [*settings, *environment] if self.is_bit_exact and not self._has_other_ranks(saved) else settings
        refused = [change for change in decisive if change["key"] not in allowed]
        if refused:
            raise ResumeError(
                f"{where} was saved with other settings or versions, and continuing it would give a different result:\n"
                + "\n".join(f"  {c['key']}: {_show(c['before'])} there, {_show(c['after'])} here" for c in refused)
                + "\nrestore them, save to another checkpoint.save_folder, or accept the difference with "
                + " ".join(f"--allow-changed {c['key']}" for c in refused)
            )
        return [*settings, *environment, *noted]

    def _has_other_ranks(self, saved: Mapping[str, Any]) -> bool:
        return bool(saved.get("noted", {}).get("world_size") != self.noted["world_size"])


def contract_of(
    cfg: Config,
    *,
    fingerprint: str,
    val_fingerprint: str,
    decoder: str,
    num_classes: int,
    precision: str,
    world_size: int,
    environment: dict[str, Any],
    is_bit_exact: bool,
    weights: InitialWeights | None = None,
) -> Contract:
    """Return a run's contract: of its configuration what the result depends on, with what `auto` stands for here.

    Args:
        precision: what `cfg.precision` is here, such as "amp_bf16".
        weights: what `cfg.model.weights` names. Its hash is a setting, and where it lies is noted.
    """
    dumped = cfg.model_dump(mode="json", exclude=NOT_PART_OF_THE_CONTRACT)
    data = dumped.pop("data")
    del dumped["model"]["weights_ema"]  # what it has chosen is told by the weights' hash
    settings = {"data.fingerprint": fingerprint, "data.decoder": decoder, "model.num_classes": num_classes}
    settings["data.augmentation"] = crops.ALGORITHM
    settings["model.weights"] = (weights.sha256 or weights.fault) if weights else None
    settings |= {f"data.{key}": data[key] for key in DATA_PART_OF_THE_CONTRACT}
    for key, value in dumped.items():
        if isinstance(value, dict):
            settings |= {f"{key}.{name}": part for name, part in value.items() if f"{key}.{name}" not in settings}
        else:
            settings[key] = value
    settings["precision"] = precision
    noted = {f"data.{key}": data[key] for key in DATA_THAT_IS_NOTED}
    noted["data.evaluation_view"] = crops.EVALUATION
    noted |= {"data.val_fingerprint": val_fingerprint, "world_size": world_size, "deterministic": cfg.deterministic}
    if weights:
        noted[WEIGHTS_LOCATION] = weights.location
    settings, noted = dict(sorted(settings.items())), dict(sorted(noted.items()))
    return Contract(settings, environment, noted, is_bit_exact, unread_weights=weights.fault if weights else "")


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[dict[str, Any]]:
    pairs = [(key, saved.get(key, _ABSENT), now.get(key, _ABSENT)) for key in sorted({*saved, *now})]
    return [{"key": prefix + key, "before": _plain(a), "after": _plain(b)} for key, a, b in pairs if a != b]


def _plain(value: Any) -> Any:
    return "absent" if value is _ABSENT else value


def _show(value: Any) -> str:
    return "absent" if value == "absent" else json.dumps(value)
