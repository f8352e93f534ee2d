"""MosaicML's own converter of ImageNet, of Streaming."""

import sys
from collections.abc import Sequence

from streaming.vision.convert import imagenet


def main(argv: Sequence[str]) -> int:
    """Run its command."""
    sys.argv = ["imagenet", *argv]
    imagenet.main(imagenet.parse_args())
    return 0
