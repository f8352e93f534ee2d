"""files.parquet: from which file of the source each sample of a dataset was made.

It lies beside manifest.json. Rows are in the order of the shards and of the samples in them:

| column | type | is |
|---|---|---|
| `id` | int64 | the sample id, the shards' column `i` |
| `split` | string | |
| `path` | string | of the file, below the source folder; of a file in a tar, its name there after the tar's |
| `label` | int32 | |
| `bytes` | int64 | of the image as it is stored |
| `width`, `height` | int32 | px, as it is stored |
| `sha256` | binary (32) | of the image as it is stored; of one that is stored verbatim, the file's own |
"""

import pyarrow as pa

FILES_NAME = "files.parquet"
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("split", pa.dictionary(pa.int32(), pa.string())),
        ("path", pa.string()),
        ("label", pa.int32()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.binary(32)),
    ]
)
BATCH_ROWS = 65_536
