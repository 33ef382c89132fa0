"""Objects of a store as input files: found like files and folders, and read by ranges of their bytes.

A file is read in the version that was found: when it changes, reading is an error. Nothing is kept on a disk.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from glob import has_magic
from pathlib import Path
from typing import BinaryIO

from ugt_composer.errors import UserError
from ugt_composer.storage.input_files import is_visible
from ugt_composer.storage.s3 import ChangedError, MissingError, RefusedError, Store, Version
from ugt_composer.storage.s3_url import Address, input_path, split_url

LEAST_BYTES, MOST_BYTES = 1 << 18, 1 << 23  # of a request; more, up to the most, while a file is read in order
GROWTH = 4
BUFFER_BYTES = 1 << 16


@dataclass(frozen=True)
class RemoteFile(Address):
    """An object, in the version with this ETag. Its size is in bytes."""

    size: int
    etag: str

    def open(self, mode: str = "rb") -> BinaryIO:
        """A file object that can be sought. Reading raises UserError if the object has changed or cannot be read."""
        assert mode == "rb"
        return io.BufferedReader(_Ranges(self), BUFFER_BYTES)

    def read(self, start: int, stop: int) -> bytes:
        store, key = _place(self)
        with _user_errors():
            return store.read_range(key, start, stop, self.etag)

    def check_unchanged(self) -> None:
        """Raises UserError if the object has changed since it was found, or is gone."""
        store, key = _place(self)
        with _user_errors():
            if store.version(key) != (self.size, self.etag):
                raise ChangedError(f"{self}: changed while it was read")

    def polars_options(self) -> dict[str, str]:
        """What polars takes as storage_options to read the object at its address."""
        return _place(self)[0].polars_options()


InputFile = Path | RemoteFile  # one that was found
InputPath = Path | Address  # one that a user named


def size_of(file: InputFile) -> int:
    """Bytes."""
    return file.size if isinstance(file, RemoteFile) else file.stat().st_size


def find_object(address: Address) -> RemoteFile | None:
    """The object with this address; None if there is none.

    Raises:
        UserError: the address is not valid, or the store refuses.
        StoreError: the store does not answer.
    """
    store, key = _place(address)
    if not key or address.url.endswith("/"):
        return None
    try:
        with _user_errors():
            return _file(store, key, store.version(key))
    except _Missing:
        return None


def named_file(text: str) -> InputFile:
    """The single file that a user named. Raises UserError if it is an address without an object; paths are not checked.

    Raises:
        StoreError: the store does not answer.
    """
    path = input_path(text)
    if not isinstance(path, Address):
        return path
    file = find_object(path)
    if file is None:
        raise UserError(f"{path}: found no such object{_near(*_place(path))}")
    return file


def objects_below(address: Address) -> list[RemoteFile]:
    """The objects in a prefix, like the files of a folder and its subfolders: `visible` ones, by name.

    Raises:
        UserError: nothing is there, not even the bucket, or the store refuses.
        StoreError: the store does not answer.
    """
    store, key = _place(address)
    found = _versions(store, key)
    if not found:
        raise UserError(f"{address}: found no such object or prefix{_near(store, key)}")
    start = f"{key}/" if key else ""
    names = sorted(name.removeprefix(start) for name in found)
    files = [name for name in names if _is_file(start + name) and is_visible(name)]
    return [_file(store, start + name, found[start + name]) for name in files]


def matching_objects(address: Address) -> list[RemoteFile]:
    """The objects that a pattern matches, as `glob` finds files. Raises like `objects_below`."""
    store, pattern = _place(address)
    parts = pattern.split("/")
    fixed = next(at for at, part in enumerate(parts) if has_magic(part))
    found = _versions(store, "/".join(parts[:fixed]))
    keys = sorted(
        (key for key in found if _is_file(key) and _matches(key.split("/"), parts)), key=lambda k: k.split("/")
    )
    return [_file(store, key, found[key]) for key in keys]


def folder_of(path: str) -> InputPath:
    """The folder or prefix that a file is in."""
    file = input_path(path)
    return Address(file.url.rpartition("/")[0]) if isinstance(file, Address) else file.parent


def file_in(folder: InputPath, name: str) -> InputFile | None:
    """The file `name` in a folder or prefix, if there is one."""
    if isinstance(folder, Address):
        try:
            return find_object(Address(f"{folder}/{name}"))
        except _Refused:  # so a store answers about a missing object if its user may not list objects
            return None
    return folder / name if (folder / name).is_file() else None


class _Missing(UserError):
    """There is no such object."""


class _Refused(UserError):
    """The store does not allow the request."""


@contextmanager
def _user_errors() -> Iterator[None]:
    """Raises UserError for what the user has to fix, as for a file of this machine."""
    try:
        yield
    except MissingError as error:
        raise _Missing(str(error)) from None
    except RefusedError as error:
        raise _Refused(str(error)) from None
    except ChangedError as error:
        raise UserError(f"{error}; start again when it is complete") from None


def _place(address: Address) -> tuple[Store, str]:
    """The bucket and the key."""
    try:
        bucket, key = split_url(address.url)
    except ValueError:
        raise UserError(f"{address}: expected an address such as s3://bucket/prefix") from None
    return bucket_store(bucket, os.environ.get("S3_ENDPOINT_URL")), key


@cache
def bucket_store(bucket: str, endpoint: str | None) -> Store:
    """One client per process and bucket; a store has the endpoint that S3_ENDPOINT_URL says at its first request."""
    return Store(f"s3://{bucket}")


def _versions(store: Store, folder: str) -> dict[str, Version]:
    with _user_errors():
        return store.versions(folder)


def _file(store: Store, key: str, version: Version) -> RemoteFile:
    return RemoteFile(f"{store.url}/{key}", *version)


def _is_file(key: str) -> bool:
    return not key.endswith("/")  # consoles make such objects to show a folder


def _near(store: Store, key: str) -> str:
    """A hint for a key that does not exist: the nearest one in the same prefix."""
    folder, _, name = key.rpartition("/")
    with _user_errors():
        close = get_close_matches(name, store.some_names(folder), n=1, cutoff=0.6)
    return f"; did you mean {'/'.join(filter(None, (store.url, folder, close[0])))}?" if close else ""


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a key match those of a pattern: `**` stands for any number of parts, and nothing but a dot
    for one at the start of a name."""
    if not pattern or not names:
        return not names and all(part == "**" for part in pattern)
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return _matches(names, rest) or (not names[0].startswith(".") and _matches(names[1:], pattern))
    hidden = names[0].startswith(".") and not first.startswith(".")
    return not hidden and fnmatchcase(names[0], first) and _matches(names[1:], rest)


class _Ranges(io.RawIOBase):
    """Reads an object by requests for ranges, small ones after a jump and larger ones while it is read in order."""

    def __init__(self, file: RemoteFile):
        self._file = file
        self._position = 0
        self._start, self._data = 0, b""  # the last range
        self._step = LEAST_BYTES // GROWTH

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._file.size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        if self._position >= self._file.size:
            return 0
        if not self._start <= self._position < self._start + len(self._data):
            in_order = self._position == self._start + len(self._data)
            self._step = min(self._step * GROWTH, MOST_BYTES) if in_order else LEAST_BYTES
            stop = min(self._position + self._step, self._file.size)
            self._start, self._data = self._position, self._file.read(self._position, stop)
        at = self._position - self._start
        data = self._data[at : at + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
