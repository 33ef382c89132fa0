"""Reads the lines of a catalogue, and keeps the arrays that are made of a large one for the next time.

Parsing ten million lines takes half a minute, mapping their arrays into memory no time, and the processes of a machine
share them. They lie beside the catalogue or, where its folder cannot be written, in a folder for temporary files, and
are used only for a file with the same hash.
"""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path

import msgspec
import xxhash

from ugt_composer.catalogue.item_columns import LARGEST_ID, Item, ItemColumns
from ugt_composer.errors import UserError, where_searched
from ugt_composer.jsonl.bad_row import BadRow, shown
from ugt_composer.jsonl.json_text import parse_object
from ugt_composer.jsonl.lines import TruncatedStream, read_blocks
from ugt_composer.jsonl.schema import ITEM_KEYS
from ugt_composer.jsonl.sources import Piece
from ugt_composer.storage.array_file import SUFFIX, arrays_beside, map_arrays, write_arrays
from ugt_composer.storage.file_lock import locked
from ugt_composer.storage.hashed_file import file_hash
from ugt_composer.storage.remote_files import InputFile
from ugt_composer.vocabulary import LEVELS, NUM_SPECIAL_IDS

MAX_LINE_BYTES = 1 << 20
UTF8_BOM = b"\xef\xbb\xbf"
KEPT_FROM = 32 << 20  # bytes of a file whose arrays are kept; a smaller one is parsed in a second
VERSION = "1"  # of the arrays
HASH, FINGERPRINT = "hash", "fingerprint"


def read_columns(path: InputFile) -> tuple[ItemColumns, str | None]:
    """The items of a file, and the catalogue's fingerprint if it is known.

    Raises:
        UserError: names file, line, field, what was found and what was expected.
        DuplicateItem: two items have the same item id.
    """
    return ItemColumns.of(_chunks(path)), None


def kept_columns(path: Path, fingerprint_of: Callable[[ItemColumns], str]) -> tuple[ItemColumns, str | None]:
    """`read_columns`, from the arrays that were kept of a large file; the first process of a machine makes them."""
    if not path.is_file() or path.stat().st_size < KEPT_FROM:
        return read_columns(path)
    digest = file_hash("xxh3_128", path)
    places = [arrays_beside(path), *_temporary_place(digest)]
    for place in places:
        if (kept := _kept(place, digest)) is not None:
            return kept
    columns = None
    for place in places:
        try:
            with locked(place.with_name(f"{place.name}.lock")):
                if (kept := _kept(place, digest)) is not None:  # by a process that had the lock before
                    return kept
                columns = columns or read_columns(path)[0]
                if not len(columns) or file_hash("xxh3_128", path) != digest:
                    break  # no item, or the file was changed meanwhile
                facts = {HASH: digest, "version": VERSION, FINGERPRINT: fingerprint_of(columns)}
                write_arrays(place, columns.arrays, facts)
                if (kept := _kept(place, digest)) is not None:
                    return kept
        except OSError:  # the folder cannot be written, is full, or has no locks
            continue
    return (columns, None) if columns is not None else read_columns(path)


def _kept(place: Path, digest: str) -> tuple[ItemColumns, str] | None:
    found = map_arrays(place)
    if found is None or found[1].get(HASH) != digest or found[1].get("version") != VERSION:
        return None
    arrays, facts = found
    return ItemColumns.from_arrays(arrays), facts[FINGERPRINT]


def _temporary_place(digest: str) -> list[Path]:
    """In a folder of the user's own, that nobody else can write; none if there is no such folder."""
    folder = Path(tempfile.gettempdir()) / f"ugt-catalogues-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
    except OSError:
        return []
    is_own = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o022
    return [folder / f"{digest}{SUFFIX}"] if is_own else []


def _chunks(path: InputFile) -> Iterator[tuple[list[Item], list[int]]]:
    """The items of some thousands of lines at a time, with the numbers of the lines."""
    decode = msgspec.json.Decoder(Item).decode
    number = 1
    for lines in _blocks(path):
        try:
            items = [decode(line) for line in lines]
            numbers = list(range(number, number + len(items)))
        except (ValueError, RecursionError):  # ValueError: msgspec's and UnicodeDecodeError
            items, numbers = _one_by_one(lines, path, number)
        else:
            _check_keys(lines, path, number)
        number += len(lines)
        yield items, numbers


def _one_by_one(lines: list[bytes], path: InputFile, first: int) -> tuple[list[Item], list[int]]:
    """The items of lines, of which some are blank or not valid, in the order of their errors."""
    items: list[Item] = []
    numbers: list[int] = []
    for number, line in enumerate(lines, start=first):
        if not line or line.isspace():
            continue
        try:
            items.append(msgspec.json.decode(line, type=Item))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: {_explain(line, error)}") from None
        _check_keys([line], path, number)
        numbers.append(number)
    return items, numbers


def _check_keys(lines: list[bytes], path: InputFile, first: int) -> None:
    """msgspec would silently keep the last of duplicate keys; those that matter are `retired` and end in _id."""
    for number, line in enumerate(lines, start=first):
        if line.count(b'_id"') > LEVELS + 1 or line.count(b'"retired"') > 1:
            try:
                parse_object(line)
            except BadRow as error:
                raise UserError(f"{path}:{number}: {error}") from None


def _blocks(path: InputFile) -> Iterator[list[bytes]]:
    """The lines of a plain or compressed file, without their ends and without a byte order mark."""
    if isinstance(path, Path) and not path.is_file():
        raise UserError(f"{path}: found no such file{where_searched(str(path))}, expected a catalogue in JSON Lines")
    start = UTF8_BOM
    try:
        for block in read_blocks(Piece.of(path), MAX_LINE_BYTES, xxhash.xxh3_128()):
            if block.too_long:
                raise UserError(
                    f"{path}: found a line of {block.too_long} bytes, expected JSON Lines with one item each"
                )
            yield block.data.removeprefix(start).removesuffix(b"\n").split(b"\n")
            start = b""
    except TruncatedStream as error:
        raise UserError(f"{path}: found {error}, expected a complete file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _explain(line: bytes, error: Exception) -> str:
    """What is wrong with a line that cannot be decoded, as «field: found …, expected …»."""
    try:
        row = parse_object(line)
    except BadRow as bad:
        return str(bad)
    for key in ("item_id", *ITEM_KEYS):
        if key not in row:
            near = get_close_matches(key, [other for other in row if other not in Item.__struct_fields__], n=1)
            return f"{key}: found no such key{f' but {shown(near[0])}' if near else ''}, expected it in every line"
    if not isinstance(row["item_id"], str) or not row["item_id"]:
        return f"item_id: found {shown(row['item_id'])}, expected text that is not empty"
    for key in ITEM_KEYS:
        value = row[key]
        if type(value) is not int or not NUM_SPECIAL_IDS <= value <= LARGEST_ID:
            return f"{key}: found {shown(value)}, expected an integer of {NUM_SPECIAL_IDS} to {LARGEST_ID}"
    if not isinstance(row.get("name"), str | None):
        return f"name: found {shown(row['name'])}, expected text"
    if not isinstance(row.get("retired", False), bool):
        return f"retired: found {shown(row['retired'])}, expected true or false"
    return f"line: found {error}, expected one JSON object"
