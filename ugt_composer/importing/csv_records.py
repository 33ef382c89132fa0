"""Records of CSV and TSV files, one by one, with their line numbers; and a fast test that a file needs no such care.

A quotation mark at the start of a field opens a quoted field, which may hold separators, line breaks and doubled
quotation marks. Anywhere else it is an ordinary character, as in `7" tablet`. If a quoted field is not closed, or the
record with it is malformed, only the line where the record starts is damaged: reading continues with the next line.
Two lines with a stray quotation mark each can look like one record; in fields of one line, such as ids, it is noticed.
"""

import csv
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ugt_composer.importing.file_format import UTF_8, FileFormat, is_wide
from ugt_composer.importing.inputs import Part
from ugt_composer.importing.text_lines import byte_blocks, encoding_problem, text_lines, undecoded

LONGEST_FIELD = 1 << 20  # of several lines; more than that is a quotation mark that is not closed
QUOTE = '"'
SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Record:
    """A record that starts in a line of the file; `problem` says what is wrong with a damaged one."""

    line: int
    fields: list[str]
    problem: str | None = None


def has_quotes(written: FileFormat) -> bool:
    """Whether quotation marks enclose fields; in tab-separated files they are inch marks and the like."""
    assert written.separator is not None
    return len(written.separator) == 1 and written.separator not in "\t "


def records(part: Part, width: int | None = None, one_line: Collection[int] = ()) -> Iterator[Record]:
    """All records but blank lines, the header line included.

    Args:
        width: how many fields a record should have; None: any number.
        one_line: numbers of the fields that hold no line break together with a separator.
    """
    separator, quotes = part.written.separator, has_quotes(part.written)
    assert separator is not None
    csv.field_size_limit(LONGEST_FIELD)
    lines = _Lines(text_lines(part))
    for line in lines:
        number = lines.number
        if undecoded(line):
            yield Record(number, [], encoding_problem(part))
        elif quotes and QUOTE in line:
            yield _quoted_record(lines, line, separator, width, one_line)
        elif line.strip(" "):
            yield _checked(Record(number, line.split(separator)), width)


class _Lines:
    """Lines with their number, which can be put back."""

    def __init__(self, lines: Iterator[str]):
        self._lines = lines
        self._again: list[str] = []
        self.number = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._lines)
        self.number += 1
        return line

    def put_back(self, lines: list[str]) -> None:
        self._again += reversed(lines)
        self.number -= len(lines)


def _quoted_record(lines: _Lines, line: str, separator: str, width: int | None, one_line: Collection[int]) -> Record:
    number = lines.number
    more: list[str] = []

    def one_by_one() -> Iterator[str]:
        yield line + "\n"
        for following in lines:
            more.append(following)
            yield following + "\n"

    try:
        fields = next(csv.reader(one_by_one(), delimiter=separator, strict=True))
        record = _checked(Record(number, fields), width)
    except csv.Error:
        record = Record(number, [], _quote_problem(line))
    if more and (record.problem is not None or any(_has_lines(record.fields[n], separator) for n in one_line)):
        lines.put_back(more)
        record = Record(number, [], _quote_problem(line))
    return record


def _has_lines(field: str, separator: str) -> bool:
    return "\n" in field and separator in field


def _quote_problem(line: str) -> str:
    return (
        f"found {line[:SHOWN_CHARACTERS]!r}, where a quoted field is not closed or text follows it, expected quotation "
        'marks around a field and doubled in it, as in "7"" tablet"'
    )


def _checked(record: Record, width: int | None) -> Record:
    found = len(record.fields)
    if width is None or found == width:
        return record
    fields = f"{found} field" + "s" * (found != 1)
    return Record(record.line, [], f"found {fields}, expected {width}")


def is_regular(part: Part, width: int) -> bool:
    """Whether every line is a record of `width` fields in UTF-8, and all quotation marks enclose whole fields.

    Only then do polars and `records` read the same rows, and is a row's number that of its line.
    """
    if not may_be_regular(part, width):
        return False
    return all(map(_regular(part, width), byte_blocks(part)))


def may_be_regular(part: Part, width: int) -> bool:
    """Whether the form of the file allows `is_regular` to be true."""
    separator = part.written.separator
    assert separator is not None
    return width > 1 and len(separator.encode()) == 1 and not is_wide(part.encoding)


def count_regular_lines(part: Part, width: int) -> int | None:
    """The number of lines of a part that `may_be_regular`; None if it is not regular."""
    is_regular_block, lines = _regular(part, width), 0
    for block in byte_blocks(part):
        if not is_regular_block(block):
            return None
        lines += block.count(b"\n") + (not block.endswith(b"\n"))
    return lines


def _regular(part: Part, width: int) -> "_Regular":
    separator = part.written.separator
    assert separator is not None
    return _Regular(part.encoding, separator.encode(), width, has_quotes(part.written))


class _Regular:
    """Tests blocks of whole lines: all their separators, line feeds and quotation marks must form a regular pattern."""

    def __init__(self, encoding: str, separator: bytes, width: int, quotes: bool):
        self.utf_8 = encoding in (UTF_8, "utf-8-sig")
        self.separator = separator
        self.plain_line = separator * (width - 1) + b"\n"
        kept = separator + b"\n" + (b'"' if quotes else b"")
        self.dropped = bytes(set(range(256)) - set(kept))

    def __call__(self, block: bytes) -> bool:
        if not block.isascii() and not (self.utf_8 and _is_utf_8(block)):
            return False
        if not block.endswith(b"\n"):
            block += b"\n"
        if b"\r" in block and block.count(b"\r") != block.count(b"\r\n"):
            return False
        pattern = block.translate(None, self.dropped)
        if pattern == self.plain_line * (len(pattern) // len(self.plain_line)):
            return True
        return b'"' in pattern and self._encloses_fields(block, pattern)

    def _encloses_fields(self, block: bytes, pattern: bytes) -> bool:
        """Whether each field has no quotation mark, or exactly one at its start and one at its end."""
        if b'""""' in pattern or pattern.replace(b'""', b"") != self.plain_line * pattern.count(b"\n"):
            return False
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n")
        starts = block.startswith(b'"') + block.count(b'\n"') + block.count(self.separator + b'"')
        ends = block.count(b'"\n') + block.count(b'"' + self.separator)
        return starts == ends == pattern.count(b'""')


def _is_utf_8(block: bytes) -> bool:
    try:
        block.decode(UTF_8)
    except UnicodeDecodeError:
        return False
    return True
