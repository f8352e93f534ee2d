"""Images streamed out of MosaicML MDS shards, decoded, cut and augmented, in loops that can be killed and resumed.

It knows nothing of a trainer or a network; `convert/` and `train/` are two applications on it. docs/library.md is its
page. What is named here is its public face; it is imported at first use, for it takes torch's seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagestream.augment.colours import ColorJitter, ThreeAugment
    from imagestream.augment.composers import AugMix, ComposerRandAugment
    from imagestream.augment.erasing import RandomErasing
    from imagestream.augment.spaces import AutoAugment, RandAugment, TrivialAugment
    from imagestream.augment.timms import TimmRandAugment
    from imagestream.data.dataset_files import DatasetFiles
    from imagestream.data.opening import StreamOptions
    from imagestream.decode.crops import CenterCrop, RandomResizedCrop
    from imagestream.loader import Loader, Normalize, StateError
    from imagestream.mds.index import DataError
    from imagestream.world import World

__version__ = "0.1.0"

HOW_TO_GET_STREAMING = (
    "imagestream needs MosaicML Streaming 0.13, which gives the order of the samples; add it without its own "
    "requirements, which would downgrade numpy: pip install --no-deps 'mosaicml-streaming>=0.13,<0.14'"
)
_HOMES = {
    "AugMix": "imagestream.augment.composers",
    "AutoAugment": "imagestream.augment.spaces",
    "CenterCrop": "imagestream.decode.crops",
    "ColorJitter": "imagestream.augment.colours",
    "ComposerRandAugment": "imagestream.augment.composers",
    "DataError": "imagestream.mds.index",
    "DatasetFiles": "imagestream.data.dataset_files",
    "Loader": "imagestream.loader",
    "Normalize": "imagestream.loader",
    "RandAugment": "imagestream.augment.spaces",
    "RandomErasing": "imagestream.augment.erasing",
    "RandomResizedCrop": "imagestream.decode.crops",
    "StateError": "imagestream.loader",
    "StreamOptions": "imagestream.data.opening",
    "ThreeAugment": "imagestream.augment.colours",
    "TimmRandAugment": "imagestream.augment.timms",
    "TrivialAugment": "imagestream.augment.spaces",
    "World": "imagestream.world",
}
__all__ = [
    "AugMix",
    "AutoAugment",
    "CenterCrop",
    "ColorJitter",
    "ComposerRandAugment",
    "DataError",
    "DatasetFiles",
    "Loader",
    "Normalize",
    "RandAugment",
    "RandomErasing",
    "RandomResizedCrop",
    "StateError",
    "StreamOptions",
    "ThreeAugment",
    "TimmRandAugment",
    "TrivialAugment",
    "World",
]


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'imagestream' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "streaming":
            raise
        raise ModuleNotFoundError(HOW_TO_GET_STREAMING, name="streaming") from error
