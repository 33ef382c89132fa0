"""Tables of interactions or items in files of any format, read by column, with errors that name file and line.

Parquet files, and files of text in which every line has the same form, are read by polars. Other files of text, such as
those with line breaks in fields, damaged lines or other encodings, are read record by record.
"""

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import SEEK_END
from typing import Any

import polars as pl

from ugt_composer.errors import UserError, first_line
from ugt_composer.importing.column_types import shown_type
from ugt_composer.importing.csv_records import QUOTE, has_quotes, is_regular, records
from ugt_composer.importing.damage import Damage
from ugt_composer.importing.file_format import CSV, ITEMS, JSONL, MIND, PARQUET, TSV, is_news
from ugt_composer.importing.inputs import Part, Span, each
from ugt_composer.importing.json_records import json_objects, json_text
from ugt_composer.importing.scans import scan_csv, scan_parquet
from ugt_composer.importing.text_lines import byte_blocks, text_lines
from ugt_composer.storage.remote_files import InputFile, InputPath, RemoteFile, size_of
from ugt_composer.storage.s3 import StoreError

ROW = "row of the file"  # the column that numbers lines (text) or rows (Parquet) from 1; no file has such a name
PART = "part of the table"  # the column that numbers the files from 0
CHUNK = 100_000  # records that become columns at once
STORE_ERROR = "object-store error"  # in polars' errors
PARQUET_MARK = b"PAR1"  # of the format's start and end
ONLY_BLANK = ": has only blank lines, expected one JSON object per line"
SEPARATORS = re.compile(r"::|[;\t|,]")
QUOTED_SEPARATOR = re.compile(r'(?<=")[;\t|](?=")')


@dataclass(frozen=True)
class Table:
    """The rows of all parts.

    Attributes:
        names: the columns of the files.
        damage: rows that cannot be read; complete after `read`.
    """

    parts: tuple[Part, ...]
    names: list[str]
    damage: Damage = field(default_factory=Damage)

    @property
    def path(self) -> InputFile:
        """The file that is named if a message is about all of them."""
        return self.parts[0].path

    @property
    def names_option(self) -> str | None:
        """The option that would name the columns, if the first line is their header."""
        part = self.parts[0]
        return f"{part.written.option}columns" if part.kind in (CSV, TSV) and part.written.names is None else None

    def read(self, columns: Sequence[str], one_line: Sequence[str] = ()) -> pl.LazyFrame:
        """These columns, with PART and ROW. Those of files of text are text, so that ids stay unchanged.

        Args:
            one_line: columns of short values, such as ids, in which a line is not to be swallowed by a stray quote.
        """
        if self.damage.count:
            self.damage.count, self.damage.places, self.damage.first = 0, [], None
        columns = list(dict.fromkeys(columns))
        if self.parts[0].kind == PARQUET:
            frames = each(self.parts, lambda part: self._read(part, columns, one_line))
        else:
            frames = [self._read(part, columns, one_line) for part in self.parts]
        if self.parts[0].kind == PARQUET and len(frames) > 1:
            types = common_types(self.parts, [frame.collect_schema() for frame in frames])
            frames = [frame.with_columns(pl.col(name).cast(dtype) for name, dtype in types.items()) for frame in frames]
        numbered = [frame.with_columns(pl.lit(n, pl.Int32).alias(PART)) for n, frame in enumerate(frames)]
        return pl.concat(numbered)

    def _read(self, part: Part, columns: list[str], one_line: Sequence[str]) -> pl.LazyFrame:
        if part.kind == PARQUET:
            scanned = scan_parquet(part.path, row_index_name=ROW)
            if part.span is not None:
                scanned = scanned.slice(part.span.start, part.span.stop - part.span.start)
            return _fetched(part, scanned.select(*columns, pl.col(ROW) + 1))
        if part.kind == JSONL:
            return self._json_frame(part, columns, one_line)
        if part.span is not None:
            return _read_span(part, part.span, self.names, columns)
        if is_regular(part, len(self.names)):
            return _fetched(part, _scanned(part, self.names, columns))
        return self._record_frame(part, columns, one_line)

    def _record_frame(self, part: Part, columns: list[str], one_line: Sequence[str]) -> pl.LazyFrame:
        places = [self.names.index(name) for name in columns]
        columns_of = _Columns(columns)
        rows = records(part, len(self.names), [self.names.index(name) for name in one_line])
        if part.written.names is None:
            next(rows)
        for record in rows:
            if record.problem is None:
                columns_of.add(record.line, [record.fields[place] or None for place in places])
            else:
                self.damage.add(part, record.line, record.problem)
        return columns_of.frame()

    def _json_frame(self, part: Part, columns: list[str], single: Sequence[str]) -> pl.LazyFrame:
        columns_of = _Columns(columns)
        for item in json_objects(part, single):
            if item.problem is None:
                columns_of.add(item.line, [json_text(item.fields.get(name)) for name in columns])
            else:
                self.damage.add(part, item.line, item.problem)
        return columns_of.frame()


def _fetched(part: Part, rows: pl.LazyFrame) -> pl.LazyFrame:
    """The rows of a part; those of an object in a store are read now, once, and in the version that was found."""
    if not isinstance(part.path, RemoteFile):
        return rows
    with named_errors(part.path):
        frame = rows.collect()
    part.path.check_unchanged()
    return frame.lazy()


def common_types(parts: Sequence[Part], schemas: Sequence[Mapping[str, pl.DataType]]) -> dict[str, pl.DataType]:
    """Column → type, of those whose type of number differs between files. Raises UserError if a column holds numbers
    here and something else there."""
    types_of: dict[str, pl.DataType] = {}
    for name in schemas[0]:
        types = [schema[name] for schema in schemas]
        if len(set(types)) == 1:
            continue
        other = next(n for n, dtype in enumerate(types) if dtype != types[0])
        if not all(dtype.is_numeric() for dtype in types):
            raise UserError(
                f"{parts[other].path}: column {name!r} holds {shown_type(types[other])}, but "
                f"{shown_type(types[0])} in {parts[0].path}; expected the same type in all files"
            )
        types_of[name] = _common_number(types)
    return types_of


def _common_number(types: Sequence[pl.DataType]) -> pl.DataType:
    """A type of number for columns of these types. Integers stay exact, decimals become floating-point numbers."""
    if not all(dtype.is_integer() for dtype in types):
        return pl.Float64()
    wide = any(dtype in (pl.UInt64, pl.Int128) for dtype in types)
    return pl.Int128() if wide else pl.Int64()


class _Columns:
    """Collects records as columns of text."""

    def __init__(self, names: list[str]):
        self.names = names
        self.rows: list[list[str | None]] = []
        self.lines: list[int] = []
        self.frames: list[pl.DataFrame] = []

    def add(self, line: int, values: list[str | None]) -> None:
        self.rows.append(values)
        self.lines.append(line)
        if len(self.rows) == CHUNK:
            self._flush()

    def frame(self) -> pl.LazyFrame:
        self._flush()
        return pl.concat(self.frames).lazy()

    def _flush(self) -> None:
        schema = dict.fromkeys(self.names, pl.String)
        values = pl.DataFrame(self.rows, schema, orient="row")
        self.frames.append(values.with_columns(pl.Series(ROW, self.lines, pl.UInt32)))
        self.rows, self.lines = [], []


def _about_items(part: Part) -> str:
    return "; give a table of items with --items" if part.written.option == "--" else ""


def open_table(parts: tuple[Part, ...]) -> Table:
    """The table of these files. Raises UserError if they have no columns, or different ones."""
    names = each(parts, _names)
    if parts[0].kind == JSONL:
        # Keys may be left out of an object, so a file may lack some.
        return Table(parts, list(dict.fromkeys(name for some in names for name in some)))
    for part, others in zip(parts, names, strict=True):
        if set(others) != set(names[0]):
            raise UserError(
                f"{part.path} has the columns {', '.join(others)}, but {parts[0].path} has {', '.join(names[0])}; "
                f"expected the same columns in all files{_about_items(part)}"
            )
        if others != names[0] and part.kind != PARQUET:
            raise UserError(
                f"{part.path} has its columns in another order than {parts[0].path}: {', '.join(others)}, not "
                f"{', '.join(names[0])}; expected the same order in all files"
            )
    return Table(parts, names[0])


def _names(part: Part) -> list[str]:
    if part.kind == PARQUET:
        with named_errors(part.path):
            _check_parquet(part.path, part.written.option)
            return scan_parquet(part.path).collect_schema().names()
    if part.kind == JSONL:
        return _keys(part)
    return _names_of_text(part)


def keys_of(part: Part) -> tuple[list[str], str | None]:
    """The keys of all objects, in the order in which they occur; if there are none, what is wrong with the last line
    that is no object."""
    names: dict[str, None] = {}
    problem = None
    for item in json_objects(part):
        names.update(dict.fromkeys(item.fields))
        if item.problem is not None and not names:
            problem = f", line {item.line}: {item.problem}"
            if item.line == 1:
                break
    return list(names), problem


def _keys(part: Part) -> list[str]:
    names, problem = keys_of(part)
    if not names:
        raise UserError(f"{part.path}{problem or ONLY_BLANK}")
    return names


def _names_of_text(part: Part) -> list[str]:
    first = next(records(part), None)
    option, given = part.written.option, part.written.names
    if first is None:
        raise UserError(f"{part.path}: has only blank lines, expected a table")
    if part.kind == MIND and len(first.fields) != len(given or ()):
        raise UserError(
            f"{part.path}: line 1 has {len(first.fields)} columns, expected MIND's {len(given or ())}: "
            f"{', '.join(given or ())}"
        )
    if first.problem is not None:
        _check_separator(part, [next(text_lines(part))], QUOTED_SEPARATOR)
        raise UserError(f"{part.path}, line {first.line}: {first.problem}")
    fields = first.fields
    _check_separator(part, fields, SEPARATORS)
    if given is None and is_news(fields):
        raise UserError(f"{part.path}: has MIND's news; give it as --items with {ITEMS}format mind")
    if given is None:
        names = [name.strip() or f"column_{number}" for number, name in enumerate(fields, start=1)]
        again = [name for name in names if names.count(name) > 1]
        if again:
            raise UserError(
                f"{part.path}: its header line has {again[0]!r} twice; rename one, or if the file has no header line, "
                f"name its columns with {option}columns"
            )
        return names
    if len(set(given)) < len(given) or "" in given or (len(given) == 1 < len(fields) and " " in given[0]):
        raise UserError(
            f"{option}columns {','.join(given)}: expected different names, separated by commas, such as "
            "user,item,timestamp; a column that is not used can have any name"
        )
    if len(given) > len(fields):
        raise UserError(
            f"{part.path}: {option}columns names {len(given)} columns, but line 1 has {len(fields)}; name them in the "
            f"file's order, or give its {option}separator"
        )
    for name, value in zip(given, fields, strict=False):
        if name.casefold() == value.strip().casefold():
            cause = f"{option}columns is for files without a header line"
            if part.kind == MIND:
                cause = "MIND's files have no header line, so remove it"
            raise UserError(f"{part.path}: line 1 has the column name {value!r}; {cause}")
    return [*given, *(f"column_{number}" for number in range(len(given) + 1, len(fields) + 1))]


def _check_separator(part: Part, fields: list[str], separators: re.Pattern[str]) -> None:
    """Raises UserError if the first line is a single field that one of these separators would divide, or if it was
    divided by half of a separator of two equal characters."""
    inner = separators.search(fields[0]) if len(fields) == 1 else None
    if inner is not None:
        separator = "tab" if inner[0] == "\t" else f"'{inner[0]}'"
        raise UserError(
            f"{part.path}: found only one column, {fields[0][:80]!r}; its columns seem to be separated otherwise: give "
            f"{part.written.option}separator {separator}"
        )
    if len(fields) > 2 and not any(fields[1::2]):
        raise UserError(
            f"{part.path}: every second column of its first line is empty ({', '.join(fields)}); give "
            f"{part.written.option}separator '{2 * str(part.written.separator)}'"
        )


def _scanned(part: Part, names: list[str], columns: list[str]) -> pl.LazyFrame:
    header = 0 if part.written.names is not None else 1
    table = scan_csv(part.path, skip_lines=header, **_csv_options(part, names, 1 + header))
    return table.select(*columns, ROW)


def _read_span(part: Part, span: Span, names: list[str], columns: list[str]) -> pl.LazyFrame:
    """Like `_scanned`, of a range of a regular file."""
    data = b"".join(byte_blocks(part))
    header = 1 if span.start == 0 and part.written.names is None else 0
    if span.start == 0:
        data = data.removeprefix(codecs.BOM_UTF8)
    if header:
        data = data[data.find(b"\n") + 1 or len(data) :]
    options = _csv_options(part, names, 1 + header + span.lines_before)
    if not data:
        return pl.LazyFrame(schema={**dict.fromkeys(columns, pl.String), ROW: pl.UInt32})
    return pl.read_csv(data, **options).lazy().select(*columns, ROW)


def _csv_options(part: Part, names: list[str], first_row: int) -> dict[str, Any]:
    return {
        "separator": part.written.separator or ",",
        "quote_char": QUOTE if has_quotes(part.written) else None,
        "has_header": False,  # names are those of the header as `records` reads it, or given
        "schema": dict.fromkeys(names, pl.String),
        "row_index_name": ROW,
        "row_index_offset": first_row,
    }


def _check_parquet(path: InputFile, option: str) -> None:
    with path.open("rb") as file:
        start = file.read(len(PARQUET_MARK))
        file.seek(-min(len(PARQUET_MARK), size_of(path)), SEEK_END)
        end = file.read()
    if start != PARQUET_MARK:
        raise UserError(
            f"{path}: is {'empty' if not start else 'no Parquet file'}, expected a Parquet file; if it is another "
            f"table, give its format with {option}format"
        )
    if end != PARQUET_MARK:
        raise UserError(f"{path}: is a Parquet file that is cut short; copy or download it again")


@contextmanager
def named_errors(path: InputPath) -> Iterator[None]:
    """Turns polars and OS errors into a UserError with the file's name; of an object, into what the store says."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        if isinstance(path, RemoteFile):
            path.check_unchanged()
            if STORE_ERROR in str(error):
                raise StoreError(f"{path}: the store does not answer ({first_line(error)})") from None
        if not isinstance(error, OSError):
            raise UserError(f"{path}: cannot be read; expected a complete and undamaged table") from None
        raise UserError(f"{path}: cannot be read ({error.strerror or 'the file is damaged'})") from None
