"""Finds the input files and cuts them into partitions that are converted independently.

A partition is a list of pieces. A piece is a byte range of a plain file or a whole compressed one. A line belongs to
the range that contains its first byte. The cuts depend only on the files' sizes, so that the output is the same for
any number of workers.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ugt_composer.errors import UserError
from ugt_composer.storage.input_files import check_given_once, visible_files
from ugt_composer.storage.remote_files import (
    InputFile,
    InputPath,
    RemoteFile,
    file_in,
    find_object,
    folder_of,
    objects_below,
    size_of,
)
from ugt_composer.storage.s3_url import Address, input_path, is_url

PLAIN_ENDINGS = (".jsonl", ".ndjson", ".json")
COMPRESSED_ENDINGS = (".gz", ".zst")
ENDINGS = PLAIN_ENDINGS + tuple(plain + packed for plain in PLAIN_ENDINGS for packed in COMPRESSED_ENDINGS)
USUAL_RATIO = 5  # assumed compression ratio of JSON Lines, to group small files


@dataclass(frozen=True)
class Source:
    """An input file, under the path that the user gave; of one in a store, its ETag."""

    path: str
    size: int
    etag: str | None = None

    @property
    def compressed(self) -> bool:
        return self.path.endswith(COMPRESSED_ENDINGS)


@dataclass(frozen=True)
class Piece:
    """Bytes `start` to `end` of source number `source`; the whole file if it is compressed.

    `path` is what the user gave, relative to `folder`, which is empty in the user's working directory. With an `etag`,
    it is the address of an object.
    """

    source: int
    path: str
    start: int
    end: int
    file_size: int
    folder: str = ""
    etag: str | None = None

    @classmethod
    def of(cls, file: InputFile, start: int = 0, end: int | None = None) -> "Piece":
        """A range of a single file, by default all of it."""
        size, etag = size_of(file), file.etag if isinstance(file, RemoteFile) else None
        return cls(0, str(file), start, size if end is None else end, size, etag=etag)

    @property
    def file(self) -> str:
        return os.path.join(self.folder, self.path)

    def open(self) -> BinaryIO:
        if self.etag is not None:
            return RemoteFile(self.path, self.file_size, self.etag).open()
        return open(self.file, "rb")

    @property
    def compressed(self) -> bool:
        return self.path.endswith(COMPRESSED_ENDINGS)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.end - self.start


@dataclass(frozen=True)
class TextPiece:
    """The lines of one range of a plain file that need not exist, in memory. `start` is where the range starts."""

    source: int
    path: str
    start: int
    text: bytes
    compressed = False

    @property
    def size(self) -> int:
        return len(self.text)


AnyPiece = Piece | TextPiece
Partition = tuple[AnyPiece, ...]


def find_sources(inputs: Sequence[str], out: InputPath) -> list[Source]:
    """The input files and those in the input folders, in a fixed order. Raises UserError for what cannot be read.

    Args:
        out: the folder or prefix that will be replaced.
    """
    found = [file for name in inputs for file in _expand(name, out)]
    check_given_once(found)
    return [
        Source(str(file), file.size, file.etag)
        if isinstance(file, RemoteFile)
        else Source(file, _checked_size(file, None if isinstance(out, Address) else out))
        for file in found
    ]


def _expand(name: str, out: InputPath) -> Sequence[str | RemoteFile]:
    """For a file, itself; for a folder, the files with a known ending in it and its subfolders."""
    path = input_path(name)
    if isinstance(path, Address):
        return _expand_address(path, out)
    if is_url(name):
        raise UserError(
            f"{name}: the input must be files, folders or s3://…; copy it to a disk, or mount it as a folder"
        )
    return _expand_path(name, None if isinstance(out, Address) else out)


def _expand_address(address: Address, out: InputPath) -> list[RemoteFile]:
    file = find_object(address)
    if file is not None:
        if not str(file).endswith(ENDINGS):
            raise UserError(f"{address}: the name must end in one of {', '.join(ENDINGS)}")
        if str(file).startswith(f"{out}/"):
            raise UserError(f"{address}: lies inside --out {out}, which would be replaced; name another folder")
        return [file]
    files = [file for file in objects_below(address) if file.name.endswith(ENDINGS)]
    if f"{out}/".startswith(f"{address}/"):
        raise UserError(f"--out {out} lies inside the input folder {address}; name a folder outside of it")
    if not files:
        raise UserError(f"{address}: no file in this folder ends in {', '.join(ENDINGS)}")
    return files


def _expand_path(name: str, out: Path | None) -> list[str]:
    folder = Path(name)
    if not folder.is_dir():
        if not name.endswith(ENDINGS) and folder.exists():
            raise UserError(f"{name}: the name must end in one of {', '.join(ENDINGS)}")
        return [name]
    if out is not None and out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"--out {out} lies inside the input folder {name}; name a folder outside of it")
    files = [str(path) for path in visible_files(folder) if path.name.endswith(ENDINGS)]
    if not files:
        raise UserError(f"{name}: no file in this folder ends in {', '.join(ENDINGS)}")
    return files


def _checked_size(name: str, out: Path | None) -> int:
    path = Path(name)
    if not path.exists():
        raise UserError(f"{name}: no such file or folder")
    if not path.is_file():
        raise UserError(f"{name}: not a regular file; write its lines to a file first, or name a folder")
    if out is not None and path.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{name}: lies inside --out {out}, which would be replaced; name another folder")
    if not os.access(path, os.R_OK):
        raise UserError(f"{name}: no permission to read it")
    return path.stat().st_size


def files_beside(sources: Sequence[Source], name: str) -> list[InputFile]:
    """The files `name` in the folders of the sources that are none of them."""
    inputs = {_identity(source.path) for source in sources}
    folders = dict.fromkeys(folder_of(source.path) for source in sources)
    found = (file_in(folder, name) for folder in folders)
    return [file for file in found if file is not None and _identity(str(file)) not in inputs]


def _identity(path: str) -> str:
    return path if is_url(path) else os.path.realpath(path)


def partitions(sources: Sequence[Source], range_bytes: int) -> list[Partition]:
    """Cuts large plain files into ranges and groups small files, up to about `range_bytes` per partition."""
    result: list[Partition] = []
    group: list[AnyPiece] = []
    weight = 0
    for number, source in enumerate(sources):
        step = source.size if source.compressed else range_bytes
        for start in range(0, source.size, max(step, 1)):
            piece = Piece(number, source.path, start, min(start + step, source.size), source.size, etag=source.etag)
            piece_weight = piece.size * (USUAL_RATIO if source.compressed else 1)
            if group and weight + piece_weight > range_bytes:
                result.append(tuple(group))
                group, weight = [], 0
            group.append(piece)
            weight += piece_weight
    if group:
        result.append(tuple(group))
    return result
