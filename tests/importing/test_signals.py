from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ugt_composer.importing.interactions import Interactions, read_interactions
from ugt_composer.importing.log import Log, census
from ugt_composer.importing.signals import (
    Actions,
    about_clipped_times,
    count_clipped_times,
    learned_actions,
    seconds_of,
    seen_signals,
    why_no_seconds,
)


def log_of(rating: list[float | None] | None = None, action: list[str | None] | None = None) -> Interactions:
    count = len(rating or action or [])
    names = pl.Series([str(n) for n in range(count)])
    return Interactions(
        users=names,
        items=names,
        user=np.zeros(count, np.int32),
        item=np.arange(count, dtype=np.int32),
        time=None,
        rating=None if rating is None else np.array(rating, np.float32),
        action=None if action is None else pl.Series(action, dtype=pl.Enum(sorted(set(filter(None, action))))),
        time_form=None,
        columns={},
    )


def learned(log: Interactions, trained: list[bool] | None = None) -> Actions | None:
    """What two partitions have seen together."""
    mask = np.ones(len(log), bool) if trained is None else np.array(trained)
    first = np.arange(len(log)) < len(log) // 2
    halves = [seen_signals(log.only(half), mask[half]) for half in (first, ~first)]
    return learned_actions(halves[0] + halves[1])


def named(log: Interactions, trained: list[bool] | None = None) -> list[str | None] | None:
    """The name of each interaction's action; None: there are no actions."""
    actions = learned(log, trained)
    return None if actions is None else [None if n == 0 else actions.names[n - 1] for n in actions.of(log).tolist()]


def test_few_different_ratings_have_a_name_each():
    assert named(log_of([0.5, None, 5, 3, 0.5])) == ["rated 0.5", None, "rated 5", "rated 3", "rated 0.5"]


def test_many_different_ratings_share_names_of_about_equally_many_interactions():
    assert named(log_of([n / 10 for n in range(1, 21)])) == [
        name for name in ("0.1–0.4", "0.5–0.8", "0.9–1.2", "1.3–1.6", "1.7–2") for name in [f"rated {name}"] * 4
    ]


def test_a_rating_that_most_interactions_have_does_not_take_all_ranges():
    low = learned(log_of([1] * 90 + list(range(2, 12))))
    high = learned(log_of([*range(2, 12), *[20] * 90]))
    assert low is not None
    assert high is not None
    assert low.names == ("rated 1", "rated 2–4", "rated 5–7", "rated 8–9", "rated 10–11")
    assert high.names == ("rated 2–11", "rated 20")


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.lists(st.integers(-5, 50), max_size=10))
def test_every_rating_has_the_range_that_is_nearest(trained, others):
    known = [True] * len(trained) + [False] * len(others)
    found = named(log_of([value / 2 for value in trained + others]), known)
    if len(set(trained)) == 1:
        assert found is None
        return
    assert found is not None
    bounds = {name: [float(end) for end in name.removeprefix("rated ").split("–")] for name in found if name}
    for value, name in zip(trained + others, found, strict=True):
        assert name is not None

        def distance(other: str, value: float = value / 2) -> float:
            low, high = bounds[other][0], bounds[other][-1]
            return max(low - value, value - high, 0)

        assert distance(name) == min(map(distance, bounds))


def test_actions_are_by_name_in_alphabetical_order_and_with_their_rating():
    log = log_of([4, None, None, 1], ["review", "click", None, "review"])
    actions = learned(log)
    assert actions is not None
    assert actions.names == ("click", "review (rated 1)", "review (rated 4)")
    assert actions.of(log).tolist() == [3, 1, 0, 2]


def test_what_no_training_interaction_has_is_no_action():
    assert named(log_of(action=["a", "b", "c"]), [True, True, False]) == ["a", "b", None]


@pytest.mark.parametrize("log", [log_of([4, 4]), log_of([None, None]), log_of(action=["click", "click"])])
def test_one_action_for_all_says_nothing(log):
    assert named(log) is None


@pytest.mark.parametrize(
    "times",
    [
        ["1404172800", "1404172861"],
        ["1404172800.9", "1404172861.2"],
        ["1404172800900", "1404172861200"],
        ["2014-07-01 00:00:00", "2014-07-01 00:01:01"],
        ["2014-07-01T00:00:00.9", "2014-07-01T00:01:01.2"],
    ],
)
def test_times_of_every_form_become_seconds(tmp_path, times):
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp\n" + "".join(f"u,{n},{time}\n" for n, time in enumerate(times)))
    log = read_interactions(path)
    assert why_no_seconds(Log.of(log), one_time=False) == ""
    assert seconds_of(log.time, log.time_form.unit).tolist() == [1404172800, 1404172861]


def test_times_before_1970_and_after_2106_are_those_years(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp\nu,1,1950-01-01\nu,2,2014-07-01\nu,3,9999-12-31\n")
    log = read_interactions(path)
    assert seconds_of(log.time, log.time_form.unit).tolist() == [0, 1404172800, 2**32 - 2]
    assert count_clipped_times(log.time, log.time_form.unit) == 2
    (warning,) = about_clipped_times(2, 3, "log.csv")
    assert warning.startswith("log.csv: 2 of 3 times are before 1970 or after 2106")
    assert about_clipped_times(0, 3, "log.csv") == ()


@pytest.mark.parametrize(
    ("times", "why"),
    [([3, 7], "plain numbers, of which only the order counts"), ([1404172800] * 2, "all are the same")],
)
def test_times_of_which_nothing_is_known_are_none(tmp_path, times, why):
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp\n" + "".join(f"u,{n},{time}\n" for n, time in enumerate(times)))
    log = Log.of(read_interactions(path))
    assert why_no_seconds(log, census(log).one_time) == why
    assert why_no_seconds(replace(log, time_form=None), one_time=False) == "only the order is known"
