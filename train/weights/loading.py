"""Which of a file's tensors goes where in a network, and what is left over on either side."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.layers import head_of
from train.weights.names import SQUEEZE, plain_names
from train.weights.reading import StoredWeights, WeightsError

COUNTER = ".num_batches_tracked"  # BatchNorm's, which decides nothing; files of before 2018 have none
SHOWN = 5


@dataclass(frozen=True)
class Matched:
    """What a file has given a network; tensors by their names in it, or in the file where they are not used.

    Attributes:
        loaded: tensors that the file has given.
        kept: tensors that begin as they would without the file: the last layer's, and those of layers that an algorithm
            has added.
        unused: the file's last layer, where it is one of other classes.
        why: the last layer is not the file's; '' where it is.
    """

    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        words = f"{len(self.loaded)} of {len(self.loaded) + len(self.kept)} tensors come from it"
        if self.kept:
            words += f"; initialised as without it: {_listed(self.kept)}"
        if self.why:
            words += f" ({self.why})"
        return words + (f"; not used: {_listed(self.unused)}" if self.unused else "")


def load_into(
    network: nn.Module, stored: StoredWeights, *, num_classes: int, classes: Sequence[str] | None, shown: str
) -> Matched:
    """Give a network a file's tensors, each to the one of its name and shape.

    Args:
        network: with the layers that algorithms have replaced.
        classes: names of the classes that the network is to tell apart, where they are known.
        shown: the file's name for messages.

    Raises:
        WeightsError: a tensor is in one of the two alone, or has another shape there; nothing is changed then. The last
            layer may differ, and what algorithms have added may be missing.
    """
    mine, theirs = network.state_dict(), stored.tensors
    here, there = plain_names(mine), plain_names(theirs)
    head = head_of(network, num_classes)
    of_head = {name for name in here if head and name.startswith(f"{head}.")}
    why = _other_head(
        of_head, {n: mine[here[n]] for n in of_head}, {n: theirs[there[n]] for n in of_head & there.keys()}
    )
    if not why and classes is not None and stored.classes is not None and tuple(classes) != stored.classes:
        why = "it is for other classes, or for the same in another order"
    left = of_head if why else set[str]()
    kept = left | {name for name in here if name not in there and (SQUEEZE in name or name.endswith(COUNTER))}
    _check(
        {name: mine[here[name]] for name in here if name not in kept},
        {name: theirs[there[name]] for name in there if name not in left},
        shown,
    )
    loaded = [name for name in here if name not in kept]
    with torch.no_grad():
        for name in loaded:
            mine[here[name]].copy_(theirs[there[name]])
    return Matched(tuple(loaded), tuple(sorted(kept)), tuple(sorted(left & there.keys())), why)


def _other_head(names: set[str], mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    """Return why a file's last layer cannot be this network's, or ''."""
    if not names:
        return ""
    if not theirs:
        return "the file has no such layer"
    if names == theirs.keys() and all(mine[name].shape == theirs[name].shape for name in names):
        return ""
    rows = {len(tensor) for tensor in theirs.values()}, {len(tensor) for tensor in mine.values()}
    return " and ".join(f"{min(count):,} classes {where}" for count, where in zip(rows, ("there", "here"), strict=True))


def _check(mine: dict[str, Tensor], theirs: dict[str, Tensor], shown: str) -> None:
    """Raise a WeightsError that names what does not match."""
    faults = []
    if missing := [name for name in mine if name not in theirs]:
        faults.append(f"  it lacks {_listed(missing)}")
    if strange := [name for name in theirs if name not in mine]:
        squeezed = any(SQUEEZE in name for name in strange)
        remedy = "; list squeeze_excite under algorithms, as the run had that wrote it" if squeezed else ""
        faults.append(f"  the network has no {_listed(strange)}{remedy}")
    faults += [
        f"  {name} is {_form(theirs[name])} there, {_form(mine[name])} in the network"
        for name in mine
        if name in theirs and _form(theirs[name]) != _form(mine[name])
    ][: SHOWN + 1]
    if faults:
        raise WeightsError(
            f"model.weights: {shown} is of another network than model.name:\n"
            + "\n".join(faults)
            + "\ngive weights of the same network, or the model.name that they are of"
        )


def _form(tensor: Tensor) -> str:
    """Return a tensor's shape; of whole numbers it says so, for they do not become weights."""
    shape = " x ".join(map(str, tensor.shape)) or "one number"
    return shape if tensor.is_floating_point() else f"{shape} (whole)"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f", ... ({len(names):,} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
