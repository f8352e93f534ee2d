"""What ends a run before its time, and all ranks together: a signal, or numbers that are no longer finite."""

import logging
from typing import Any

import torch
from composer.algorithms.sam.sam import SAMOptimizer
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from train.resume.checkpoints import DurableCheckpointSaver
from train.signals import StopSignals
from train.step.statistics import Step, StepStatistics

log = logging.getLogger(__name__)

EXIT_STOPPED = 75
"""sysexits.h's EX_TEMPFAIL: a checkpoint has been saved, and the same command resumes. Launchers requeue on it."""


LEAST_SCALE = 1.0
"""In float16 infinite gradients are a matter of course, and their steps are left out: the loss is then multiplied by
half as much. Sixteen in a row bring that factor from its beginning below 1; then nothing is left that would help."""


class StopRequested(Exception):
    """A signal has asked the run to end; the message says after which batch, and where the checkpoint is."""


class NonFiniteError(RuntimeError):
    """Loss or gradients are NaN or infinite. The weights have not taken that step."""


class BatchWatch(Callback):
    """Ends the run at a batch's end where a rank has got a signal, or gradients were not finite.

    From the first batch on whose gradients are not finite no step is taken, and the host, which reads of it a batch
    later, ends the run; nothing is saved in between. With `skips` the host waits for each batch's gradients, and leaves
    a bad one's step out as if the batch had not been; so it does with SAM, which takes two steps a batch.

    Args:
        signals: what this rank has been told.
        skips: batches with gradients that are not finite whose step is left out, over the whole run; 0 stops at the
            first one.
    """

    def __init__(
        self, signals: StopSignals, saver: DurableCheckpointSaver, statistics: StepStatistics, *, skips: int
    ) -> None:
        self.signals, self.saver, self.statistics, self.skips = signals, saver, statistics, skips
        self.skipped: list[int] = []
        self._stop = False
        self._nonfinite: Tensor | None = None  # on the device, float32: 1 from the first bad batch on
        self._buffers: list[Tensor] = []
        statistics.tell(self._read)

    def fit_start(self, state: State, logger: Logger) -> None:
        device = next(state.model.parameters()).device
        self._nonfinite = torch.zeros((), device=device)
        if self._waits(state):
            self.statistics.lag_steps = 0

    def before_train_batch(self, state: State, logger: Logger) -> None:
        if self.skips:  # BatchNorm takes the bad batch into its averages before anybody knows that it is bad
            self._buffers = [buffer.clone() for buffer in state.model.buffers()]

    def after_train_batch(self, state: State, logger: Logger) -> None:
        assert self._nonfinite is not None
        if _scales_gradients(state):
            self._nonfinite = torch.maximum(self._nonfinite, _scale_of(state) < LEAST_SCALE)
            return
        gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
        is_bad = ~torch.nn.utils.get_total_norm(gradients, foreach=True).isfinite()
        if self._waits(state):
            vote = is_bad.float()
            dist.all_reduce(vote, reduce_operation="SUM")
            if bool(vote):
                self._leave_out_or_stop(state)
            return
        self._nonfinite = torch.maximum(self._nonfinite, is_bad)  # of two types: float32
        for optimizer in state.optimizers:
            optimizer.found_inf = self._nonfinite

    def send(self, state: State, loss: Tensor, own_s: float | None = None) -> None:
        """Send a step's figures, and act on what is known of those before it. Collective.

        Args:
            loss: the rank's mean, float32 of one element.
            own_s: what the rank needs for a step by itself (train/step/own_time.py).
        """
        assert self._nonfinite is not None
        is_asked = self.signals.seen is not None
        self.statistics.send(state, loss, self._nonfinite, is_stop_asked=is_asked, own_s=own_s)

    def _read(self, step: Step) -> None:
        if not step.is_finite:
            raise NonFiniteError(_what_is_wrong(step.name, step.loss, step.learning_rate))
        self._stop = self._stop or step.is_stop_asked

    def epoch_end(self, state: State, logger: Logger) -> None:
        self.statistics.settle()

    def eval_start(self, state: State, logger: Logger) -> None:
        self.statistics.settle()

    def fit_end(self, state: State, logger: Logger) -> None:
        self.statistics.settle()

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
            "resumes from it"
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
            raise NonFiniteError(_what_is_wrong(seen + skipped, _loss(state), state.schedulers[0].get_last_lr()[0]))
        self.skipped.append(int(now.batch))
        log.warning(
            "%s: the gradients are not finite, its step is left out (%d of %d)", seen, len(self.skipped), self.skips
        )
        for parameter in state.model.parameters():
            parameter.grad = None  # optimizers pass over parameters without one: no momentum, no decay
        for buffer, before in zip(state.model.buffers(), self._buffers, strict=True):
            buffer.copy_(before)

    def _waits(self, state: State) -> bool:
        return self.skips > 0 or any(isinstance(optimizer, SAMOptimizer) for optimizer in state.optimizers)


def _what_is_wrong(seen: str, loss: float, learning_rate: float) -> str:
    return (
        f"{seen}: the gradients are not finite (loss {loss:g}, learning rate {learning_rate:g}). The run has ended "
        "without that step; its checkpoints are good. Lower the learning rate, clip gradients, or leave such batches "
        "out with on_nonfinite: skip N"
    )


def _scale_of(state: State) -> Tensor:
    """Return the factor by which losses are multiplied in float16, on the device: halved at each infinite gradient."""
    assert state.scaler is not None and isinstance(state.scaler._scale, Tensor)
    return state.scaler._scale


def _scales_gradients(state: State) -> bool:
    return state.scaler is not None and state.scaler.is_enabled()


def _loss(state: State) -> float:
    """The last microbatch's loss on this rank."""
    loss = state.loss
    return float(loss) if isinstance(loss, Tensor) else float("nan")
