"""Reads interactions with Spark: blocks of files become tasks, users are brought together by Spark's shuffle.

Each block is parsed by the same code as on one machine. The driver holds the different ids of users and items, with how
many rows they have, and no rows.
"""

import io
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ugt_composer.errors import RunError, UserError
from ugt_composer.importing.bad_rows import EXPECTED, IDS, bad_rows, bad_values
from ugt_composer.importing.csv_records import count_regular_lines, may_be_regular
from ugt_composer.importing.damage import Damage
from ugt_composer.importing.file_format import CSV, JSONL, MIND, PARQUET, SEQUENCES, TSV, is_wide
from ugt_composer.importing.ids import one_form_of_distinct
from ugt_composer.importing.inputs import Part, Span, each, find_parts
from ugt_composer.importing.interactions import (
    Interactions,
    as_arrays,
    check_any_rows,
    find_columns,
    value_expressions,
)
from ugt_composer.importing.log import Log
from ugt_composer.importing.partitions import Partitions
from ugt_composer.importing.scans import scan_parquet
from ugt_composer.importing.settings import SourceSettings
from ugt_composer.importing.table import ONLY_BLANK, PART, ROW, Table, common_types, keys_of, named_errors, open_table
from ugt_composer.importing.text_lines import byte_blocks
from ugt_composer.importing.time_column import SAMPLE, TimeColumn, checked_times, time_form
from ugt_composer.importing.time_values import TIME, TimesInMemory, TimeValues, sums_of
from ugt_composer.importing.timestamps import TimeForm
from ugt_composer.jsonl.sources import COMPRESSED_ENDINGS
from ugt_composer.spark.partitions import SparkPartitions
from ugt_composer.storage.remote_files import RemoteFile

if TYPE_CHECKING:
    from pyspark import SparkContext

RawBlock = tuple[pl.DataFrame, Damage]  # rows with the columns that are read, PART and ROW; and those not readable

# What a task reads of a file, and the interactions of a partition, more if a user has more. Less, but no less than
# LEAST, if there would be fewer tasks than cores.
SPAN_BYTES = 1 << 26  # of text
SPAN_ROWS = 1 << 20  # of Parquet
PARTITION_ROWS = 1 << 20
LEAST = 1 / 16


@dataclass(frozen=True)
class Block:
    """Rows of a table that one task reads.

    Attributes:
        part: number of the file.
        source: the file, or a range of it.
    """

    part: int
    source: Part


@dataclass(frozen=True)
class Surveyed:
    """What a task has found out about a block of text: its lines; None if it is not regular. Of JSON Lines its keys."""

    lines: int | None
    keys: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Reading:
    """How the rows of a table become values.

    Attributes:
        table: the table; of text, its columns are text.
        empty: no rows, with the columns that are read, PART and ROW.
        column_of: role → column.
        values: role → expression of its values, null where one is invalid.
    """

    table: Table
    empty: pl.LazyFrame
    column_of: dict[str, str]
    values: dict[str, pl.Expr]


def read_with_spark(context: "SparkContext", source: SourceSettings) -> Log:
    """The interactions, in partitions of users. Raises UserError like `read_interactions`."""
    parts = find_parts(source.interactions, source.written)
    path = parts[0].path
    if parts[0].kind in (SEQUENCES, MIND):
        raise UserError(f"{path}: --engine spark reads CSV, TSV, JSON Lines and Parquet; give --engine local")
    blocks, table = _blocks(context, parts)
    column_of = find_columns(table, source.columns, source.file_order)
    schema = _schema(table, list(column_of.values()))
    empty = pl.LazyFrame(schema={PART: pl.Int32, ROW: pl.UInt32, **schema})
    values, form = value_expressions(path, empty, column_of), None
    reading = Reading(table, empty, column_of, values)
    rows = _RawRows(context, blocks, reading)
    warnings: tuple[str, ...] = ()
    times = None
    if "timestamp" in column_of:
        times = _SparkTimes(table, empty, column_of["timestamp"], rows)
        form = time_form(times, source.time_format)
        values["timestamp"] = form.parse(times.value)
    rows.damage.refuse_most(source.skip_bad, rows.count)
    distinct = rows.distinct({role: values[role] for role in IDS})
    for role in IDS:
        place = f"{path}: column {column_of[role]!r}"
        ids, id_form, remarks = one_form_of_distinct(distinct[role]["id"], place, source.missing_as_ids)
        distinct[role] = distinct[role].with_columns(ids.alias("id"))
        values[role] = id_form.parse(values[role])
        warnings += remarks
    if times is not None and form is not None:
        _, form, unusual = checked_times(times, form, times.parsed(form), source.time_format is None, source.skip_bad)
        values["timestamp"] = form.parse(times.value)
        warnings += unusual
    roles = [role for role in EXPECTED if role in values]
    invalid, count_bad = rows.count_invalid(values, roles)
    bad = bad_rows(
        table,
        count_bad,
        invalid,
        column_of,
        form,
        lambda role: schema[column_of[role]].is_float(),
        lambda role: rows.bad_values(column_of[role], values[role], role),
    )
    damage = rows.damage.with_others(bad, parts)
    if not source.skip_bad:
        damage.refuse(source.skip_bad, rows.count - count_bad)
    check_any_rows(path, rows.count - count_bad)
    items, partitions = _partitions(rows, reading, roles, distinct, form)
    if count_bad:
        items, partitions = _only_used(items, partitions)
    return Log(
        partitions,
        items,
        form,
        column_of,
        tuple(name for name in table.names if name not in column_of.values()),
        damage.count,
        damage.first,
        warnings,
    )


def _blocks(context: "SparkContext", parts: tuple[Part, ...]) -> tuple[list[Block], Table]:
    """The blocks of all files in order, and their table."""
    cores = context.defaultParallelism
    if parts[0].kind == PARQUET:
        parquet = open_table(parts)
        counts = each(parts, _count_rows)
        check_any_rows(parts[0].path, sum(counts))
        return _ranges(parts, counts, _step(SPAN_ROWS, sum(counts), cores)), parquet
    sizes = [part.size for part in parts]
    spans = _ranges(parts, sizes, _step(SPAN_BYTES, sum(sizes), cores))
    table: Table | None = open_table(parts) if parts[0].kind != JSONL else None
    width = 0 if table is None else len(table.names)
    found = context.parallelize(spans, len(spans)).map(partial(_survey, os.getcwd(), width)).collect()
    if table is None:
        table = _json_table(parts, spans, found)
    blocks: list[Block] = []
    for number, part in enumerate(parts):
        mine = [(span, one) for span, one in zip(spans, found, strict=True) if span.part == number]
        if any(one.lines is None for _, one in mine):
            blocks.append(Block(number, part))
            continue
        lines = 0
        for block, one in mine:
            span = block.source.span
            source = block.source if span is None else replace(part, span=replace(span, lines_before=lines))
            blocks.append(Block(number, source))
            lines += one.lines or 0
    return blocks, table


def _step(most: int, total: int, cores: int) -> int:
    """How much of a total a task or partition has."""
    return min(most, max(-(-total // cores), int(most * LEAST)))


def _count_rows(part: Part) -> int:
    with named_errors(part.path):
        return scan_parquet(part.path).select(pl.len()).collect().item()


def _ranges(parts: Sequence[Part], sizes: Sequence[int], step: int) -> list[Block]:
    """Ranges of the files, and whole those that cannot be read in ranges."""
    blocks = []
    for number, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        whole = part.path.name.endswith(COMPRESSED_ENDINGS) or (part.kind != PARQUET and is_wide(part.encoding))
        spans = [Span(start, min(start + step, size)) for start in range(0, size, step)]
        if whole or (len(spans) < 2 and part.kind != PARQUET):
            blocks.append(Block(number, part))
        else:
            blocks += [Block(number, replace(part, span=span)) for span in spans]
    return blocks


@contextmanager
def _readable(folder: str, part: Part) -> Iterator[None]:
    """Runs the block in the driver's working directory if the file's path is relative. Raises RunError if the file is
    not there."""
    path = part.path
    if isinstance(path, RemoteFile):
        yield
        return
    if not os.path.exists(os.path.join(folder, path)):
        raise RunError(
            f"{path} is not there on {socket.gethostname()}; Spark's machines must share the folders of the input "
            "and of --out, under the same paths"
        )
    with nullcontext() if path.is_absolute() else chdir(folder):
        yield


def _survey(folder: str, width: int, block: Block) -> Surveyed:
    with _readable(folder, block.source):
        return _surveyed(block.source, width)


def _surveyed(part: Part, width: int) -> Surveyed:
    if part.kind == JSONL:
        keys, problem = keys_of(part)
        lines = sum(data.count(b"\n") for data in byte_blocks(part)) if part.span is not None else 0
        return Surveyed(lines, tuple(keys), problem)
    if part.span is None:
        return Surveyed(0)  # its reader looks itself
    regular = part.kind in (CSV, TSV) and may_be_regular(part, width)
    return Surveyed(count_regular_lines(part, width) if regular else None)


def _json_table(parts: tuple[Part, ...], spans: Sequence[Block], found: Sequence[Surveyed]) -> Table:
    for number, part in enumerate(parts):
        mine = [one for span, one in zip(spans, found, strict=True) if span.part == number]
        if not any(one.keys for one in mine):
            problem = next((one.problem for one in mine if one.problem), None)
            raise UserError(f"{part.path}{problem or ONLY_BLANK}")
    return Table(parts, list(dict.fromkeys(key for one in found for key in one.keys)))


def _schema(table: Table, columns: list[str]) -> dict[str, pl.DataType]:
    if table.parts[0].kind != PARQUET:
        return dict.fromkeys(columns, pl.String())
    with named_errors(table.path):
        schemas = each(table.parts, lambda part: scan_parquet(part.path).select(columns).collect_schema())
    return {**schemas[0], **common_types(table.parts, schemas)}


class _RawRows:
    """The rows of all blocks, with the columns that are read, PART and ROW. They stay on the executors' disks."""

    def __init__(self, context: "SparkContext", blocks: Sequence[Block], reading: Reading):
        shipped = context.broadcast(reading)
        numbered = context.parallelize(list(enumerate(blocks)), len(blocks))
        folder = os.getcwd()  # tasks run in another one
        read = numbered.map(lambda block: (block[0], _read(folder, block[1], shipped.value)))
        self.blocks: SparkPartitions[RawBlock] = SparkPartitions(read, len(blocks)).kept()
        self.cores = context.defaultParallelism
        self.count, self.damage = 0, Damage()
        for rows, damage in self.blocks.map(_facts):
            self.count += rows
            self.damage.merge(damage)

    def distinct(self, values: dict[str, pl.Expr]) -> dict[str, pl.DataFrame]:
        """Of each role the different values, not null, as `id`, in the order of their first rows, and how many `rows`
        have each."""
        found = self.blocks.map(_distinct, values)
        counts = {role: pl.concat([of_block[role] for of_block in found]) for role in values}
        return {role: ids.group_by("id", maintain_order=True).agg(pl.col("rows").sum()) for role, ids in counts.items()}

    def sums(self, conditions: dict[str, pl.Expr]) -> dict[str, int]:
        return _added(self.blocks.map(_sums, conditions))

    def count_invalid(self, values: dict[str, pl.Expr], roles: Sequence[str]) -> tuple[dict[str, int], int]:
        """How many values of each role are invalid, and how many rows have an invalid value."""
        conditions = {role: values[role].is_null() for role in roles}
        sums = self.sums({**conditions, "any": pl.any_horizontal(*conditions.values())})
        return {role: sums[role] for role in roles}, sums["any"]

    def bad_values(self, column: str, parsed: pl.Expr, role: str) -> pl.DataFrame:
        return pl.concat(self.blocks.map(_bad_values, column, parsed, role))

    def head(self, condition: pl.Expr, value: pl.Expr, count: int) -> pl.DataFrame:
        return pl.concat(self.blocks.map(_head, condition, value, count)).head(count)


def _read(folder: str, block: Block, reading: Reading) -> RawBlock:
    table = Table((block.source,), reading.table.names)
    columns = list(reading.column_of.values())
    with _readable(folder, block.source), named_errors(block.source.path):
        frame = table.read(columns, one_line=columns).collect()
    # Numbers have different types in Parquet files, and as numbers of lines.
    frame = frame.with_columns(pl.lit(block.part).alias(PART))
    schema = reading.empty.collect_schema()
    return frame.select(pl.col(name).cast(dtype) for name, dtype in schema.items()), table.damage


def _facts(block: RawBlock) -> tuple[int, Damage]:
    return len(block[0]), block[1]


def _distinct(block: RawBlock, values: dict[str, pl.Expr]) -> dict[str, pl.DataFrame]:
    ids = {role: block[0].select(value.alias("id")).drop_nulls() for role, value in values.items()}
    rows = pl.len().cast(pl.Int64).alias("rows")
    return {role: some.group_by("id", maintain_order=True).agg(rows) for role, some in ids.items()}


def _sums(block: RawBlock, conditions: dict[str, pl.Expr]) -> dict[str, int]:
    return sums_of(block[0].lazy(), conditions)


def _added(sums: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: sum(one[name] for one in sums) for name in sums[0]}


def _bad_values(block: RawBlock, column: str, parsed: pl.Expr, role: str) -> pl.DataFrame:
    return bad_values(block[0].lazy(), column, parsed, role)


def _head(block: RawBlock, condition: pl.Expr, value: pl.Expr, count: int) -> pl.DataFrame:
    return block[0].filter(condition).select(PART, ROW, value=value).head(count)


@dataclass(frozen=True)
class _SparkTimes(TimeColumn):
    """A column of times in all blocks; `rows` has no rows, but their types."""

    raw: _RawRows

    def sums(self, **conditions: pl.Expr) -> dict[str, int]:
        return self.raw.sums(conditions)

    def parsed(self, form: TimeForm) -> TimeValues:
        value = form.parse(self.value)
        return _SparkTimeValues(self.raw, (value,), self.rows.select(value).collect_schema().dtypes()[0])

    def head(self, condition: pl.Expr, count: int = SAMPLE) -> pl.DataFrame:
        return self.raw.head(condition, self.value.cast(pl.String), count)


@dataclass(frozen=True)
class _SparkTimeValues:
    """Times of all blocks.

    Attributes:
        steps: the first is an expression of the columns of blocks, the others of the values before.
    """

    raw: _RawRows
    steps: tuple[pl.Expr, ...]
    dtype: pl.DataType

    def derived(self, expression: pl.Expr) -> "_SparkTimeValues":
        schema = pl.LazyFrame(schema={TIME: self.dtype}).select(expression).collect_schema()
        return _SparkTimeValues(self.raw, (*self.steps, expression), schema.dtypes()[0])

    def sums(self, **expressions: pl.Expr) -> dict[str, int]:
        return _added(self.raw.blocks.map(_sums_of_times, self.steps, expressions))

    def ends(self) -> tuple[Any, Any] | None:
        known = [pair for pair in self.raw.blocks.map(_ends_of_times, self.steps) if pair is not None]
        return (min(first for first, _ in known), max(last for _, last in known)) if known else None


def _times(block: RawBlock, steps: Sequence[pl.Expr]) -> TimesInMemory:
    frame = block[0]
    for step in steps:
        frame = frame.select(step.alias(TIME))
    return TimesInMemory(frame[TIME])


def _sums_of_times(block: RawBlock, steps: Sequence[pl.Expr], expressions: dict[str, pl.Expr]) -> dict[str, int]:
    return _times(block, steps).sums(**expressions)


def _ends_of_times(block: RawBlock, steps: Sequence[pl.Expr]) -> tuple[Any, Any] | None:
    return _times(block, steps).ends()


@dataclass(frozen=True)
class _Shuffle:
    """How rows become interactions of partitions.

    Attributes:
        values: role → expression of its values; rows are left out where one of `needed` is null.
        items: text (I,), in the order of their numbers.
        first_users: the first user of each partition but the first, in the order of users.
        empty: no rows, with their types.
    """

    values: dict[str, pl.Expr]
    needed: list[str]
    items: pl.Series
    first_users: pl.Series
    empty: pl.DataFrame
    form: TimeForm | None
    column_of: dict[str, str]


def _partitions(
    rows: _RawRows, reading: Reading, needed: list[str], distinct: dict[str, pl.DataFrame], form: TimeForm | None
) -> tuple[pl.Series, Partitions[Interactions]]:
    """The items, in the order of their numbers, and the interactions by user."""
    users = _in_order(distinct["user"])
    items = _in_order(distinct["item"])["id"]
    before = users["rows"].cum_sum() - users["rows"]
    count = -(-rows.count // _step(PARTITION_ROWS, rows.count, rows.cores))
    number = before * count // rows.count
    first_users = users.filter((number != number.shift(1)).fill_null(False))["id"]
    typed = reading.empty.select(**reading.values).with_columns(pl.lit(0, pl.Int32).alias("item")).clear().collect()
    shuffle = _Shuffle(reading.values, needed, items, first_users, typed, form, reading.column_of)
    partitions: SparkPartitions[Interactions] = rows.blocks.shuffled(
        partial(_rows_of_partitions, shuffle), partial(_interactions, shuffle), len(first_users) + 1
    ).kept()
    return items, partitions


def _only_used(items: pl.Series, partitions: Partitions[Interactions]) -> tuple[pl.Series, Partitions[Interactions]]:
    """Without the items of which all rows are invalid."""
    used = partitions.sum(_item_rows, len(items)) > 0
    numbers = (np.cumsum(used) - 1).astype(np.int32)
    return items.filter(pl.Series(used)), partitions.transform(_with_numbers, numbers)


def _item_rows(log: Interactions, items: int) -> np.ndarray:
    return np.bincount(log.item, minlength=items)


def _with_numbers(log: Interactions, numbers: np.ndarray) -> Interactions:
    return replace(log, item=numbers[log.item])


def _in_order(distinct: pl.DataFrame) -> pl.DataFrame:
    """The ids in the order of their numbers, shorter ones first, with how many rows they have."""
    merged = distinct.drop_nulls("id").group_by("id").agg(pl.col("rows").sum())
    return merged.sort(pl.col("id").str.len_bytes(), "id")


def _rows_of_partitions(shuffle: _Shuffle, number: int, block: RawBlock) -> Iterator[tuple[int, bytes]]:
    """For each partition that has rows of a block, its number and these rows."""
    frame = block[0].select(**shuffle.values).drop_nulls(shuffle.needed)
    item = frame["item"].cast(pl.Enum(shuffle.items)).to_physical()
    frame = frame.with_columns(item.cast(pl.Int32).alias("item"), _partition_of(frame["user"], shuffle.first_users))
    for (partition,), some in frame.partition_by("partition", maintain_order=True, as_dict=True).items():
        file = io.BytesIO()
        some.drop("partition").write_ipc(file, compression="lz4")
        yield int(partition), file.getvalue()


def _partition_of(user: pl.Series, first_users: pl.Series) -> pl.Series:
    """int32 (N,) the partition of each user, as `partition`: how many of `first_users` are not after the user."""
    ids = pl.concat([first_users.alias("id"), user.unique().alias("id")])
    is_user = pl.Series([False] * len(first_users) + [True] * (len(ids) - len(first_users)))
    table = pl.DataFrame({"id": ids, "is_user": is_user}).sort(pl.col("id").str.len_bytes(), "id", "is_user")
    table = table.with_columns((~pl.col("is_user")).cum_sum().cast(pl.Int32).alias("partition")).filter("is_user")
    frame = user.alias("id").to_frame()
    return frame.join(table.select("id", "partition"), on="id", how="left", maintain_order="left")["partition"]


def _interactions(shuffle: _Shuffle, number: int, blocks: list[bytes]) -> Interactions:
    """The interactions of a partition, from its rows of each block in order."""
    frames = [pl.read_ipc(io.BytesIO(data)) for data in blocks]
    return as_arrays(pl.concat([shuffle.empty, *frames]), shuffle.form, shuffle.column_of)
