"""How a table is written: format, separator, encoding and column names, by options or by the name of the file."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ugt_composer.errors import UserError, nearest
from ugt_composer.storage.remote_files import InputPath

CSV, TSV, JSONL, PARQUET, MIND, SEQUENCES = "csv", "tsv", "jsonl", "parquet", "mind", "sequences"
FORMATS = (CSV, TSV, JSONL, PARQUET, MIND, SEQUENCES)
# The columns of MIND's behaviors.tsv and news.tsv, which have no header line.
BEHAVIORS = ("impression_id", "user", "time", "history", "impressions")
NEWS = ("news_id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
FORMAT_OF = {
    **{".csv": CSV, ".tsv": TSV, ".parquet": PARQUET, ".pq": PARQUET, ".txt": SEQUENCES},
    **{".jsonl": JSONL, ".ndjson": JSONL, ".json": JSONL},
    **{".inter": TSV, ".item": TSV},  # RecBole
}
PACKINGS = (".gz", ".zst")
ARCHIVES = (".zip", ".bz2", ".xz", ".7z", ".rar", ".tar", ".tgz", ".z")
SPREADSHEETS = (".xls", ".xlsx", ".ods")
SEPARATORS = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ","}
UTF_8 = "utf-8"
ITEMS = "--items-"  # what the options of the table of items start with


@dataclass(frozen=True)
class FileFormat:
    """How a file is written. What is None follows from the file's extension.

    Attributes:
        kind: one of FORMATS.
        separator: of a table of text; several characters, as in MovieLens-1M, are allowed.
        encoding: of a file of text.
        names: column names of a file without a header line; those of further columns may be left out.
        option: what the names of the command-line options start with, for messages.
    """

    kind: str | None = None
    separator: str | None = None
    encoding: str | None = None
    names: tuple[str, ...] | None = None
    option: str = "--"

    def of(self, path: InputPath) -> "FileFormat":
        """The format of a file, with a kind, and if it is text, an encoding. Raises UserError if there is none."""
        kind = self._kind(path)
        separator, names = None, self.names
        if kind == MIND and self.separator is None:
            separator, names = "\t", names or (NEWS if self.option == ITEMS else BEHAVIORS)
        elif kind in (CSV, TSV):
            separator = _checked_separator(self.separator, self.option) or ("\t" if kind == TSV else ",")
        elif self.separator is not None:
            raise UserError(f"{path}: {self.option}separator is for tables of text, but this file is read as {kind}")
        if kind in (PARQUET, JSONL) and self.names is not None:
            raise UserError(f"{path}: {self.option}columns is for files without a header; {kind} names its columns")
        if kind == PARQUET and self.encoding is not None:
            raise UserError(f"{path}: {self.option}encoding is for files of text, but this file is read as {kind}")
        encoding = _checked_encoding(self.encoding, self.option)
        return replace(self, kind=kind, separator=separator, encoding=encoding, names=names)

    def inherit(self, other: "FileFormat") -> "FileFormat":
        """This format, with what it does not say taken from the `other`."""
        return replace(
            self,
            kind=self.kind or other.kind,
            separator=self.separator or other.separator,
            encoding=self.encoding or other.encoding,
        )

    def _kind(self, path: InputPath) -> str:
        if self.kind is not None:
            return self.kind
        ending = extension(path)
        if ending in ARCHIVES:
            raise UserError(
                f"{path}: is packed as {ending[1:]}; unpack it and give the files in it, as they are or .gz"
            )
        if ending in SPREADSHEETS:
            raise UserError(f"{path}: the file extension {ending!r} is a spreadsheet's; save the table as CSV first")
        kind = FORMAT_OF.get(ending)
        if self.separator is not None and kind in (None, SEQUENCES):
            return CSV
        if kind is None:
            raise UserError(
                f"{path}: the file extension {ending or path.name!r} is unknown; {nearest(ending, list(FORMAT_OF))}; "
                f"or give {self.option}format ({', '.join(FORMATS)}), or {self.option}separator for a table of text, "
                f"and {self.option}columns if it has no header line"
            )
        return kind


BY_EXTENSION = FileFormat()
ITEMS_BY_EXTENSION = FileFormat(option=ITEMS)


def extension(path: InputPath) -> str:
    """The extension of a file's name in lower case, without that of a compression."""
    name = path.name.lower()
    for packing in PACKINGS:
        name = name.removesuffix(packing)
    return Path(name).suffix


def is_news(fields: Sequence[str]) -> bool:
    """Whether a line, taken for a header, is one of MIND's news.tsv, which ends in two lists of entities."""
    return len(fields) == len(NEWS) and fields[-1].startswith("[") and fields[-2].startswith("[")


def is_wide(encoding: str) -> bool:
    """Whether ASCII characters are not the bytes of ASCII in this encoding, such as UTF-16."""
    ascii_bytes = bytes(range(128))
    return ascii_bytes.decode(encoding, "replace") != ascii_bytes.decode("ascii")


def _checked_separator(given: str | None, option: str) -> str | None:
    if given is None:
        return None
    separator = SEPARATORS.get(given.lower(), given)
    if not separator or set(separator) & set('"\r\n'):
        raise UserError(f"{option}separator {given!r}: expected one or more characters, such as ';', '::' or tab")
    return separator


def _checked_encoding(given: str | None, option: str) -> str:
    try:
        "".encode(given or UTF_8)
        return codecs.lookup(given or UTF_8).name
    except LookupError:
        raise UserError(
            f"{option}encoding {given}: is unknown; expected a name such as utf-8, latin-1, cp1252 or utf-16"
        ) from None
