"""Turn a folder of ImageNet JPEGs into MDS shards. The command is `convert/imagenet_to_mds.py`."""

__version__ = "0.1.0"
