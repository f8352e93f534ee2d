"""Where a sample is."""

import numpy as np
import pytest
from streaming.base.spanner import Spanner

from train.dataset import ShardOfSample


def test_samples_are_where_streaming_has_them() -> None:
    counts = [3, 1, 700, 2, 2, 250]
    theirs, ours = Spanner(np.array(counts)), ShardOfSample(counts)
    assert [ours[at] for at in np.arange(sum(counts))] == [theirs[at] for at in range(sum(counts))]
    for outside in (-1, sum(counts)):
        with pytest.raises(IndexError, match=f"sample {outside} of 958"):
            ours[outside]
