"""Writes MDS shards of packed rows, byte for byte like streaming's MDSWriter with the single column {"row": "bytes"}.

MDSWriter itself is not used for two reasons: importing `streaming` imports torch, which costs each worker five
seconds and 700 MB before its first row; and its `__exit__` writes an index even after a crash, so that partial data
looks complete. Here a set of shards is complete only after `write_index`, which the caller runs after `close`. A test
compares the bytes with MDSWriter's.
"""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ugt_composer.data.integrity import INDEX_NAME
from ugt_composer.storage.hashed_file import hash_of

COLUMN = "row"
INDEX_VERSION = 2
OFFSET_BYTES = 4
ROW_HEAD = struct.Struct("<I")  # before each row: the size of its only column


class ShardWriter:
    """Writes rows into shards of at most `size_limit` bytes in an existing folder.

    Attributes:
        shards: the index entry of each shard written so far.
    """

    def __init__(self, folder: Path, compression: str | None, hashes: Sequence[str], size_limit: int):
        self.folder, self.compression, self.hashes, self.size_limit = folder, compression, hashes, size_limit
        self.shards: list[dict[str, Any]] = []
        self._config = {
            "version": INDEX_VERSION,
            "format": "mds",
            "compression": compression,
            "hashes": list(hashes),
            "size_limit": size_limit,
            "column_names": [COLUMN],
            "column_encodings": ["bytes"],
            "column_sizes": [None],
        }
        self._config_text = json.dumps(self._config, sort_keys=True).encode("utf-8")
        self._empty_size = 4 + OFFSET_BYTES + len(self._config_text)  # the number of rows, the end of the last one
        self._rows: list[bytes] = []
        self._sizes: list[np.ndarray] = []
        self._size = self._empty_size

    def add_row(self, row: bytes) -> None:
        """Adds one packed row."""
        self.add_rows(ROW_HEAD.pack(len(row)) + row, np.array([len(row)]))

    def add_rows(self, rows: bytes, sizes: np.ndarray) -> None:
        """Adds R concatenated rows, each preceded by its size; `sizes` is (R,)."""
        start = 0
        while len(sizes):
            ends = np.cumsum(sizes + ROW_HEAD.size)
            in_shard = self._size + ends + OFFSET_BYTES * np.arange(1, len(sizes) + 1)
            fitting = int(np.searchsorted(in_shard, self.size_limit, side="right"))
            if not fitting and not self._sizes:
                fitting = 1  # a row larger than the limit gets a shard of its own
            if fitting:
                end = start + int(ends[fitting - 1])
                self._rows.append(rows[start:end])
                self._sizes.append(sizes[:fitting])
                self._size = int(in_shard[fitting - 1])
                start, sizes = end, sizes[fitting:]
            if len(sizes):
                self._write_shard()

    def close(self) -> None:
        """Writes the rows that are left as the last shard."""
        if self._sizes:
            self._write_shard()

    def _write_shard(self) -> None:
        name = f"shard.{len(self.shards):05}.mds"
        sizes = np.concatenate(self._sizes) + ROW_HEAD.size
        first = 4 + OFFSET_BYTES * (len(sizes) + 1) + len(self._config_text)
        offsets = (np.concatenate(([0], np.cumsum(sizes))) + first).astype("<u4")
        data = b"".join((struct.pack("<I", len(sizes)), offsets.tobytes(), self._config_text, *self._rows))
        self._rows, self._sizes, self._size = [], [], self._empty_size
        raw, zipped = self._file_facts(name, data), None
        if self.compression:
            name, data = f"{name}.{self.compression.partition(':')[0]}", compress(self.compression, data)
            zipped = self._file_facts(name, data)
        (self.folder / name).write_bytes(data)
        self.shards.append({"samples": len(sizes), "raw_data": raw, "zip_data": zipped, **self._config})

    def _file_facts(self, name: str, data: bytes) -> dict[str, Any]:
        hashes = {algorithm: hash_of(algorithm, data).hexdigest() for algorithm in self.hashes}
        return {"basename": name, "bytes": len(data), "hashes": hashes}


def write_index(folder: Path, shards: list[dict[str, Any]]) -> None:
    """Writes index.json, which makes the folder readable as MDS."""
    text = json.dumps({"version": INDEX_VERSION, "shards": shards}, sort_keys=True)
    (folder / INDEX_NAME).write_text(text, "utf-8")


def compress(compression: str, data: bytes) -> bytes:
    """Like streaming, with its packages, but without a time in gzip's header: the same rows give the same bytes."""
    family, _, text = compression.partition(":")
    level = int(text) if text else None
    if family == "zstd":
        import zstd

        return zstd.compress(data, 3 if level is None else level)
    if family == "br":
        import brotli

        return brotli.compress(data, quality=11 if level is None else level)
    if family == "snappy":
        import snappy

        return snappy.compress(data)
    if family == "bz2":
        import bz2

        return bz2.compress(data, 9 if level is None else level)
    import gzip

    return gzip.compress(data, 9 if level is None else level, mtime=0)
