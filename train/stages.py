"""Where the time of training steps goes: on the way from a shard to the device, and on the device."""

from collections.abc import Mapping
from dataclasses import dataclass

WAIT_THAT_COUNTS_FRACTION = 0.05  # of step time; below it the loader keeps up
WORKER_STAGES = ("download", "read", "decode")


@dataclass
class StageClock:
    """Seconds over any number of steps.

    Attributes:
        step: of the rank, from asking for a batch to the end of its step.
        wait: of them, waiting for the loader.
        copy: of them, handing a batch to the device (on a GPU the copy itself runs beside the step).
        workers: of all the rank's loader workers together, by stage; `download` is waiting for a shard to be there.
    """

    step: float
    wait: float
    copy: float
    workers: Mapping[str, float]

    def fractions(self) -> dict[str, float]:
        """Return the rank's `data_wait`, `copy` and `device`, adding up to 1, and the workers' stages, likewise."""
        busy, step = sum(self.workers.values()), self.step
        ranks = {"data_wait": self.wait / step, "copy": self.copy / step} if step else {"data_wait": 0.0, "copy": 0.0}
        ranks["device"] = max(0.0, 1.0 - ranks["data_wait"] - ranks["copy"])
        return ranks | {stage: self.workers[stage] / busy if busy else 0.0 for stage in WORKER_STAGES}

    def bottleneck(self) -> str:
        """Return the stage that a faster run would have to begin with: one of WORKER_STAGES, `copy` or `device`."""
        found = self.fractions()
        if found["data_wait"] >= WAIT_THAT_COUNTS_FRACTION:
            return max(WORKER_STAGES, key=lambda stage: found[stage])
        return max(("copy", "device"), key=lambda stage: found[stage])

    def __str__(self) -> str:
        found = self.fractions()
        parts = [f"{100 * found[stage]:.0f}% {stage}" for stage in WORKER_STAGES]
        return (
            f"step time: {100 * found['data_wait']:.0f}% waiting for data, {100 * found['copy']:.0f}% copy, "
            f"{100 * found['device']:.0f}% device; loader workers: {', '.join(parts)}; bottleneck: {self.bottleneck()}"
        )
