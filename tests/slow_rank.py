"""train/main.py whose second rank has slow forward passes; a straggler is named after half a second."""

import os
import time
from collections.abc import Sequence
from typing import Any

from train.main import main as train_main
from train.model import ImageClassifier
from train.record import stragglers
from train.step import own_time

forward = ImageClassifier.forward


def slow_forward(self: ImageClassifier, *args: Any, **kwargs: Any) -> Any:
    time.sleep(0.1)
    return forward(self, *args, **kwargs)


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    stragglers.SECONDS_THAT_COUNT = 0.5
    own_time.EVERY_STEPS = 2
    if os.environ["RANK"] == "1":
        ImageClassifier.forward = slow_forward  # type: ignore[method-assign]
    return train_main(argv)
