"""One epoch by Streaming alone, with hash validation on: how many samples come, and is anything raised?"""

import hashlib
from collections.abc import Sequence

from streaming import StreamingDataset


def main(argv: Sequence[str]) -> int:
    """Arguments: remote folder or `none`, local folder, and more of StreamingDataset's as `name=value`."""
    more = dict(word.split("=") for word in argv[2:])
    dataset = StreamingDataset(
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
    print(f"{seen} of {len(dataset)} samples, no exception; sha256 {digest.hexdigest()}")
    return 0
