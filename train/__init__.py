"""Train ResNets on streamed MDS shards with MosaicML Composer."""
