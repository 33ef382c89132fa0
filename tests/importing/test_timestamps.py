import numpy as np
import polars as pl
import pytest

from ugt_composer.errors import UserError
from ugt_composer.importing.timestamps import BY_SIZE, NUMBERS, TEXT, TimeForm

SECONDS = 1_530_392_700  # 2018-06-30 21:05:00


@pytest.mark.parametrize(("unit", "per"), [("s", 1), ("ms", 1000), ("us", 10**6), ("ns", 10**9)])
def test_a_number_is_shown_as_a_date_in_its_unit(unit, per):
    form = TimeForm(NUMBERS, unit=unit)
    times = np.array([SECONDS * per, (SECONDS + 1) * per])
    assert form.shown(float(times[0])) == "2018-06-30 21:05:00"
    assert form.facts(*times)["last"] == "2018-06-30 21:05:01"
    assert form.bound("2018-06-30 21:05", float, "--test-from") == times[0]
    assert form.bound(str(times[0]), float, "--test-from") == times[0]


def test_each_number_can_have_the_unit_of_its_size():
    form = TimeForm(BY_SIZE, unit="us")
    numbers = pl.Series([SECONDS, SECONDS * 1000, SECONDS * 10**6, SECONDS * 10**9, 0, -1, 17])
    parsed = pl.select(form.parse(pl.lit(numbers))).to_series()
    assert parsed.to_list() == [SECONDS * 10**6] * 4 + [0, 0, None]


def test_dates_in_several_formats_and_no_years_of_two_digits():
    form = TimeForm(TEXT, unit="us", formats=("%d/%m/%Y %H:%M", "%Y-%m-%d"), is_text=True)
    text = pl.Series([" 30/06/2018 21:05", "2018-06-30", "30/06/18 21:05", "soon"])
    midnight = SECONDS - 21 * 3600 - 300
    assert pl.select(form.parse(pl.lit(text))).to_series().to_list() == [SECONDS * 10**6, midnight * 10**6, None, None]


@pytest.mark.parametrize(
    ("form", "text", "said"),
    [
        (TimeForm(NUMBERS, unit="ms"), str(SECONDS), "the timestamps are milliseconds since 1970, this is seconds"),
        (TimeForm(NUMBERS, unit="s"), "17", "this is a number that is too small for it"),
        (TimeForm(NUMBERS), "2018-06-30", "the timestamps are plain numbers, of which only the order counts; expected"),
        (TimeForm(TEXT, unit="us", formats=("%Y-%m-%d",)), "17", "found a number, expected a date"),
    ],
)
def test_points_in_time_of_another_kind_are_refused(form, text, said):
    with pytest.raises(UserError) as error:
        form.bound(text, float, "--test-from")
    assert said in str(error.value)
