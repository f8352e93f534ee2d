"""What ends a run before its time, and all ranks together: a signal, or numbers that are no longer finite."""

import logging
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from train.resume.checkpoints import DurableCheckpointSaver
from train.signals import StopSignals

log = logging.getLogger(__name__)

EXIT_STOPPED = 75
"""sysexits.h's EX_TEMPFAIL: a checkpoint has been saved, and the same command goes on. Launchers requeue on it."""


class StopRequested(Exception):
    """A signal has asked the run to end; the message says after which batch, and where the checkpoint is."""


class NonFiniteError(RuntimeError):
    """Loss or gradients are NaN or infinite. The weights have not taken that step."""


class BatchWatch(Callback):
    """Ends the run at a batch's end where a rank has got a signal, and before its step where gradients are not finite.

    Args:
        signals: what this rank has been told.
        skips: batches with gradients that are not finite whose step is left out, over the whole run; 0 stops at the
            first one.
    """

    def __init__(self, signals: StopSignals, saver: DurableCheckpointSaver, *, skips: int) -> None:
        self.signals, self.saver, self.skips = signals, saver, skips
        self.skipped: list[int] = []
        self._stop = False
        self._buffers: list[torch.Tensor] = []

    def before_train_batch(self, state: State, logger: Logger) -> None:
        if self.skips:  # BatchNorm takes the bad batch into its averages before anybody knows that it is bad
            self._buffers = [buffer.clone() for buffer in state.model.buffers()]

    def after_train_batch(self, state: State, logger: Logger) -> None:
        gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
        votes = torch.zeros(2, device=state.device.tensor_to_device(torch.zeros(0)).device)
        if not _scales_gradients(state):  # then infinite ones are its daily business
            votes[0] = ~torch.nn.utils.get_total_norm(gradients).isfinite()
        votes[1] = float(self.signals.seen is not None)
        dist.all_reduce(votes, reduce_operation="SUM")
        bad, asked = (bool(vote) for vote in votes.tolist())
        self._stop = asked
        if bad:
            self._leave_out_or_stop(state)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Composer's event for saving at the end of a batch."""
        if not self._stop:
            return
        if self.saver.last_checkpoint_batch != state.timestamp.batch:
            self.saver.save_now(state, logger)
        dist.barrier()
        why = self.signals.seen.name if self.signals.seen else "a signal to another rank"
        raise StopRequested(
            f"stopped by {why} after batch {int(state.timestamp.batch)}; the checkpoint is saved, the same command "
            "goes on from it"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": list(self.skipped)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped = list(state["skipped"])

    def _leave_out_or_stop(self, state: State) -> None:
        now = state.timestamp
        seen = f"batch {int(now.batch)} (batch {int(now.batch_in_epoch)} of epoch {int(now.epoch)})"
        if len(self.skipped) >= self.skips:
            skipped = f" after {len(self.skipped)} skipped ones" if self.skips else ""
            raise NonFiniteError(
                f"{seen}{skipped}: the gradients are not finite (loss {_loss(state):g}, learning rate "
                f"{state.schedulers[0].get_last_lr()[0]:g}). The run has ended before that step; its checkpoints are "
                "good. Lower the learning rate, clip gradients, or leave such batches out with on_nonfinite: skip N"
            )
        self.skipped.append(int(now.batch))
        log.warning(
            "%s: the gradients are not finite, its step is left out (%d of %d)", seen, len(self.skipped), self.skips
        )
        for parameter in state.model.parameters():
            parameter.grad = None  # optimizers pass over parameters without one: no momentum, no decay
        for buffer, before in zip(state.model.buffers(), self._buffers, strict=True):
            buffer.copy_(before)


def _scales_gradients(state: State) -> bool:
    return state.scaler is not None and state.scaler.is_enabled()


def _loss(state: State) -> float:
    """The last microbatch's loss on this rank."""
    loss = state.loss
    return float(loss) if isinstance(loss, torch.Tensor) else float("nan")
