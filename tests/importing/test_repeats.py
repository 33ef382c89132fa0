import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ugt_composer.importing.interactions import Interactions
from ugt_composer.importing.log import Log, census
from ugt_composer.importing.repeats import (
    FIRST,
    KEEP,
    LAST,
    about_untimed_duplicates,
    exact_duplicates,
    kept_repeats,
    previous_occurrence,
)

number = st.integers(0, 3)
rows = st.lists(st.tuples(number, number, number, st.sampled_from([1.0, 2.0, float("nan")]), st.sampled_from("ab")))


def log_of(table: list[tuple], timed: bool = True) -> Interactions:
    """Interactions of rows (user, time, item, rating, action), sorted as the importer does."""
    table = sorted(table, key=lambda row: (row[0], row[1]))
    user, time, item, rating, action = zip(*table, strict=True)
    names = pl.Series(map(str, range(9 if timed else user[-1] + 1)))
    return Interactions(
        names,
        names,
        np.array(user, np.int32),
        np.array(item, np.int32),
        np.array(time) if timed else None,
        np.array(rating, np.float32),
        pl.Series(action),
        None,
        {},
    )


@given(rows.filter(lambda table: len({row[1] for row in table}) > 1))
def test_duplicates_equal_those_of_a_plain_loop(table):
    seen, expected = set(), []
    for row in sorted(table, key=lambda row: (row[0], row[1])):
        key = tuple(map(str, row))
        expected.append(key in seen)
        seen.add(key)
    assert exact_duplicates(log_of(table)).tolist() == expected


@given(st.lists(st.tuples(number, number), min_size=1))
def test_previous_occurrences_and_kept_repeats_equal_those_of_a_plain_loop(pairs):
    user, item = np.array(sorted(pairs, key=lambda pair: pair[0]), np.int32).T
    keys = list(zip(user.tolist(), item.tolist(), strict=True))
    before = [max((n for n in range(at) if keys[n] == key), default=-1) for at, key in enumerate(keys)]
    previous = previous_occurrence(user, item)
    assert previous.tolist() == before
    assert kept_repeats(previous, FIRST).tolist() == [key not in keys[:at] for at, key in enumerate(keys)]
    assert kept_repeats(previous, LAST).tolist() == [key not in keys[at + 1 :] for at, key in enumerate(keys)]
    assert kept_repeats(previous, KEEP).all()


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([1, 1, 2, 2, 3, 3, 4, 4], "8 of 16 rows have the same user and item as the row before"),
        ([1, 2, 3, 4, 1, 2, 3, 4], "2 of 2 users have the same items twice in the same order"),
        ([1, 2, 3, 4, 1, 2, 4, 3], None),
        ([1, 1, 2, 3, 4, 5, 6, 7], None),
    ],
)
def test_rows_without_times_that_seem_to_be_doubled_are_named(items, said):
    log = log_of([(user, n, item, 1.0, "a") for user in (0, 1) for n, item in enumerate(items)], timed=False)
    warning = about_untimed_duplicates(Log.of(log), census(Log.of(log)))
    assert (warning is None) if said is None else (said in warning)
