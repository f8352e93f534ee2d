"""Composer's Trainer with a training step of its own, in which the host waits for nothing.

Upstream's step (Composer 0.32.1, `Trainer._train_batch` and what it calls) reads eleven numbers back from the GPU, most
of which the host knows: how many samples the ranks have together, how long a batch took. Each time the GPU runs out of
work until the host has launched more. Here a step's figures go to `train.step.statistics`, and come a step later.

The events are upstream's, in upstream's order, and so is the arithmetic: on a CPU weights and losses are the same, bit
for bit (`tests/integration/test_step.py`; `tests/unit/test_step_upstream.py` compares the source of what is replaced).
"""

import datetime
from collections.abc import Sequence
from typing import Any

from composer import Trainer
from composer.algorithms.sam.sam import SAMOptimizer
from composer.core import Event
from composer.distributed import ddp_sync_context
from composer.utils import dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from train.config.run_config import ConfigError
from train.step.own_time import OwnTime
from train.step.trial import compile_ahead, largest_microbatch
from train.step.upstream import precision_context
from train.stopping import BatchWatch

COMPRESSIONS = {"bf16": default_hooks.bf16_compress_hook, "fp16": default_hooks.fp16_compress_hook}


class StepTrainer(Trainer):
    """Composer's Trainer, but for what it does between having a batch and the end of the optimizer's step.

    Args:
        watch: ends the run, or leaves a step out; one of the callbacks too.
        gradient_compression: in what the ranks exchange their gradients: "none", "bf16" or "fp16".
        sizes_px: the edges of the run's images.
        searches_microbatch: whether the images of a forward pass are to be as many as fit the device's memory, whatever
            `device_train_microbatch_size`.
    """

    def __init__(
        self,
        *,
        watch: BatchWatch,
        sizes_px: Sequence[int],
        searches_microbatch: bool,
        gradient_compression: str = "none",
        **kwargs: Any,
    ) -> None:
        self._watch, self._sizes_px, self._searches_microbatch = watch, sizes_px, searches_microbatch
        self._is_prepared = False
        self.statistics = watch.statistics
        super().__init__(**kwargs)
        waits_in_forward = any(isinstance(layer, nn.SyncBatchNorm) for layer in self.state.model.modules())
        self._own_time = OwnTime(is_on=not waits_in_forward)
        self._original_model.has_unused_layers = self._find_unused_parameters
        if gradient_compression in COMPRESSIONS and isinstance(self.state.model, DistributedDataParallel):
            self.state.model.register_comm_hook(None, COMPRESSIONS[gradient_compression])

    def _train_batch(self, use_grad_scaling: bool) -> Any:
        """Train on `state.batch`; return None, which upstream's loop passes over: it would wait for the losses."""
        state = self.state
        if any(isinstance(optimizer, SAMOptimizer) for optimizer in state.optimizers):
            loss = super()._train_batch(use_grad_scaling)["loss/train/total"]  # SAM asks for gradients twice
        else:
            if not self._is_prepared:
                self._prepare()
                self._is_prepared = True
            loss = self._gradients(use_grad_scaling)
            for optimizer in state.optimizers:
                if use_grad_scaling:
                    state.scaler.step(optimizer)
                else:
                    optimizer.step()
            self.first_train_batch_complete = True
        self._watch.send(state, loss, self._own_time.take(state))
        return None

    def _prepare(self) -> None:
        """Find the images of a pass, and compile, once optimizer and averages have their memory."""
        state, images = self.state, len(self.state.batch[1])
        if self._searches_microbatch:
            state.device_train_microbatch_size = largest_microbatch(self, max(self._sizes_px))
        if self._original_model.training_step == "compile" and len(self._sizes_px) > 1:
            compile_ahead(self, min(images, int(state.device_train_microbatch_size or images)), self._sizes_px)

    def _gradients(self, use_grad_scaling: bool) -> Tensor:
        """Give the parameters the batch's gradients; return its mean loss on this rank, float32 of one element."""
        state, spec = self.state, self._train_data_spec
        assert spec is not None and state.device_train_microbatch_size is not None
        self._own_time.begin(state)
        batch, images = state.batch, spec.get_num_samples_in_batch(state.batch)
        microbatches = spec.split_batch(batch, state.device_train_microbatch_size)
        if len(microbatches) > 1 and self._original_model.training_step == "cuda_graphs":
            raise ConfigError(
                f"training_step: 'cuda_graphs' takes a batch in one forward pass, and here are {len(microbatches)} of "
                f"{state.device_train_microbatch_size} images; give training_step=eager, or lower global_batch_size"
            )
        self.engine.run_event(Event.BEFORE_TRAIN_BATCH)
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        losses = []
        for at, microbatch in enumerate(microbatches):
            state.batch = spec.microbatch_transforms(state.device.batch_to_device(microbatch))
            share = spec.get_num_samples_in_batch(state.batch) / images
            with ddp_sync_context(state, at + 1 == len(microbatches), self._ddp_sync_strategy):
                losses.append(self._microbatch_gradients(share, use_grad_scaling))
        state.batch = batch
        if use_grad_scaling:
            for optimizer in state.optimizers:
                state.scaler.unscale_(optimizer)
        self.engine.run_event(Event.AFTER_TRAIN_BATCH)
        return _sum(losses)

    def _microbatch_gradients(self, share: float, use_grad_scaling: bool) -> Tensor:
        """Add the gradients of `state.batch`, which has that share of the batch's images; return its loss times it."""
        state = self.state
        self.engine.run_event(Event.BEFORE_FORWARD)
        with precision_context(state.precision), self._own_time.forward(state.batch[0].device):
            state.outputs = state.model(state.batch)
        self.engine.run_event(Event.AFTER_FORWARD)
        self.engine.run_event(Event.BEFORE_LOSS)
        with precision_context(state.precision):
            state.loss = self._original_model.loss(state.outputs, state.batch)
        self.engine.run_event(Event.AFTER_LOSS)
        self.engine.run_event(Event.BEFORE_BACKWARD)
        assert isinstance(state.loss, Tensor)
        loss = state.scaler.scale(state.loss) if use_grad_scaling and state.scaler else state.loss
        _times(loss, share).backward()
        self.engine.run_event(Event.AFTER_BACKWARD)
        return _times(state.loss.detach(), share)

    def _accumulate_time_across_ranks(
        self, num_samples: int | float, num_tokens: int, batch_time: datetime.timedelta
    ) -> tuple[int, int, datetime.timedelta]:
        """Each rank has as many samples as the next; the time is this rank's, and rank 0's is what is kept."""
        ranks = dist.get_world_size()
        return int(num_samples) * ranks, num_tokens * ranks, batch_time


def _times(loss: Tensor, share: float) -> Tensor:
    return loss if share == 1 else loss * share


def _sum(losses: Sequence[Tensor]) -> Tensor:
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total
