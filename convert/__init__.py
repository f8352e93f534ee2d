"""Turn a folder of ImageNet JPEGs into MDS shards. The command is `convert/imagenet_to_mds.py`."""
