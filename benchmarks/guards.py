"""What the guards of a training step cost: seconds a step with them and without, in turns.

    python benchmarks/guards.py [--blocks 12] [--steps 3]

One process trains a ResNet on random images. Blocks of steps alternate: with what train/main.py adds to each step (the
reseeding, the ledger, the watch for signals and gradients that are not finite, the buffers shared, the loss noted), and
with Composer alone. Printed are the median of the ratios of neighbouring blocks, with its spread, and the share of a
step that is spent within the guards, which a machine's drift does not blur; on a GPU that is their calls alone.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Started as a script, Python puts this file's own folder on the path; the packages are in the one above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

import torch
import torchvision
from composer.utils import dist

from imagestream.data.ledger import Ledger
from train.process import start_process, torch_device
from train.resume.guard import ResumeGuard
from train.signals import listen
from train.stopping import BatchWatch


class Step:
    """One optimizer step, as Composer's trainer makes it; `guarded` calls the guards where Composer would."""

    def __init__(self, model: str, batch: int, px: int, device: Any) -> None:
        place = torch_device(device)
        self.model = getattr(torchvision.models, model)(num_classes=1000).to(place)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.images = torch.randn(batch, 3, px, px, device=place)
        self.labels = torch.randint(0, 1000, (batch,), device=place)
        self.view_hashes = torch.arange(batch)
        # No epoch ends, and no checkpoint is saved.
        self.loader: Any = SimpleNamespace(steps_per_epoch=1000, step=0, book=Ledger(place))
        self.guard = ResumeGuard({}, seed=17, loader=self.loader)  # type: ignore[arg-type]  # no contract is saved
        self.watch = BatchWatch(listen(saves=True), SimpleNamespace(), skips=0)  # type: ignore[arg-type]  # nor a checkpoint
        self.state: Any = SimpleNamespace(
            model=self.model, device=device, scaler=None, timestamp=SimpleNamespace(batch=0), total_loss_dict={}
        )
        self.guard.init(self.state, None)  # it logs nothing
        self.guards_s = 0.0
        self.synchronize = torch.cuda.synchronize if place.type == "cuda" else lambda: None

    def __call__(self, guarded: bool) -> None:
        none: Any = None
        state = self.state
        if guarded:
            with self.in_guards():
                self.loader.step = state.timestamp.batch
                self.loader.book.add(self.view_hashes)
                self.guard.on_batch()
                self.watch.before_train_batch(state, none)
        self.optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        if guarded:
            with self.in_guards():
                self.watch.after_train_batch(state, none)
                self.guard.after_train_batch(state, none)
        self.optimizer.step()
        # Composer itself brings the loss to the host at each step, for its logger
        state.total_loss_dict["loss/train/total"] = loss.item()
        if guarded:
            with self.in_guards():
                self.guard.batch_end(state, none)
                self.watch.batch_checkpoint(state, none)
        state.timestamp.batch += 1

    @contextmanager
    def in_guards(self) -> Iterator[None]:
        """Count the time spent inside."""
        start = time.perf_counter()
        yield
        self.guards_s += time.perf_counter() - start


def seconds_a_step(step: Callable[[bool], None], synchronize: Callable[[], None], guarded: bool, steps: int) -> float:
    """Return the seconds of one step, over a block of them."""
    synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step(guarded)
    synchronize()
    return (time.perf_counter() - start) / steps


def main(argv: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=16, help="images a step")
    parser.add_argument("--px", type=int, default=96, help="edge of an image")
    parser.add_argument("--blocks", type=int, default=12, help="pairs of blocks")
    parser.add_argument("--steps", type=int, default=3, help="steps a block")
    args = parser.parse_args(argv)
    device = start_process(600.0)
    step = Step(args.model, args.batch, args.px, device)
    seconds_a_step(step, step.synchronize, True, 2)
    ratios, plain, shares = [], [], []
    for block in range(args.blocks):
        order = (False, True) if block % 2 else (True, False)
        step.guards_s = 0.0
        took = {guarded: seconds_a_step(step, step.synchronize, guarded, args.steps) for guarded in order}
        shares.append(step.guards_s / args.steps / took[True])
        ratios.append(took[True] / took[False])
        plain.append(took[False])
    quartiles = statistics.quantiles(ratios, n=4)
    figures = {
        "model": args.model,
        "batch": args.batch,
        "px": args.px,
        "ranks": dist.get_world_size(),
        "torch": torch.__version__,
        "n": args.blocks,
        "steps_a_block": args.steps,
        "seconds_a_step_without": round(statistics.median(plain), 5),
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(quartiles[0], 4), round(quartiles[2], 4)],
        "share_in_guards": {
            "min": round(min(shares), 5),
            "median": round(statistics.median(shares), 5),
            "max": round(max(shares), 5),
        },
    }
    if dist.get_global_rank() == 0:
        print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
