"""What AWS is busy with, and for how long, for the person who waits for it."""

from types import TracebackType

from tqdm import tqdm

SECONDS_BEFORE_SHOWN = 3.0  # most answers are there sooner


class Waiting:
    """On a terminal, one line with the state of what is waited for and the time since then; elsewhere nothing.

    Args:
        what: is waited for, such as "cluster resnet".
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._line = tqdm(
            bar_format="{desc}  {elapsed}",
            leave=False,
            mininterval=0,
            miniters=0,
            delay=SECONDS_BEFORE_SHOWN,
            disable=None,  # off without a terminal
        )

    def __enter__(self) -> "Waiting":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._line.close()

    def is_at(self, state: str) -> None:
        """Show the state that was seen last."""
        self._line.set_description_str(f"{self._what}: {state}", refresh=False)
        self._line.update(0)
