"""How the times of a column become numbers, and back."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from ugt_composer.errors import UserError
from ugt_composer.importing.time_units import NAMES, PER_SECOND, in_unit, is_missing, unit_of

NUMBERS, BY_SIZE, DATETIMES, TEXT = "numbers", "numbers by size", "datetimes", "text"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class TimeForm:
    """How a column's times become numbers.

    Attributes:
        kind: NUMBERS, which stay as they are; BY_SIZE, numbers that become microseconds since 1970, each from the
            unit that its size shows; DATETIMES, a column of dates; TEXT, dates written as text or as digits.
        dtype: type of the parsed numbers, Int64 or Float64.
        unit: unit of the parsed numbers, a key of PER_SECOND; None: plain numbers, of which only the order counts.
        formats: formats of TEXT; each value is read by the first that fits.
        is_text: the column's values are strings.
    """

    kind: str = NUMBERS
    dtype: type[pl.DataType] = pl.Int64
    unit: str | None = None
    formats: tuple[str, ...] = ()
    is_text: bool = False

    @property
    def dates(self) -> bool:
        """The parsed numbers are not those of the file."""
        return self.kind != NUMBERS

    @property
    def description(self) -> str:
        if self.kind == TEXT:
            return f"dates like {' or '.join(self.formats)}"
        if self.kind == DATETIMES:
            return "dates"
        if self.kind == BY_SIZE:
            return "numbers since 1970, each in the unit that its size shows"
        return (
            "plain numbers, of which only the order counts" if self.unit is None else f"{NAMES[self.unit]} since 1970"
        )

    @property
    def expected(self) -> str:
        """What a message expects of a value."""
        if self.kind == TEXT:
            return f"a date like {' or '.join(self.formats)} (--time-format takes several formats)"
        return "a time that is a number" if self.unit is None else f"a time in {self.description}"

    def parse(self, column: pl.Expr) -> pl.Expr:
        """The times as numbers; null where a value is not of this form."""
        if self.kind == DATETIMES:
            return column.cast(pl.Datetime("us")).dt.epoch("us")
        if self.kind == TEXT:
            text = column.str.strip_chars() if self.is_text else column.cast(pl.Int64, strict=False).cast(pl.String)
            return pl.coalesce(_date(text, form) for form in self.formats)
        number = (column.str.strip_chars() if self.is_text else column).cast(self.dtype, strict=False)
        if self.dtype == pl.Float64:
            number = pl.when(number.is_finite()).then(number)
        if self.kind == BY_SIZE:
            seconds = pl.coalesce(
                pl.when(in_unit(number, unit)).then(_microseconds(number, unit)) for unit in PER_SECOND
            )
            return pl.when(is_missing(number)).then(0).otherwise(seconds)
        return number if self.unit is None else pl.when(in_unit(number, self.unit) | is_missing(number)).then(number)

    def bound(self, text: str, quantile: Callable[[float], float], option: str) -> float:
        """Parses a point in time that a user typed: a fraction of the interactions in (0, 1), a number, or a date.

        Args:
            quantile: a fraction → the time before which that fraction of the interactions is.
        """
        try:
            number = float(text)
        except ValueError:
            return self._typed_date(text, option)
        if 0 < number < 1:
            return quantile(number)
        if self.dates:
            raise UserError(
                f"{option} {text}: found a number, expected a date such as 2018-06-30, or a fraction such as 0.9"
            )
        typed = unit_of(number)
        if self.unit is not None and typed != self.unit:
            found = "a number that is too small for it" if typed is None else f"{NAMES[typed]}"
            raise UserError(
                f"{option} {text}: the timestamps are {self.description}, this is {found}; give a date such as "
                "2018-06-30, or a number in the same unit"
            )
        return number

    def shown(self, value: float) -> str:
        """As a date if the unit is known, else as a number."""
        if self.unit is not None:
            try:
                date = EPOCH + timedelta(seconds=value / PER_SECOND[self.unit])
                return date.replace(tzinfo=None).isoformat(" ", "seconds")
            except OverflowError:
                pass
        return str(int(value)) if value == int(value) else f"{value:g}"

    def facts(self, first: float, last: float) -> dict[str, str]:
        """The first and the last time, and how they are written, for the report."""
        return {"first": self.shown(first), "last": self.shown(last), "written_as": self.description}

    def _typed_date(self, text: str, option: str) -> float:
        try:
            date = datetime.fromisoformat(text)
        except ValueError:
            raise UserError(
                f"{option} {text}: expected a fraction such as 0.9, a number like the timestamps, or a date such as "
                "2018-06-30"
            ) from None
        if self.unit is None:
            raise UserError(
                f"{option} {text}: the timestamps are {self.description}; expected a number like them, or a fraction "
                "such as 0.9"
            )
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() * PER_SECOND[self.unit]


def _date(text: pl.Expr, form: str) -> pl.Expr:
    """Microseconds since 1970 of dates in one format."""
    date = text.str.to_datetime(form, time_unit="us", strict=False).dt.epoch("us")
    # Without the check, %Y would read 18 as the year 18.
    return pl.when(text.str.contains(r"\d{4}")).then(date) if "%Y" in form else date


def _microseconds(number: pl.Expr, unit: str) -> pl.Expr:
    if unit == "ns":
        return number.cast(pl.Int64, strict=False) // 1000
    return (number * (PER_SECOND["us"] / PER_SECOND[unit])).cast(pl.Int64, strict=False)
