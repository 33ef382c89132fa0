"""Formats of times in a file: numbers of any unit, or dates."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl

from ugt_composer.errors import UserError

DATE_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.fZ",
    "%Y-%m-%dT%H:%M:%S%.f%z",
    "%Y-%m-%d %H:%M:%S%.f%z",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d",
    "%m %d, %Y",  # the reviewTime of Amazon's reviews
)
MICROSECOND = 1e6
MOST_CORRUPTED = 0.5  # largest fraction of invalid values in a sample
# Upper bounds of seconds, milliseconds and microseconds since 1970; the units do not overlap from 1973 to 5138.
UNIX_UNITS = ((1e11, 1.0), (1e14, 1e3), (1e17, MICROSECOND))


@dataclass(frozen=True)
class TimeForm:
    """How a column's times become numbers.

    Attributes:
        dtype: type of the numbers, Int64 or Float64.
        dates: the column holds dates, and the numbers are microseconds since 1970.
        text_format: format of dates written as text; None for a column of dates or numbers.
    """

    dtype: type[pl.DataType]
    dates: bool = False
    text_format: str | None = None

    def parse(self, column: pl.Expr) -> pl.Expr:
        """The times as numbers; null where a value is not of this form."""
        if not self.dates:
            number = column.cast(self.dtype, strict=False)
            return number if self.dtype == pl.Int64 else pl.when(number.is_finite()).then(number)
        if self.text_format is None:
            return column.cast(pl.Datetime("us")).dt.epoch("us")
        return column.str.to_datetime(self.text_format, time_unit="us", strict=False).dt.epoch("us")

    def units_per_second(self, latest: float) -> float:
        if self.dates:
            return MICROSECOND
        return next((units for bound, units in UNIX_UNITS if latest < bound), MICROSECOND)

    def bound(self, text: str, times: np.ndarray, option: str) -> float:
        """Parses a point in time that a user typed: a fraction of the interactions in (0, 1), a number, or a date."""
        try:
            number = float(text)
        except ValueError:
            return self._date(text, option) * self.units_per_second(float(times.max()))
        if 0 < number < 1:
            return float(np.quantile(times, number, method="higher"))
        if self.dates:
            raise UserError(
                f"{option} {text}: found a number, expected a date such as 2018-06-30, or a fraction such as 0.9"
            )
        return number

    def shown(self, value: float) -> str:
        """As a date if the number can be one, else as a number."""
        seconds = value / self.units_per_second(value)
        if not 1e8 < seconds < 1e11:
            return f"{value:g}"
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")

    @staticmethod
    def _date(text: str, option: str) -> float:
        try:
            date = datetime.fromisoformat(text)
        except ValueError:
            raise UserError(
                f"{option} {text}: expected a fraction such as 0.9, a number like the timestamps, or a date such as "
                "2018-06-30"
            ) from None
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def time_form(sample: pl.Series, place: str) -> TimeForm:
    """The format that fits most values of a sample. Raises UserError if none fits at least half of them."""
    dtype = sample.dtype
    if dtype.is_integer():
        return TimeForm(pl.Int64)
    if dtype.is_numeric():
        return TimeForm(pl.Float64)
    if dtype == pl.Date or dtype == pl.Datetime:
        return TimeForm(pl.Int64, dates=True)
    if dtype == pl.String:
        forms = [TimeForm(pl.Int64), TimeForm(pl.Float64), *(TimeForm(pl.Int64, True, text) for text in DATE_FORMATS)]
        invalid = [int(pl.select(form.parse(pl.lit(sample))).to_series().null_count()) for form in forms]
        # Single invalid values are reported later with their rows; here they must not hide the format of the others.
        if min(invalid) <= MOST_CORRUPTED * len(sample):
            return forms[int(np.argmin(invalid))]
    first_value = repr(sample[0]) if len(sample) else "nothing"
    raise UserError(f"{place}: found {first_value}, expected times: numbers, or dates such as 2018-06-30 21:05:00")
