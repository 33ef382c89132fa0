import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ugt_composer.importing.time_units import PER_SECOND, unit_of, units_of
from ugt_composer.importing.time_values import TimesInMemory

seconds = st.integers(631_152_000, 4_000_000_000)


@given(st.lists(seconds, min_size=1, max_size=20), st.sampled_from(sorted(PER_SECOND)))
def test_one_unit_is_found_from_the_size(times, unit):
    numbers = pl.Series([time * int(PER_SECOND[unit]) for time in times], dtype=pl.Int64)
    units = units_of(TimesInMemory(numbers))
    assert (units.unit, units.counts, units.mixed) == (unit, {unit: len(times)}, False)
    assert all(unit_of(number) == unit for number in numbers)


@given(st.lists(st.tuples(seconds, st.sampled_from(sorted(PER_SECOND))), min_size=1, max_size=20))
def test_mixed_units_are_counted(times):
    numbers = pl.Series([time * int(PER_SECOND[unit]) for time, unit in times], dtype=pl.Int64)
    expected = {unit: sum(other == unit for _, other in times) for _, unit in times}
    assert units_of(TimesInMemory(numbers)).counts == expected
    assert units_of(TimesInMemory(numbers)).mixed == (len(expected) > 1)


@pytest.mark.parametrize(
    "numbers",
    [
        range(1, 400),
        range(1990, 2024),
        range(17_000, 18_000),
        range(0, 10**13, 10**10),
        range(0, 10**9, 10**6),
        [0, -1],
    ],
)
def test_numbers_of_another_kind_have_no_unit(numbers):
    assert units_of(TimesInMemory(pl.Series(numbers))).unit is None


def test_values_that_stand_for_missing_times_are_no_unit_of_their_own():
    numbers = pl.Series([1_530_392_700] * 9 + [0, -1, 253_402_300_799, 2**63 - 1, None])
    assert units_of(TimesInMemory(numbers)).counts == {"s": 9}
