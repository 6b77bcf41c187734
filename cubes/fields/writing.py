"""Tables of field series as a file that says what its numbers mean."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd


def write_tables(tables: Iterator[pd.DataFrame], path: Path, attrs: Mapping[str, Any]) -> None:
    """Write tables as row groups of one Parquet file, which appears once it is whole.

    Parameters
    ----------
    tables : iterator of DataFrame
        Of one schema.
    path : Path
        Of the file.
    attrs : mapping
        Written where pandas looks for them: ``pandas.read_parquet(path).attrs``.
    """
    import pyarrow as pa
    from pyarrow import parquet

    partial_path = path.with_name(f".{path.name}.partial")
    writer: Any = None
    try:
        for table in tables:
            rows = pa.Table.from_pandas(table, preserve_index=False)
            if writer is None:
                told = {b"PANDAS_ATTRS": json.dumps(attrs, default=str).encode()}
                schema = rows.schema.with_metadata({**(rows.schema.metadata or {}), **told})
                writer = parquet.ParquetWriter(partial_path, schema, compression="zstd")
            writer.write_table(rows.cast(writer.schema))
        if writer is not None:
            writer.close()
            partial_path.replace(path)
    finally:
        if writer is not None:
            writer.close()
        partial_path.unlink(missing_ok=True)
