"""The files of a table: a file, several, the files of a folder, or those that a pattern matches."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import TypeVar

from ugt_composer.errors import UserError
from ugt_composer.importing.file_format import FORMAT_OF, PARQUET, FileFormat, extension
from ugt_composer.storage.at_once import mapped
from ugt_composer.storage.input_files import check_given_once, check_link, visible_files
from ugt_composer.storage.remote_files import (
    InputFile,
    InputPath,
    RemoteFile,
    find_object,
    matching_objects,
    objects_below,
    size_of,
)
from ugt_composer.storage.s3_url import Address

F = TypeVar("F", Path, RemoteFile)
T = TypeVar("T")


@dataclass(frozen=True)
class Span:
    """A range of a file: of its bytes, to which the lines belong that begin in it, or of the rows of a Parquet file.

    Attributes:
        lines_before: lines of the file before the range.
    """

    start: int
    stop: int
    lines_before: int = 0


@dataclass(frozen=True)
class Part:
    """A file of a table, or a range of one, and how it is written; `written.kind` is never None."""

    path: InputFile
    written: FileFormat
    span: Span | None = None

    @property
    def kind(self) -> str:
        assert self.written.kind is not None
        return self.written.kind

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return size_of(self.path)

    @property
    def unit(self) -> str:
        """What the numbers of its rows count."""
        return "row" if self.kind == PARQUET else "line"

    @property
    def encoding(self) -> str:
        assert self.written.encoding is not None
        return self.written.encoding


def find_parts(inputs: Sequence[InputPath], written: FileFormat) -> tuple[Part, ...]:
    """The files of `inputs`, those of a folder or pattern sorted by name.

    Raises:
        UserError: an input is missing or given twice, or the files have different formats.
    """
    parts: list[Part] = []
    paths = [path for name in inputs for path in _expand(name, written)]
    check_given_once(paths)
    for path in paths:
        if isinstance(path, Path) and not os.access(path, os.R_OK):
            raise UserError(f"{path}: no permission to read it")
        parts.append(Part(path, written.of(path)))
        if parts[-1].kind != parts[0].kind:
            raise UserError(
                f"{parts[0].path} is read as {parts[0].kind}, but {path} as {parts[-1].kind}; expected files of one "
                f"format: name the files, or give a pattern such as '*.csv', or {written.option}format"
            )
    return tuple(parts)


def each(parts: Sequence[Part], work: Callable[[Part], T]) -> list[T]:
    """What `work` returns for each part; for objects of a store, whose answers take time, several at once."""
    return mapped(parts, work) if any(isinstance(part.path, RemoteFile) for part in parts) else list(map(work, parts))


def shown(inputs: Sequence[InputPath]) -> str:
    """The inputs as named in a message."""
    return str(inputs[0]) if len(inputs) == 1 else f"{inputs[0]} and {len(inputs) - 1} more"


def _expand(name: InputPath, written: FileFormat) -> Sequence[InputFile]:
    if isinstance(name, Address):
        return _expand_address(name, written)
    if name.is_file():
        return [name]
    if name.is_dir():
        return _files_of_folder(name, written)
    if name.exists():
        raise UserError(f"{name}: is not a regular file; write its lines to a file first")
    if re.match(r"[a-z0-9]+:/", str(name)):
        raise UserError(
            f"{name}: is an address, of which only s3://… is read; copy the file to this machine and give its path"
        )
    if not has_magic(str(name)):
        raise UserError(f"{name}: found no such file or folder")
    matches = sorted(Path(match) for match in glob(str(name), recursive=True))
    for match in matches:
        check_link(match)
    files = [match for match in matches if match.is_file()]
    if not files:
        raise UserError(f"{name}: found no file that matches this pattern")
    return files


def _expand_address(address: Address, written: FileFormat) -> Sequence[RemoteFile]:
    file = find_object(address)
    if file is not None:
        return [file]
    if not has_magic(str(address)):
        return _tables(address, objects_below(address), written)
    files = matching_objects(address)
    if not files:
        raise UserError(f"{address}: found no file that matches this pattern")
    return files


def _files_of_folder(folder: Path, written: FileFormat) -> list[Path]:
    return _tables(folder, [path for path in visible_files(folder) if path.is_file()], written)


def _tables(folder: InputPath, visible: list[F], written: FileFormat) -> list[F]:
    """The files of a folder and its subfolders; of a known extension, unless the format was given."""
    any_name = written.kind is not None or written.separator is not None
    files = [path for path in visible if any_name or extension(path) in FORMAT_OF]
    if not files:
        found = f"only files such as {str(visible[0]).removeprefix(f'{folder}/')}" if visible else "no file"
        raise UserError(
            f"{folder}: found {found} in this folder, expected a table ({', '.join(FORMAT_OF)}; text also .gz or "
            f".zst); or give {written.option}format"
        )
    return files
