"""The training split by Streaming's own ImageNet class: each image's shape and sum, and its label."""

from collections.abc import Sequence

import numpy as np
from streaming.vision import StreamingImageNet


def main(argv: Sequence[str]) -> int:
    """Arguments: remote folder, local folder."""
    remote, local = argv
    dataset = StreamingImageNet(
        remote=remote,
        local=local,
        split="train",
        shuffle=False,
        batch_size=4,
        num_canonical_nodes=1,
        validate_hash="sha256",
        transform=np.asarray,
    )
    for image, label in dataset:
        print(*image.shape, int(image.sum()), int(label))
    return 0
