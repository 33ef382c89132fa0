"""Formats of dates written as text: those that are tried, and those that a user gives with --time-format."""

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from ugt_composer.errors import UserError
from ugt_composer.importing.time_units import NUMBER, PER_SECOND
from ugt_composer.importing.time_values import TIME, TimeValues
from ugt_composer.importing.timestamps import BY_SIZE, DATETIMES, NUMBERS, TEXT, TimeForm

CLOCKS = ("", " %H:%M", " %H:%M:%S%.f", " %I:%M %p", " %I:%M:%S %p")
UNAMBIGUOUS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.fZ",
    "%Y-%m-%dT%H:%M:%S%.f%z",
    "%Y-%m-%d %H:%M:%S%.f%z",
    "%Y-%m-%d %H:%M:%S%.f %z",
    "%Y-%m-%d %H:%M:%S%.f UTC",
    "%Y-%m-%d %H:%M:%S%.f GMT",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d",
    "%Y-%m",
    "%Y/%m/%d %H:%M:%S%.f",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    *(f"%d.%m.%Y{clock}" for clock in CLOCKS),
    *(f"{date}{clock}" for date in ("%B %d, %Y", "%d %B %Y", "%d-%B-%Y") for clock in CLOCKS),
    "%a %b %d %H:%M:%S %z %Y",
    "%a %b %d %H:%M:%S %Y",
    "%a, %d %b %Y %H:%M:%S %z",
    "%a, %d %b %Y %H:%M:%S GMT",
    "%a, %d %b %Y %H:%M:%S UTC",
    "%m %d, %Y",  # the reviewTime of Amazon's reviews
)
DAY_FIRST = tuple(f"%d{mark}%m{mark}%Y{clock}" for mark in "/-" for clock in CLOCKS)
DIGITS = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
EXAMPLE_YEAR = 2018
UNIX = "unix"
WORDS = (*PER_SECOND, UNIX, NUMBER)
MOST_CORRUPTED = 0.5  # largest fraction of invalid values in a sample
EXPECTED = (
    "a number, or a date such as 2018-06-30 21:05:00; give their format with --time-format, such as '%d/%m/%y %H:%M'"
)


def month_first(day_first: str) -> str:
    """A format of DAY_FIRST with day and month exchanged."""
    return f"%m{day_first[2]}%d{day_first[5:]}"


def check_formats(formats: Sequence[str]) -> None:
    """Raises UserError unless --time-format is one of WORDS, or formats of dates."""
    if len(formats) == 1 and formats[0] in WORDS:
        return
    for form in formats:
        if form in WORDS:
            raise UserError(f"--time-format {' '.join(formats)}: expected {form} alone, or only formats of dates")
        if "%" not in form:
            raise UserError(
                f"--time-format {form!r}: expected {', '.join(WORDS[:-1])} or {WORDS[-1]}, or a format of dates such "
                "as '%d/%m/%Y %H:%M'"
            )
        if "%Z" in form:
            raise UserError(
                f"--time-format {form!r}: %Z, the name of a time zone, is not read; write the name itself, such as "
                f"{form.replace('%Z', 'UTC')!r}, or %z for offsets such as +0200"
            )
        try:
            # A format is valid if it reads the year of a date that it wrote.
            written = (
                pl.datetime(EXAMPLE_YEAR, 11, 23, 21, 45, 30)
                .dt.replace_time_zone("UTC")
                .dt.strftime(polars_format(form))
            )
            read = pl.select(written.str.to_datetime(polars_format(form), strict=False).dt.year()).item()
        except pl.exceptions.PolarsError:
            read = None
        if read != EXAMPLE_YEAR:
            raise UserError(
                f"--time-format {form!r}: no valid format of dates; %Y %m %d %H %M %S stand for year, month, day, "
                "hour, minute (needed with %H), second, %y for a year of two digits, %B for a month's name, "
                "%I and %p for am/pm"
            )


def polars_format(form: str) -> str:
    """A strptime format as polars reads it."""
    return form.replace(".%f", "%.f")


def given_form(formats: Sequence[str], dtype: pl.DataType, place: str) -> TimeForm:
    """The form that --time-format gives."""
    is_text = dtype == pl.String
    if dtype.is_temporal():
        raise UserError(f"{place}: holds dates as such; --time-format is for numbers and text, leave it out")
    if "%" in formats[0]:
        return TimeForm(TEXT, unit="us", formats=tuple(map(polars_format, formats)), is_text=is_text)
    number_type = pl.Float64 if is_text or not dtype.is_integer() else pl.Int64
    if formats[0] == UNIX:
        return TimeForm(BY_SIZE, number_type, "us", is_text=is_text)
    return TimeForm(NUMBERS, number_type, formats[0] if formats[0] in PER_SECOND else None, is_text=is_text)


def form_of_type(dtype: pl.DataType) -> TimeForm | None:
    """The form of a column that is not text."""
    if dtype == pl.Date or dtype == pl.Datetime:
        return TimeForm(DATETIMES, unit="us")
    if dtype.is_integer():
        return TimeForm(NUMBERS)
    return TimeForm(NUMBERS, pl.Float64) if dtype.is_numeric() else None


def form_of_text(sample: pl.Series, formats: Sequence[str] = (*UNAMBIGUOUS, *DAY_FIRST)) -> TimeForm | None:
    """The form that fits most values of a sample of text; None if none fits at least half of them.

    For dates that start with day and month it is the form with the day first, whichever comes first.
    """
    dates = [TimeForm(TEXT, unit="us", formats=(form,), is_text=True) for form in formats]
    forms = [TimeForm(is_text=True), TimeForm(NUMBERS, pl.Float64, is_text=True), *dates]
    invalid = [invalid_values(sample, form) for form in forms]
    for at, form in enumerate(forms):
        if form.formats and form.formats[0] in DAY_FIRST:
            invalid[at] = min(
                invalid[at], invalid_values(sample, replace(form, formats=(month_first(form.formats[0]),)))
            )
    # Single invalid values are reported later with their rows; here they must not hide the format of the others.
    best = min(range(len(forms)), key=invalid.__getitem__)
    return forms[best] if len(sample) and invalid[best] <= MOST_CORRUPTED * len(sample) else None


def invalid_values(sample: pl.Series, form: TimeForm) -> int:
    return int(pl.select(form.parse(pl.lit(sample))).to_series().null_count())


def digits_format(times: TimeValues) -> str | None:
    """The format of integers that are all dates written as digits, such as 20180630; None if they are not."""
    ends = times.ends()
    if not times.dtype.is_integer() or ends is None:
        return None
    smallest, largest = map(str, ends)
    if len(smallest) != len(largest) or ends[0] <= 0:
        return None
    form = DIGITS.get(len(smallest))
    if form is None or not 1900 <= int(smallest[:4]) <= int(largest[:4]) <= 2100:
        return None
    date = TimeForm(TEXT, unit="us", formats=(form,)).parse(pl.col(TIME))
    return form if not times.sums(invalid=date.is_null() & pl.col(TIME).is_not_null())["invalid"] else None
