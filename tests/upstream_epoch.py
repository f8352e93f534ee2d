"""One epoch by Streaming alone, with hash validation on: how many samples come, and is anything raised?"""

import hashlib
from collections.abc import Sequence
from typing import Any

from streaming import StreamingDataset


def opened(**settings: Any) -> StreamingDataset:
    """Return the dataset, at the fifth attempt at the latest.

    Two processes of Streaming's that start at once can choose the same name for shared memory, of which one then fails;
    runs of other tests start when they like.
    """
    for _ in range(4):
        try:
            return StreamingDataset(**settings)
        except FileExistsError:
            continue
    return StreamingDataset(**settings)


def main(argv: Sequence[str]) -> int:
    """Arguments: remote folder or `none`, local folder, and more of StreamingDataset's as `name=value`."""
    more: dict[str, Any] = dict(word.split("=") for word in argv[2:])
    prints_state = more.pop("print_state", "")
    if "num_canonical_nodes" in more:
        more["num_canonical_nodes"] = int(more["num_canonical_nodes"])
    dataset = opened(
        remote=None if argv[0] == "none" else argv[0],
        local=argv[1],
        batch_size=10,
        validate_hash="xxh64",
        shuffle=False,
        **more,
    )
    digest, seen = hashlib.sha256(), 0
    for sample in dataset:
        digest.update(sample["x"].tobytes())
        seen += 1
    if prints_state:
        print(dataset.state_dict(num_samples=seen, from_beginning=True))
        print("at the epoch's end:", dataset.state_dict(num_samples=0, from_beginning=True))  # as Composer asks then
    print(f"{seen} of {len(dataset)} samples, no exception; sha256 {digest.hexdigest()}")
    return 0
