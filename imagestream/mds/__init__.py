"""MosaicML's shard format: index, records, manifest, and the names and sizes that are allowed in them."""
