"""What rank 0 does for all ranks: they continue together, or end together with the same error."""

from collections.abc import Callable

from composer.utils import dist

from imagestream.storage.errors import PlaceError


def on_first_rank(action: Callable[[], None]) -> None:
    """Have rank 0 do what may fail, and every rank fail with it. Collective.

    Otherwise the other ranks would wait for rank 0 in their next exchange with it, and end in a traceback.

    Raises:
        PlaceError: on all ranks alike.
    """
    outcome: list[PlaceError | None] = [None]
    if dist.get_global_rank() == 0:
        try:
            action()
        except OSError as error:
            outcome[0] = error if isinstance(error, PlaceError) else PlaceError(str(error))
    dist.broadcast_object_list(outcome)
    raise_first(outcome)


def raise_first_of_any_rank(error: Exception | None) -> None:
    """Raise on all ranks the first rank's error that has one. Collective."""
    raise_first(dist.all_gather_object(error))


def raise_first(errors: list[Exception | None] | list[PlaceError | None]) -> None:
    """Raise the first error of a list, in which None is no error."""
    for error in errors:
        if error is not None:
            raise error
