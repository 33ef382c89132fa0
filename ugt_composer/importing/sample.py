"""The first rows of a table, from which the kind of a column is found."""

from itertools import islice

import polars as pl

from ugt_composer.importing.csv_records import records
from ugt_composer.importing.file_format import JSONL, PARQUET
from ugt_composer.importing.json_records import json_objects, json_text
from ugt_composer.importing.scans import scan_parquet
from ugt_composer.importing.table import Table, named_errors

ROWS = 1000


def first_values(table: Table, columns: list[str]) -> dict[str, set[str]]:
    """Column → its values as text in the first rows of the first file, without those of lists and objects."""
    part = table.parts[0]
    if part.kind == PARQUET:
        with named_errors(part.path):
            rows = scan_parquet(part.path).select(columns)
            plain = [name for name, dtype in rows.collect_schema().items() if not dtype.is_nested()]
            texts = rows.select(pl.col(plain).cast(pl.String)).head(ROWS).collect()
        return {name: set(texts[name].drop_nulls()) for name in plain}
    if part.kind == JSONL:
        objects = [item.fields for item in islice(json_objects(part), ROWS)]
        values = {name: [fields.get(name) for fields in objects] for name in columns}
        return {
            name: set(filter(None, map(json_text, values[name])))
            for name in columns
            if not any(isinstance(value, list | dict) for value in values[name])
        }
    header = 1 if part.written.names is None else 0
    sample = [record.fields for record in islice(records(part, len(table.names)), header, ROWS) if not record.problem]
    places = {name: table.names.index(name) for name in columns}
    return {name: {fields[place] for fields in sample} for name, place in places.items()}
