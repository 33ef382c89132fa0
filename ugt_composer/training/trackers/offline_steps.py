"""Which steps W&B's offline files hold.

A file of W&B is a header of 7 bytes and blocks of 32 KiB, in the format of LevelDB's log: a record is one chunk, or
several in consecutive blocks; a chunk is a checksum, its length, its type and its bytes. W&B writes whole blocks, so
that the file of a killed process ends within a record.
"""

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

FILE_HEADER = 7
BLOCK = 32 * 1024
CHUNK_HEADER = struct.Struct("<IHB")  # checksum, length, type
FULL, FIRST, LAST = 1, 2, 4  # 3 is a chunk between first and last


def records_of(content: bytes) -> Iterator[tuple[bytes, int]]:
    """The complete records of a `.wandb` file, and where each ends."""
    place, record = FILE_HEADER, b""
    while place + CHUNK_HEADER.size <= len(content):
        if (left := BLOCK - place % BLOCK) < CHUNK_HEADER.size:
            place += left
            continue
        _, length, kind = CHUNK_HEADER.unpack_from(content, place)
        place += CHUNK_HEADER.size
        if not FULL <= kind <= LAST or place + length > len(content):
            return
        chunk = content[place : place + length]
        place += length
        record = chunk if kind in (FULL, FIRST) else record + chunk
        if kind in (FULL, LAST):
            yield record, place


def steps_of(path: Path) -> list[int]:
    """The steps of a run's history, in the order of the file."""
    return [step for _, step, _ in _parsed(path) if step is not None]


def _parsed(path: Path) -> Iterator[tuple[str | None, int | None, int]]:
    """Kind, step (of the history) and end of each record."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for content, end in records_of(path.read_bytes()):
        record = Record.FromString(content)
        items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        yield record.WhichOneof("record_type"), int(items["_step"]) if "_step" in items else None, end


def newest_step(folder: Path, run_id: str) -> int:
    """The newest step in the offline files of a run whose processes have ended; -1 without one.

    `wandb sync` ends with an error at an incomplete record, and uploads no later folder of the run. So it is cut off
    here, and a file that a process had hardly begun is deleted.

    Args:
        folder: the one that W&B calls "wandb".
    """
    newest, name = -1, re.compile(rf"offline-run-\d+_\d+-{re.escape(run_id)}")
    for path in folder.glob("offline-run-*/*.wandb"):
        if not name.fullmatch(path.parent.name):
            continue
        records = list(_parsed(path))
        newest = max([newest, *(step for _, step, _ in records if step is not None)])
        if "run" not in (kind for kind, _, _ in records):
            path.unlink()
        elif records[-1][2] < path.stat().st_size:
            os.truncate(path, records[-1][2])
    return newest
