"""Operations carried out by the C library, on the pixels where they lie."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from imagestream.augment.operations import Step, packed
from imagestream.decode.native.library import open_library

AUTO = 0


def change(images: npt.NDArray[np.uint8], lists: Sequence[Sequence[Step]], *, path: int = AUTO) -> None:
    """Change images in place, each by the operations of its list.

    Args:
        images: (B, H, W, 3), RGB, contiguous.
        lists: B of them.
        path: the instructions to use, for tests; see `imagestream.decode.native.decoder`.

    Raises:
        ValueError: an operation is out of bounds, or there is no memory for it.
        NotBuiltError: with how to build the library.
    """
    count, height, width, channels = images.shape
    assert len(lists) == count and channels == 3 and images.dtype == np.uint8 and images.flags.c_contiguous
    records = [packed(steps) for steps in lists]
    counts = np.array([number for _, number in records], dtype=np.int32)
    data = b"".join(record for record, _ in records)
    failed = open_library().augment_batch(images.ctypes.data, count, height, width, data, counts.ctypes.data, path)
    if failed == -2:
        raise ValueError(
            f"images of {height} x {width} px cannot be augmented: there is no memory for one, an edge is not from 1 "
            f"to 4096 px, or this processor lacks path {path}"
        )
    if failed >= 0:
        index = int(np.searchsorted(counts.cumsum(), failed, side="right"))
        raise ValueError(
            f"an operation on image {index} of {height} x {width} px cannot be carried out: {lists[index]}"
        )
