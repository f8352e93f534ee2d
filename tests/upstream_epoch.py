"""One epoch by Streaming alone, with hash validation on: how many samples come, and is anything raised?"""

from collections.abc import Sequence

from streaming import StreamingDataset


def main(argv: Sequence[str]) -> int:
    """Arguments: remote folder, local folder."""
    dataset = StreamingDataset(remote=argv[0], local=argv[1], batch_size=10, validate_hash="xxh64", shuffle=False)
    seen = sum(1 for _ in dataset)
    print(f"{seen} of {len(dataset)} samples, no exception")
    return 0
