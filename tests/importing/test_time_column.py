from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest

from ugt_composer.errors import UserError
from ugt_composer.importing.interactions import Interactions, read_interactions

SECONDS = [1_500_000_000 + 86_400 * 7 * n for n in range(40)]
DATES = [datetime.fromtimestamp(second, UTC) for second in SECONDS]


def imported(tmp_path, times, time_format=None, skip=False, parquet=False) -> Interactions:
    """The interactions of one user with the items 0, 1, … at these times."""
    path = tmp_path / ("r.parquet" if parquet else "r.csv")
    table = pl.DataFrame(
        {"user": ["u"] * len(times), "item": list(map(str, range(len(times)))), "ts": times}, strict=False
    )
    table.write_parquet(path) if parquet else table.write_csv(path)
    return read_interactions(path, skip_bad=skip, time_format=time_format)


def order(log: Interactions) -> list[int]:
    return [int(item) for item in log.items[log.item]]


def about_times(log: Interactions) -> list[str]:
    return [warning for warning in log.warnings if "column 'ts'" in warning]


def changed(times: list, replacements: dict) -> list:
    return [replacements.get(n, time) for n, time in enumerate(times)]


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize("other", [1000, 10**6, 10**9])
def test_mixed_units_are_refused_with_both_counts_or_converted(tmp_path, parquet, other):
    times = [second * other if n % 2 else second for n, second in enumerate(SECONDS)]
    name = {1000: "milliseconds", 10**6: "microseconds", 10**9: "nanoseconds"}[other]
    place = "row 2" if parquet else "line 3"
    for skip in (False, True):
        with pytest.raises(UserError) as error:
            imported(tmp_path, times, skip=skip, parquet=parquet)
        assert f"column 'ts': found times in different units since 1970: 20 seconds and 20 {name}" in str(error.value)
        assert f"(first in {place}: {times[1]}); convert each by its size with --time-format unix" in str(error.value)
    log = imported(tmp_path, times, ("unix",), parquet=parquet)
    assert order(log) == list(range(40))
    assert log.time.tolist() == [second * 10**6 for second in SECONDS]
    log = imported(tmp_path, times, ("s",), skip=True, parquet=parquet)
    assert (order(log), log.skipped) == (list(range(0, 40, 2)), 20)


def test_a_few_times_in_another_unit_can_be_skipped(tmp_path):
    times = changed(SECONDS, {7: SECONDS[7] * 1000})
    log = imported(tmp_path, times, skip=True)
    assert log.skipped == 1
    assert "line 9: column 'ts': found '1504233600000', expected a time in seconds since 1970" in log.first_skipped


@pytest.mark.parametrize("per", [1, 1000, 10**6, 10**9])
@pytest.mark.parametrize("parquet", [False, True])
def test_each_unit_gives_the_same_order_and_dates(tmp_path, per, parquet):
    log = imported(tmp_path, [second * per for second in reversed(SECONDS)], parquet=parquet)
    assert order(log) == list(range(39, -1, -1))
    assert log.time_form.facts(log.time.min(), log.time.max())["first"] == "2017-07-14 02:40:00"
    assert not about_times(log)


@pytest.mark.parametrize(
    "times",
    [
        [second + 0.25 for second in SECONDS],
        changed(SECONDS, {39: SECONDS[39] + 0.5}),  # the first fraction is in the last row
        [f" {second} " for second in SECONDS],
        [date.strftime("%Y-%m-%d %H:%M:%S UTC") for date in DATES],
        [date.strftime("%d/%m/%Y %H:%M") for date in DATES],
        [date.strftime("%m/%d/%Y %I:%M:%S %p") for date in DATES],
        [int(date.strftime("%Y%m%d")) for date in DATES],
    ],
)
def test_other_ways_to_write_times(tmp_path, times):
    log = imported(tmp_path, times)
    assert order(log) == list(range(40))
    assert log.time_form.facts(log.time.min(), log.time.max())["first"].startswith("2017-07-14")
    assert not about_times(log)


def test_counters_are_plain_numbers(tmp_path):
    log = imported(tmp_path, list(range(40)))
    facts = {"first": "0", "last": "39", "written_as": "plain numbers, of which only the order counts"}
    assert log.time_form.facts(log.time.min(), log.time.max()) == facts
    assert not about_times(log)


def test_dates_that_can_be_read_in_two_ways_are_refused_unless_settled(tmp_path):
    times = [f"{n % 12 + 1:02}/04/{2000 + n}" for n in range(40)]
    with pytest.raises(UserError) as error:
        imported(tmp_path, times)
    assert "40 of 40 dates can be read with the day first or with the month first (first in line 2: 01/04/2000)" in str(
        error.value
    )
    assert "--time-format '%d/%m/%Y' or --time-format '%m/%d/%Y'" in str(error.value)
    day, month = (imported(tmp_path, times, (form,)) for form in ("%d/%m/%Y", "%m/%d/%Y"))
    assert day.time_form.shown(day.time[1]) == "2001-04-02 00:00:00"
    assert month.time_form.shown(month.time[1]) == "2001-02-04 00:00:00"
    with pytest.raises(UserError, match=r"1 dates have the day first .*line 2: 25/12/2018.* and 1 the month"):
        imported(tmp_path, changed(times, {0: "25/12/2018", 1: "12/25/2018"}))


def test_dates_in_several_formats_are_read_with_a_warning(tmp_path):
    times = [date.strftime("%Y/%m/%d" if n % 4 == 3 else "%Y-%m-%d %H:%M:%S") for n, date in enumerate(DATES)]
    log = imported(tmp_path, times)
    assert order(log) == list(range(40))
    (warning,) = about_times(log)
    assert "dates in 2 formats were read: %Y-%m-%d %H:%M:%S%.f (30), %Y/%m/%d (10); first in line 5" in warning


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "1 of 40 times is in 1970 or earlier, as if they were missing; they sort first (first in line 5: 0)"),
        (-1, "in 1970 or earlier"),
        (253_402_300_799, "in the year 9999 or later, as if they were missing; they sort last"),
        (4_000_000_000, "1 of 40 times is later than today"),
    ],
)
@pytest.mark.parametrize("as_dates", [False, True])
def test_times_that_stand_for_missing_ones_are_named(tmp_path, value, said, as_dates):
    times: list = changed(SECONDS, {3: value})
    if as_dates:
        times = [datetime.fromtimestamp(time, UTC).replace(tzinfo=None) for time in times]
        said = said.replace("5: 0)", "5: 1970-01-01T00")
    (warning,) = about_times(imported(tmp_path, times))
    assert said in warning


def test_times_that_were_rounded_are_named(tmp_path):
    (warning,) = about_times(imported(tmp_path, [f"{second:.3e}" for second in SECONDS]))
    assert "40 of 40 times were rounded when they were written (first in line 2: 1.500e+09)" in warning
    (warning,) = about_times(imported(tmp_path, pl.Series(SECONDS).cast(pl.Float32), parquet=True))
    assert "float32" in warning


def test_a_format_for_a_column_of_dates_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds dates as such"):
        imported(tmp_path, DATES, ("s",), parquet=True)


@pytest.mark.parametrize(("form", "line"), [("%Y%m%d%H%M", "201707140240"), ("%Y%m%d%H%M%S", "20170714024000")])
def test_dates_of_digits_among_milliseconds_are_refused(tmp_path, form, line):
    times = [date.strftime(form) if n % 2 == 0 else str(int(1000 * date.timestamp())) for n, date in enumerate(DATES)]
    with pytest.raises(UserError) as error:
        imported(tmp_path, times)
    assert f"found 20 milliseconds since 1970 and 20 dates like {form} (first in line 2: {line})" in str(error.value)
    assert order(imported(tmp_path, [date.strftime(form) for date in DATES])) == list(range(40))


@pytest.mark.parametrize("clock", ["21:05:30", "9:05", "09:05:30 PM"])
def test_a_time_of_day_alone_is_refused(tmp_path, clock):
    with pytest.raises(UserError, match="a time without a date; name another column with --timestamp-column"):
        imported(tmp_path, [clock] * 3)


def test_offsets_of_some_dates_are_not_lost(tmp_path):
    hours = [datetime.fromtimestamp(SECONDS[0] + 3600 * n, UTC) for n in range(40)]
    zone = timezone(timedelta(hours=-5))
    times = [
        date.astimezone(zone).isoformat(" ") if n % 2 else date.replace(tzinfo=None).isoformat(" ")
        for n, date in enumerate(hours)
    ]
    log = imported(tmp_path, times)
    assert order(log) == list(range(40))
    assert "dates in 2 formats were read" in about_times(log)[0]


def test_names_of_time_zones_are_refused_unless_they_are_utc(tmp_path):
    dates = [date.strftime("%Y-%m-%d %H:%M:%S") for date in DATES]
    assert order(imported(tmp_path, [f"{date} {'UTC' if n % 2 else 'GMT'}" for n, date in enumerate(dates)]))
    with pytest.raises(UserError, match=r"found '.* EST', expected a number, or a date such as"):
        imported(tmp_path, [f"{date} {'PST' if n % 2 else 'EST'}" for n, date in enumerate(dates)])
