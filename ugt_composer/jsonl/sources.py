"""Finds the input files and cuts them into partitions that are converted independently.

A partition is a list of pieces. A piece is a byte range of a plain file or a whole compressed one. A line belongs to
the range that contains its first byte. The cuts depend only on the files' sizes, so that the output is the same for
any number of workers.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ugt_composer.errors import UserError
from ugt_composer.storage.input_files import check_given_once, visible_files
from ugt_composer.storage.s3_url import is_url

PLAIN_ENDINGS = (".jsonl", ".ndjson", ".json")
COMPRESSED_ENDINGS = (".gz", ".zst")
ENDINGS = PLAIN_ENDINGS + tuple(plain + packed for plain in PLAIN_ENDINGS for packed in COMPRESSED_ENDINGS)
USUAL_RATIO = 5  # assumed compression ratio of JSON Lines, to group small files


@dataclass(frozen=True)
class Source:
    """An input file, under the path that the user gave."""

    path: str
    size: int

    @property
    def compressed(self) -> bool:
        return self.path.endswith(COMPRESSED_ENDINGS)


@dataclass(frozen=True)
class Piece:
    """Bytes `start` to `end` of source number `source`; the whole file if it is compressed.

    `path` is what the user gave, relative to `folder`, which is empty in the user's working directory.
    """

    source: int
    path: str
    start: int
    end: int
    file_size: int
    folder: str = ""

    @property
    def file(self) -> str:
        return os.path.join(self.folder, self.path)

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


def find_sources(inputs: Sequence[str], out: Path | None) -> list[Source]:
    """The input files and those in the input folders, in a fixed order. Raises UserError for what cannot be read.

    Args:
        out: the folder that will be replaced; None if it is not on this machine.
    """
    paths = [path for name in inputs for path in _expand(name, out)]
    check_given_once(paths)
    return [Source(path, _checked_size(path, out)) for path in paths]


def _expand(name: str, out: Path | None) -> list[str]:
    """For a file, itself; for a folder, the files with a known ending in it and its subfolders."""
    if is_url(name):
        raise UserError(f"{name}: the input must be files or folders; copy it to a disk, or mount it as a folder")
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


def partitions(sources: Sequence[Source], range_bytes: int) -> list[Partition]:
    """Cuts large plain files into ranges and groups small files, up to about `range_bytes` per partition."""
    result: list[Partition] = []
    group: list[AnyPiece] = []
    weight = 0
    for number, source in enumerate(sources):
        step = source.size if source.compressed else range_bytes
        for start in range(0, source.size, max(step, 1)):
            piece = Piece(number, source.path, start, min(start + step, source.size), source.size)
            piece_weight = piece.size * (USUAL_RATIO if source.compressed else 1)
            if group and weight + piece_weight > range_bytes:
                result.append(tuple(group))
                group, weight = [], 0
            group.append(piece)
            weight += piece_weight
    if group:
        result.append(tuple(group))
    return result
