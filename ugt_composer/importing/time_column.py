"""Reads the times of a table's column: finds their form, refuses what is ambiguous, and describes what is unusual."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import polars as pl

from ugt_composer.errors import UserError
from ugt_composer.importing.date_formats import (
    DAY_FIRST,
    EXPECTED,
    UNAMBIGUOUS,
    digits_format,
    form_of_text,
    form_of_type,
    given_form,
    month_first,
)
from ugt_composer.importing.table import PART, ROW, Table, named_errors
from ugt_composer.importing.time_units import (
    FIRST,
    MOST_MINOR,
    NAMES,
    NUMBER,
    PER_SECOND,
    USUAL_FIRST,
    USUAL_LAST,
    YEAR_9999,
    Units,
    in_unit,
    is_missing,
    units_of,
)
from ugt_composer.importing.timestamps import NUMBERS, TEXT, TimeForm

ROUNDED = r"^\s*\d(\.\d{1,7})?[eE]\+?\d+"  # 1.5263E+12, as spreadsheets write large numbers
CLOCK = r"\s*\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?(\s*[AaPp][Mm])?\s*$"
SAMPLE = 1000  # values from which the form of a column is found
DAY = 86_400
CLEAR = 0.1  # the fraction of dates that has to rule out one order of day and month


@dataclass(frozen=True)
class TimeColumn:
    """A column of a table.

    Attributes:
        rows: the table's rows, with PART and ROW.
    """

    table: Table
    rows: pl.LazyFrame
    name: str

    @property
    def dtype(self) -> pl.DataType:
        dtype = self.rows.collect_schema()[self.name]
        return pl.String() if isinstance(dtype, pl.Categorical | pl.Enum) else dtype

    @property
    def value(self) -> pl.Expr:
        return pl.col(self.name).cast(self.dtype)

    @property
    def place(self) -> str:
        return f"{self.table.path}: column {self.name!r}"

    def collect(self, **columns: pl.Expr) -> pl.DataFrame:
        with named_errors(self.table.path):
            return self.rows.select(**columns).collect()

    def head(self, condition: pl.Expr, count: int = SAMPLE) -> pl.DataFrame:
        """Part, row number and value, as text, of the first rows that meet a condition."""
        with named_errors(self.table.path):
            rows = self.rows.filter(condition).select(PART, ROW, value=self.value.cast(pl.String))
            return rows.head(count).collect()

    def first(self, condition: pl.Expr) -> str:
        part, row, value = self.head(condition, 1).row(0)
        file = f"{self.table.parts[part].path}, " if part else ""
        return f"first in {file}{self.table.parts[part].unit} {row}: {value}"


def time_form(column: TimeColumn, formats: Sequence[str] | None) -> TimeForm:
    """The form that --time-format gives, or else the one that fits most of the first values.

    Raises:
        UserError: no form fits, or day and month cannot be told apart.
    """
    if formats is not None:
        return given_form(formats, column.dtype, column.place)
    form = form_of_type(column.dtype)
    if form is not None:
        return form
    sample = column.head(column.value.is_not_null())["value"]
    form = form_of_text(sample) if column.dtype == pl.String else None
    if not len(sample):
        return TimeForm(is_text=True)
    if form is None:
        if re.match(CLOCK, sample[0]):
            raise UserError(
                f"{column.place}: found {sample[0]!r}, a time without a date; name another column with "
                f"--timestamp-column (the columns are {', '.join(column.table.names)}), or write date and time in one"
            )
        raise UserError(f"{column.place}: found {sample[0]!r}, expected {EXPECTED}")
    return _day_or_month_first(column, form) if form.formats and form.formats[0] in DAY_FIRST else form


def checked_times(
    column: TimeColumn, form: TimeForm, numbers: pl.Series, detected: bool, skip: bool
) -> tuple[pl.Series, TimeForm, tuple[str, ...]]:
    """Finds the unit of times and further formats, and checks them.

    Args:
        numbers: (n,) all values of the column, parsed with `form`; null where a value is invalid.
        detected: the form was not given by --time-format.
        skip: times in another unit than most may be left out, as null, if they are few.

    Returns:
        int64 or float64 (n,) times, null where a value is invalid; their form; warnings.

    Raises:
        UserError: the units are mixed.
    """
    warnings: list[str] = []
    if detected and form.is_text and numbers.null_count():
        form, numbers, warnings = _with_other_formats(column, form, numbers)
    if detected and form.kind == NUMBERS:
        form = _with_unit(column, form, numbers, skip)
        numbers = form.parse_numbers(numbers)
    return numbers, form, (*warnings, *_remarks(column, form, numbers))


def _day_or_month_first(column: TimeColumn, day: TimeForm) -> TimeForm:
    month = replace(day, formats=(month_first(day.formats[0]),))
    value = column.value
    day_valid, month_valid = (form.parse(value).is_not_null() for form in (day, month))
    counts = column.collect(
        day=(day_valid & ~month_valid).sum(),
        month=(month_valid & ~day_valid).sum(),
        both=(day_valid & month_valid).sum(),
    )
    by_day, by_month, both = counts.row(0)
    options = (
        f"--time-format '{day.formats[0].replace('%.f', '')}' or --time-format '{month.formats[0].replace('%.f', '')}'"
    )
    if by_day and by_month:
        raise UserError(
            f"{column.place}: {by_day:,} dates have the day first ({column.first(day_valid & ~month_valid)}) and "
            f"{by_month:,} the month ({column.first(month_valid & ~day_valid)}), {both:,} can be either; write all "
            f"in one format, and give it with {options}"
        )
    if max(by_day, by_month) < CLEAR * (by_day + by_month + both):
        raise UserError(
            f"{column.place}: {both:,} of {by_day + by_month + both:,} dates can be read with the day first or with "
            f"the month first ({column.first(day_valid & month_valid)}); say which with {options}"
        )
    return day if by_day else month


def _with_other_formats(
    column: TimeColumn, form: TimeForm, numbers: pl.Series
) -> tuple[TimeForm, pl.Series, list[str]]:
    """Adds the formats of values that the form does not fit, if they are unambiguous."""
    value = column.value
    before = -1
    while numbers.null_count() and numbers.null_count() != before:
        before = numbers.null_count()
        other = form_of_text(column.head(form.parse(value).is_null() & value.is_not_null())["value"], UNAMBIGUOUS)
        if other is None or (other.kind != form.kind):
            break
        form = replace(form, formats=(*form.formats, *other.formats)) if form.kind == TEXT else other
        numbers = column.collect(time=form.parse(value))["time"]
    if len(form.formats) < 2:
        return form, numbers, []
    single = [replace(form, formats=(text,)).parse(value).is_not_null() for text in form.formats]
    counts = column.collect(**{text: valid.sum() for text, valid in zip(form.formats, single, strict=True)}).row(0)
    first = column.first(single[1] & ~single[0])
    listed = ", ".join(f"{text} ({count:,})" for text, count in zip(form.formats, counts, strict=True))
    return form, numbers, [f"{column.place}: dates in {len(counts)} formats were read: {listed}; {first}"]


def _with_unit(column: TimeColumn, form: TimeForm, numbers: pl.Series, skip: bool) -> TimeForm:
    """The form with the unit that the size of the numbers shows. Raises UserError if units are mixed."""
    units = units_of(numbers)
    if units.mixed:
        return _mixed(column, form, units, skip)
    if units.unit is None or units.unit == "ms":  # 12 and 14 digits have the size of milliseconds
        digits = digits_format(numbers.drop_nulls())
        if digits is not None:
            return replace(form, kind=TEXT, unit="us", formats=(digits,), dtype=pl.Int64)
    if units.unit == "ms":
        _refuse_digits(column, form, numbers)
    return form if units.unit is None else replace(form, unit=units.unit)


def _refuse_digits(column: TimeColumn, form: TimeForm, numbers: pl.Series) -> None:
    """Raises UserError if the milliseconds of unusual years are dates written as digits, such as 20180630210500."""
    per = PER_SECOND["ms"]
    others = numbers.filter(~numbers.is_between(USUAL_FIRST * per, USUAL_LAST * per) & (numbers > FIRST * per))
    digits = digits_format(others.cast(pl.Int64, strict=False).drop_nulls()) if len(others) else None
    if digits is not None:
        number = form.parse(column.value)
        is_other = ~number.is_between(USUAL_FIRST * per, USUAL_LAST * per) & (number > FIRST * per)
        raise UserError(
            f"{column.place}: found {len(numbers.drop_nulls()) - len(others):,} milliseconds since 1970 and "
            f"{len(others):,} dates like {digits} ({column.first(is_other)}); write all in one form"
        )


def _mixed(column: TimeColumn, form: TimeForm, units: Units, skip: bool) -> TimeForm:
    (most, count), *others = units.counts.items()
    minor = sum(number for _, number in others)
    if skip and most != NUMBER and minor <= MOST_MINOR * (count + minor):
        return replace(form, unit=most)
    number = form.parse(column.value)
    found = [f"{count:,} {NAMES[most]}"]
    for unit, other in others:
        is_other = (number < FIRST) & ~is_missing(number) if unit == NUMBER else in_unit(number, unit)
        found.append(f"{other:,} {NAMES[unit]} ({column.first(is_other)})")
    # Plain numbers have no unit that their size shows.
    convert = "" if NUMBER in units.counts else "convert each by its size with --time-format unix, or "
    raise UserError(
        f"{column.place}: found times in different units since 1970: {' and '.join(found)}; {convert}take only those "
        f"in {NAMES[units.unit or most]} with --time-format {units.unit} --on-error skip; if these are no times "
        "since 1970, but their order is right, give --time-format number"
    )


def _remarks(column: TimeColumn, form: TimeForm, numbers: pl.Series) -> list[str]:
    """What is unusual about the times: probably missing ones, later ones than today, rounded ones."""
    count = len(numbers) - numbers.null_count()
    remarks = []
    if form.unit is not None:
        for is_unusual, text in _unusual(form, PER_SECOND[form.unit]):
            found = int(numbers.to_frame("time").select(is_unusual(pl.col("time")).sum()).item())
            # Where most dates are unusual, they are what the table is about.
            if found and (found * 2 < count or form.kind == NUMBERS):
                first = column.first(is_unusual(form.parse(column.value)))
                remarks.append(f"{found:,} of {count:,} times {'is' if found == 1 else 'are'} {text} ({first})")
    if form.is_text and form.dtype == pl.Float64 and form.kind == NUMBERS:
        is_rounded = column.value.str.contains(ROUNDED)
        if found := int(column.collect(found=is_rounded.sum()).item()):
            remarks.append(
                f"{found:,} of {count:,} times were rounded when they were written ({column.first(is_rounded)}), so "
                "their order is not known; write them in full"
            )
    if column.dtype == pl.Float32 and form.unit is not None:
        remarks.append("its type is float32, which holds times since 1970 only to about two minutes; write float64")
    return [f"{column.place}: {remark}" for remark in remarks]


def _unusual(form: TimeForm, per: float) -> list[tuple[Callable[[pl.Expr], pl.Expr], str]]:
    """Conditions of unusual times, and what to say about them; `per` is the number of units in a second."""
    now = datetime.now(UTC)
    tomorrow = (now.timestamp() + DAY) * per
    smallest = FIRST * per if form.kind == NUMBERS else DAY * per
    latest = YEAR_9999[0] * per
    return [
        (lambda time: time < smallest, "in 1970 or earlier, as if they were missing; they sort first"),
        (lambda time: time >= latest, "in the year 9999 or later, as if they were missing; they sort last"),
        (lambda time: (time > tomorrow) & (time < latest), f"later than today ({now:%Y-%m-%d})"),
    ]
