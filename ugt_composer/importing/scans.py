"""Tables that polars reads: files of this machine, or ranges of objects of a store, which it requests by itself."""

from typing import Any

import polars as pl

from ugt_composer.storage.remote_files import InputFile, RemoteFile


def scan_parquet(file: InputFile, **options: Any) -> pl.LazyFrame:
    return pl.scan_parquet(str(file), glob=False, **_place(file), **options)


def scan_csv(file: InputFile, **options: Any) -> pl.LazyFrame:
    return pl.scan_csv(str(file), glob=False, **_place(file), **options)


def _place(file: InputFile) -> dict[str, Any]:
    return {"storage_options": file.polars_options()} if isinstance(file, RemoteFile) else {}
