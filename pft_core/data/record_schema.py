"""The Parquet schema of records, apart from `records.py` so that training code loads without Arrow."""

import pyarrow as pa

# The columns of a Parquet file of records.
RECORD_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("axis", pa.string()),
        ("scenario", pa.string()),
        ("options", pa.list_(pa.struct([("text", pa.string()), ("side", pa.int8())]))),
        ("presentation", pa.string()),
        ("turns", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    ]
)
