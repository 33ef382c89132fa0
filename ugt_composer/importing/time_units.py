"""Units of numbers that count the time since 1970, told by their size."""

from dataclasses import dataclass

import polars as pl

from ugt_composer.importing.time_values import TIME, TimeValues

PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
NAMES = {
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
    "number": "numbers too small for any",
}
NUMBER = "number"  # a number that is too small for any unit

# In seconds. The units do not overlap between these two: 1973 to 5138.
FIRST, LAST = 1e8, 1e11
USUAL_FIRST, USUAL_LAST = 631_152_000, 4_102_444_800  # 1990 to 2100
YEAR_9999 = 253_370_764_800, 253_402_300_800
LARGEST_INT64 = 9.2e18

MOST_SMALL = 0.05  # largest fraction of plain numbers in a column of times: above it, they are no mistakes
MOST_MINOR = 0.1  # largest fraction of times in other units that may be left out as invalid


def unit_of(number: float) -> str | None:
    size = abs(number)
    return next((unit for unit, per in PER_SECOND.items() if FIRST * per <= size < LAST * per), None)


def in_unit(number: pl.Expr, unit: str) -> pl.Expr:
    """Whether the size of a number is that of a time in this unit."""
    per = PER_SECOND[unit]
    return (number >= FIRST * per) & (number < LAST * per)


def is_missing(number: pl.Expr) -> pl.Expr:
    """Whether a number is one of those written for a missing time: 0 or less, the year 9999, the largest integer."""
    years = [number.is_between(YEAR_9999[0] * per, YEAR_9999[1] * per, closed="left") for per in (1.0, 1e3, 1e6)]
    return pl.any_horizontal(number <= 0, number >= LARGEST_INT64, *years)


@dataclass(frozen=True)
class Units:
    """What the numbers of a column are.

    Attributes:
        unit: the most frequent unit; None: plain numbers.
        counts: unit or NUMBER → how many values, the most frequent first; without those that stand for missing ones.
    """

    unit: str | None
    counts: dict[str, int]

    @property
    def mixed(self) -> bool:
        return self.unit is not None and len(self.counts) > 1


def units_of(times: TimeValues) -> Units:
    """The units of a column of numbers.

    Numbers of a size are times only if most of them are between 1990 and 2100; otherwise they are plain numbers, such
    as a counter that runs through the sizes of several units.
    """
    number = pl.col(TIME)
    counted = ~is_missing(number)
    kinds = {unit: in_unit(number, unit) & counted for unit in PER_SECOND}
    usual = {unit: number.is_between(USUAL_FIRST * per, USUAL_LAST * per) for unit, per in PER_SECOND.items()}
    sums = {f"usual {unit}": kinds[unit] & usual[unit] for unit in PER_SECOND} | kinds
    sums |= {NUMBER: (number < FIRST) & counted, "all": number.is_null() | number.is_not_null()}
    found = times.sums(**sums)
    units = [unit for unit in PER_SECOND if found[unit] and found[f"usual {unit}"] * 2 >= found[unit]]
    if not units:
        return Units(None, {})
    counts = {kind: found[kind] for kind in (*PER_SECOND, NUMBER) if found[kind]}
    if counts.get(NUMBER, 0) <= MOST_SMALL * found["all"]:
        counts.pop(NUMBER, None)
    counts = dict(sorted(counts.items(), key=lambda pair: -pair[1]))
    return Units(max(units, key=lambda unit: found[unit]), counts)
