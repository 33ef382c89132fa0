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
from ugt_composer.importing.time_values import TIME, TimesInMemory, TimeValues, count_invalid, count_valid, sums_of
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

    def sums(self, **conditions: pl.Expr) -> dict[str, int]:
        """How many rows meet each condition."""
        with named_errors(self.table.path):
            return sums_of(self.rows, conditions)

    def parsed(self, form: TimeForm) -> TimeValues:
        """All values as a form reads them."""
        with named_errors(self.table.path):
            return TimesInMemory(self.rows.select(form.parse(self.value)).collect().to_series())

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
    column: TimeColumn, form: TimeForm, times: TimeValues, detected: bool, skip: bool
) -> tuple[TimeValues, TimeForm, tuple[str, ...]]:
    """Finds the unit of times and further formats, and checks them.

    Args:
        times: all values of the column, parsed with `form`.
        detected: the form was not given by --time-format.
        skip: times in another unit than most may be left out, as null, if they are few.

    Returns:
        The times, int64 or float64; their form; warnings.

    Raises:
        UserError: the units are mixed.
    """
    warnings: list[str] = []
    if detected and form.is_text and count_invalid(times):
        form, times, warnings = _with_other_formats(column, form, times)
    if detected and form.kind == NUMBERS:
        form = _with_unit(column, form, times, skip)
        times = times.derived(replace(form, is_text=False).parse(pl.col(TIME)))
    return times, form, (*warnings, *_remarks(column, form, times))


def _day_or_month_first(column: TimeColumn, day: TimeForm) -> TimeForm:
    month = replace(day, formats=(month_first(day.formats[0]),))
    value = column.value
    day_valid, month_valid = (form.parse(value).is_not_null() for form in (day, month))
    counts = column.sums(day=day_valid & ~month_valid, month=month_valid & ~day_valid, both=day_valid & month_valid)
    by_day, by_month, both = counts["day"], counts["month"], counts["both"]
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
    column: TimeColumn, form: TimeForm, times: TimeValues
) -> tuple[TimeForm, TimeValues, list[str]]:
    """Adds the formats of values that the form does not fit, if they are unambiguous."""
    value = column.value
    before, invalid = -1, count_invalid(times)
    while invalid and invalid != before:
        before = invalid
        other = form_of_text(column.head(form.parse(value).is_null() & value.is_not_null())["value"], UNAMBIGUOUS)
        if other is None or (other.kind != form.kind):
            break
        form = replace(form, formats=(*form.formats, *other.formats)) if form.kind == TEXT else other
        times = column.parsed(form)
        invalid = count_invalid(times)
    if len(form.formats) < 2:
        return form, times, []
    single = [replace(form, formats=(text,)).parse(value).is_not_null() for text in form.formats]
    counts = column.sums(**dict(zip(form.formats, single, strict=True)))
    first = column.first(single[1] & ~single[0])
    listed = ", ".join(f"{text} ({count:,})" for text, count in counts.items())
    return form, times, [f"{column.place}: dates in {len(counts)} formats were read: {listed}; {first}"]


def _with_unit(column: TimeColumn, form: TimeForm, times: TimeValues, skip: bool) -> TimeForm:
    """The form with the unit that the size of the numbers shows. Raises UserError if units are mixed."""
    units = units_of(times)
    if units.mixed:
        return _mixed(column, form, units, skip)
    if units.unit is None or units.unit == "ms":  # 12 and 14 digits have the size of milliseconds
        digits = digits_format(times)
        if digits is not None:
            return replace(form, kind=TEXT, unit="us", formats=(digits,), dtype=pl.Int64)
    if units.unit == "ms":
        _refuse_digits(column, form, times)
    return form if units.unit is None else replace(form, unit=units.unit)


def _refuse_digits(column: TimeColumn, form: TimeForm, times: TimeValues) -> None:
    """Raises UserError if the milliseconds of unusual years are dates written as digits, such as 20180630210500."""

    def is_other(time: pl.Expr) -> pl.Expr:
        per = PER_SECOND["ms"]
        return ~time.is_between(USUAL_FIRST * per, USUAL_LAST * per) & (time > FIRST * per)

    others = times.derived(pl.when(is_other(pl.col(TIME))).then(pl.col(TIME).cast(pl.Int64, strict=False)))
    digits = digits_format(others)
    if digits is not None:
        count = count_valid(others)
        raise UserError(
            f"{column.place}: found {count_valid(times) - count:,} milliseconds since 1970 and {count:,} dates like "
            f"{digits} ({column.first(is_other(form.parse(column.value)))}); write all in one form"
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


def _remarks(column: TimeColumn, form: TimeForm, times: TimeValues) -> list[str]:
    """What is unusual about the times: probably missing ones, later ones than today, rounded ones."""
    unusual = [] if form.unit is None else _unusual(form, PER_SECOND[form.unit])
    sums = times.sums(
        valid=pl.col(TIME).is_not_null(), **{text: is_unusual(pl.col(TIME)) for is_unusual, text in unusual}
    )
    count = sums["valid"]
    remarks = []
    if unusual:
        for is_unusual, text in unusual:
            found = sums[text]
            # Where most dates are unusual, they are what the table is about.
            if found and (found * 2 < count or form.kind == NUMBERS):
                first = column.first(is_unusual(form.parse(column.value)))
                remarks.append(f"{found:,} of {count:,} times {'is' if found == 1 else 'are'} {text} ({first})")
    if form.is_text and form.dtype == pl.Float64 and form.kind == NUMBERS:
        is_rounded = column.value.str.contains(ROUNDED)
        if found := column.sums(found=is_rounded)["found"]:
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
