"""Images streamed out of MosaicML MDS shards: places of files, shards, decoding, samples and batches.

It knows nothing of a trainer or a network; `convert/` and `train/` are two applications on it.
"""

__version__ = "0.1.0"
