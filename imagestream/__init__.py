"""Images streamed out of MosaicML MDS shards: places of files, shards, decoding, samples and batches.

It knows nothing of a trainer or a network; `convert/` and `train/` are two applications on it.
"""
