from datetime import datetime

import polars as pl
import pytest

from ugt_composer.errors import UserError
from ugt_composer.importing.date_formats import (
    DAY_FIRST,
    UNAMBIGUOUS,
    check_formats,
    digits_format,
    form_of_text,
    month_first,
)
from ugt_composer.importing.time_values import TimesInMemory
from ugt_composer.importing.timestamps import TimeForm

DATES = [datetime(2018, 6, 30, 21, 5), datetime(2019, 1, 2, 9, 45), datetime(2020, 11, 22, 12, 0)]


@pytest.mark.parametrize("form", [*UNAMBIGUOUS, *DAY_FIRST])
def test_every_format_is_found_and_read_as_python_reads_it(form):
    python = form.replace("%.f", "")
    text = [date.strftime(python.replace("%z", "+0000").replace("%Z", "UTC")) for date in DATES]
    found = form_of_text(pl.Series(text))
    micros = pl.select(found.parse(pl.lit(pl.Series(text)))).to_series()
    expected = [
        datetime.strptime(date.strftime(bare), bare)
        for date in DATES
        for bare in [python.replace(" %z", "").replace("%z", "").replace(" %Z", "")]
    ]
    assert micros.cast(pl.Datetime("us")).to_list() == expected


def test_day_and_month_are_exchanged():
    assert [month_first(form) for form in ("%d/%m/%Y", "%d-%m-%Y %H:%M")] == ["%m/%d/%Y", "%m-%d-%Y %H:%M"]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([20180630, 20190102], "%Y%m%d"),
        ([20180630210500, 20190102094500], "%Y%m%d%H%M%S"),
        ([201806302105, 201901020945], "%Y%m%d%H%M"),
        ([20180630, 20181301], None),
        ([20180630, 1], None),
        ([1_530_392_700_000, 1_530_392_700_001], None),
        ([], None),
    ],
)
def test_dates_written_as_digits(numbers, expected):
    assert digits_format(TimesInMemory(pl.Series(numbers, dtype=pl.Int64))) == expected


@pytest.mark.parametrize(
    "formats", [["s"], ["unix"], ["number"], ["%d/%m/%y %H:%M"], ["%Y-%m-%dT%H:%M:%S.%f", "%B %d, %Y"]]
)
def test_valid_formats_pass(formats):
    check_formats(formats)


@pytest.mark.parametrize(
    ("formats", "said"),
    [
        (["sec"], "--time-format 'sec': expected s, ms, us, ns, unix or number, or a format of dates such as"),
        (["%Y-%m-%d %H:%M %Z"], "is not read; write the name itself, such as '%Y-%m-%d %H:%M UTC'"),
        (["%Q"], "no valid format of dates"),
        (["%H:%M"], "no valid format of dates"),
        (["%Y-%m-%d %H"], "minute (needed with %H)"),
        (["s", "%Y"], "expected s alone"),
    ],
)
def test_invalid_formats_are_refused(formats, said):
    with pytest.raises(UserError) as error:
        check_formats(formats)
    assert said in str(error.value)


def test_a_number_is_no_date():
    assert form_of_text(pl.Series(["12", "13"])) == TimeForm(is_text=True)
