"""Where a run begins: from nothing, or from the newest whole checkpoint of its save folder, if that is its own."""

import logging
from dataclasses import dataclass, replace
from typing import Any

from composer.utils import dist

from imagestream.cores import wanted_threads
from imagestream.decode.backends import DecoderError
from imagestream.mds.index import DataError
from imagestream.storage.errors import PlaceError
from imagestream.storage.protocol import Place
from train.config.run_config import Config, ConfigError
from train.resume.checkpoint_fields import fault_of_fields
from train.resume.checkpoint_file import CheckpointError
from train.resume.checkpoints import Found, list_checkpoints, newest_whole, refuse_to_fall_behind, set_damaged_aside
from train.resume.contract import Contract, ResumeError
from train.resume.fence import claim
from train.weights.reading import WeightsError

log = logging.getLogger(__name__)

RefusedError = (ConfigError, DataError, DecoderError, PlaceError, ResumeError, CheckpointError, WeightsError)
"""What a user can mend; nothing was trained."""


@dataclass(frozen=True)
class Start:
    """Where a run begins, the same on all ranks but for rank 0's fence and copy.

    Attributes:
        folder: the save folder; on rank 0, which writes to it, claimed for this run.
        checkpoint: to continue from, or None to start at the beginning.
        contract: the run's, with the threads of the checkpoint.
        changes: of the contract since the checkpoint, as `{batch, key, before, after}`.
    """

    folder: Place
    checkpoint: Found | None
    contract: Contract
    changes: tuple[dict[str, Any], ...] = ()


def find_start(cfg: Config, folder: Place, contract: Contract, allowed: set[str]) -> Start:
    """Claim the save folder, and find the checkpoint to continue from; collective.

    Args:
        allowed: settings that may differ from the checkpoint's.

    Raises:
        RefusedError: it is of another run, none is usable, a newer one is on another node, another run has the folder,
            or it cannot be read; on all ranks alike.
    """
    if cfg.checkpoint.autoresume:
        refuse_to_fall_behind(folder)
    mine: Start | None = None
    outcome: list[Any] = [None, None]
    if dist.get_global_rank() == 0:
        try:
            mine = _claim_and_find(cfg, folder, contract, allowed)
            found = mine.checkpoint.for_others() if mine.checkpoint else None
            outcome[0] = (found, mine.contract, mine.changes)
        except RefusedError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return mine or Start(folder, *outcome[0])


def _claim_and_find(cfg: Config, folder: Place, contract: Contract, allowed: set[str]) -> Start:
    """Claim the folder only once this run is known to fit what is in it, and change nothing there before."""
    where = cfg.checkpoint.save_folder
    folder.check_writable()
    seen = list_checkpoints(folder)
    found = _find(cfg, folder, contract, allowed)
    held = claim(folder, run_name=cfg.run_name)
    if list_checkpoints(folder) != seen:  # the run before this one has saved while this one waited for its end
        try:
            found = _find(cfg, folder, contract, allowed)
        except RefusedError:
            held.release()
            raise
    if found.checkpoint is None:
        log.info("resume: no checkpoint in %s, starting at the beginning", where)
    else:
        set_damaged_aside(held, found.checkpoint)
        log.info("resume: from %s/%s", where, found.checkpoint.name)
    for change in found.changes:
        log.warning(
            "resume: %s was %s and is %s from here on; run.json notes it",
            *(change[part] for part in ("key", "before", "after")),
        )
    return replace(found, folder=held)


def _is_ours(state: Any) -> bool:
    callbacks = state.get("callbacks", {}) if isinstance(state, dict) else {}
    return not isinstance(callbacks, dict) or "ResumeGuard" in callbacks


def _find(cfg: Config, folder: Place, contract: Contract, allowed: set[str]) -> Start:
    where = cfg.checkpoint.save_folder
    if not cfg.checkpoint.autoresume:
        if list_checkpoints(folder):
            raise ResumeError(
                f"checkpoint.save_folder: {where} holds checkpoints of an earlier run; "
                "give checkpoint.autoresume=true to continue it, or another folder"
            )
        contract.need_weights()
        return Start(folder, None, contract)
    newest = newest_whole(folder)
    if newest is None:
        contract.need_weights()
        return Start(folder, None, contract)
    found, content = newest
    if not _is_ours(content["state"]):
        raise ResumeError(f"{where}/{found.name} was not written by this program; it cannot be resumed")
    if fault := fault_of_fields(content):
        raise CheckpointError(
            f"{where}/{found.name}: {fault}; something has changed it after it was written. Move it away, and the run "
            "resumes from the one before"
        )
    saved = content["state"]["callbacks"]["ResumeGuard"]
    if wanted_threads() is None:
        contract = contract.with_threads_of(saved["contract"])
    contract = contract.with_weights_of(saved["contract"])
    changes = contract.changes_since(saved["contract"], allowed=allowed, where=f"{where}/{found.name}")
    batch = int(content["state"]["timestamp"]["Timestamp"]["batch"])
    return Start(folder, found, contract, tuple({"batch": batch, **change} for change in changes))
