"""Lazy reading of tables in CSV, TSV (plain, .gz, .zst) and Parquet files, with errors that name the file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from ugt_composer.errors import UserError, first_line, nearest

CSV, TSV, PARQUET, SEQUENCES = "csv", "tsv", "parquet", "sequences"
FORMATS = (CSV, TSV, PARQUET, SEQUENCES)
FORMAT_OF = {".csv": CSV, ".tsv": TSV, ".parquet": PARQUET, ".pq": PARQUET, ".txt": SEQUENCES}
PACKINGS = (".gz", ".zst")
ROW = "row of the file"  # the column that numbers lines (CSV, TSV) or rows (Parquet) from 1; no file has such a name


def format_of(path: Path, given: str | None) -> str:
    """The format `given`, else that of the file name's extension."""
    if given is not None:
        return given
    name = path.name.lower()
    for packing in PACKINGS:
        name = name.removesuffix(packing)
    ending = Path(name).suffix
    if ending not in FORMAT_OF:
        raise UserError(
            f"{path}: the file extension {ending or path.name!r} is unknown; {nearest(ending, list(FORMAT_OF))}; "
            f"or give the format with --format ({', '.join(FORMATS)})"
        )
    return FORMAT_OF[ending]


def scan_table(path: Path, file_format: str, names: Sequence[str] | None) -> pl.LazyFrame:
    """A lazy table with the extra column ROW. Columns of CSV and TSV are read as text, so that ids stay unchanged.

    Args:
        names: column names of a CSV or TSV file without a header line.
    """
    if not path.is_file():
        raise UserError(f"{path}: found no such file, expected a table ({', '.join(FORMAT_OF)}; text also compressed)")
    with named_errors(path):
        if file_format == PARQUET:
            if names is not None:
                raise UserError(f"{path}: --columns is for files without a header; a Parquet file names its columns")
            return pl.scan_parquet(path, row_index_name=ROW, glob=False).with_columns(pl.col(ROW) + 1)
        table = pl.scan_csv(
            path,
            separator="\t" if file_format == TSV else ",",
            # Quotes in tab-separated files are inch marks and the like.
            quote_char=None if file_format == TSV else '"',
            has_header=names is None,
            new_columns=names,
            infer_schema=False,
            row_index_name=ROW,
            row_index_offset=1 if names is not None else 2,
            glob=False,
        )
        return table.filter(~pl.all_horizontal(pl.col(columns_of(table)).is_null()))  # blank lines


def columns_of(table: pl.LazyFrame) -> list[str]:
    return [name for name in table.collect_schema().names() if name != ROW]


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turns polars and OS errors into a UserError with the file's name and the first line of the message."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}; expected a complete table in UTF-8") from None
