"""The parsed times of a column, of which sums and ends are asked: in memory, or spread over machines."""

from collections.abc import Mapping
from typing import Any, Protocol

import polars as pl

TIME = "time"  # what expressions call the column


class TimeValues(Protocol):
    """n values, null where one is invalid."""

    @property
    def dtype(self) -> pl.DataType: ...

    def derived(self, expression: pl.Expr) -> "TimeValues":
        """The values of an expression of TIME."""
        ...

    def sums(self, **expressions: pl.Expr) -> dict[str, int]:
        """The sums of expressions of TIME, such as conditions."""
        ...

    def ends(self) -> tuple[Any, Any] | None:
        """The smallest and the largest value; None if all are null."""
        ...


class TimesInMemory:
    """Times of this process."""

    def __init__(self, values: pl.Series):
        self.values = values

    @property
    def dtype(self) -> pl.DataType:
        return self.values.dtype

    def derived(self, expression: pl.Expr) -> "TimesInMemory":
        return TimesInMemory(self.values.to_frame(TIME).select(expression).to_series())

    def sums(self, **expressions: pl.Expr) -> dict[str, int]:
        return sums_of(self.values.to_frame(TIME).lazy(), expressions)

    def ends(self) -> tuple[Any, Any] | None:
        smallest, largest = self.values.min(), self.values.max()
        return None if smallest is None else (smallest, largest)


def sums_of(rows: pl.LazyFrame, expressions: Mapping[str, pl.Expr]) -> dict[str, int]:
    """The sums of expressions of the columns of some rows, such as conditions."""
    sums = {name: expression.sum() for name, expression in expressions.items()}
    return {name: int(value or 0) for name, value in rows.select(**sums).collect().row(0, named=True).items()}


def count_valid(times: TimeValues) -> int:
    return times.sums(valid=pl.col(TIME).is_not_null())["valid"]


def count_invalid(times: TimeValues) -> int:
    return times.sums(invalid=pl.col(TIME).is_null())["invalid"]
