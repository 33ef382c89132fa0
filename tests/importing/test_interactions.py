import gzip
from datetime import datetime
from itertools import permutations

import numpy as np
import polars as pl
import pytest

from ugt_composer.errors import UserError
from ugt_composer.importing.file_format import FileFormat
from ugt_composer.importing.interactions import Columns, Interactions, read_interactions

HEADER = "userId,movieId,rating,timestamp"
ROWS = ["9,b,4.0,30", "10,a,,10", "9,007,2.5,20", "9,c,1,20"]
EXPECTED = [("9", "007", 20, 2.5), ("9", "c", 20, 1.0), ("9", "b", 30, 4.0), ("10", "a", 10, None)]


def listed(log: Interactions) -> list[tuple]:
    """[(user, item, time, rating)] in order; missing values are None."""
    times = [None] * len(log) if log.time is None else log.time.tolist()
    ratings = [None] * len(log) if log.rating is None else [None if np.isnan(r) else r for r in log.rating.tolist()]
    return list(zip(log.users[log.user].to_list(), log.items[log.item].to_list(), times, ratings, strict=True))


def written(tmp_path, name: str, text: str):
    path = tmp_path / name
    opened = gzip.open if name.endswith(".gz") else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


@pytest.mark.parametrize("name", ["r.csv", "r.csv.gz", "r.tsv", "r.tsv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_of_text_are_read_oldest_first_with_ties_in_file_order(tmp_path, name, end):
    text = end.join([HEADER, *ROWS]) + end
    if ".tsv" in name:
        text = text.replace(",", "\t")
    log = read_interactions(written(tmp_path, name, text))
    assert listed(log) == EXPECTED, "ids stay text, so that 007 is not 7; 9 comes before 10"
    assert log.columns == {"user": "userId", "item": "movieId", "timestamp": "timestamp", "rating": "rating"}


def test_parquet_with_numbers_and_dates(tmp_path):
    path = tmp_path / "r.parquet"
    times = [datetime(2020, 1, 2), datetime(2020, 1, 1)]
    pl.DataFrame({"user_id": [1.0, 1.0], "item": [3, 2], "ts": times}).write_parquet(path)
    log = read_interactions(path)
    assert [row[:2] for row in listed(log)] == [("1", "2"), ("1", "3")]
    assert log.time_form.shown(float(log.time[0])) == "2020-01-01 00:00:00"


@pytest.mark.parametrize("value", ["", " ", "NULL", "nan", "\\N", "-"])
def test_a_rating_can_be_missing(tmp_path, value):
    log = read_interactions(written(tmp_path, "r.csv", f"{HEADER}\n9,b,4,30\n9,c,{value},31\n"))
    assert [row[3] for row in listed(log)] == [4.0, None]


@pytest.mark.parametrize(
    "dtype", [pl.Datetime("ns"), pl.Datetime("ms", "Europe/Berlin"), pl.Date, pl.Int32, pl.Float64]
)
def test_times_of_any_type_in_parquet(tmp_path, dtype):
    days = pl.Series([20_000, 19_000]).cast(pl.Date)
    ts = days.cast(dtype) if dtype.is_temporal() else pl.Series([20_000, 19_000]).cast(dtype)
    pl.DataFrame({"user": ["u", "u"], "item": ["late", "early"], "ts": ts}).write_parquet(tmp_path / "r.parquet")
    log = read_interactions(tmp_path / "r.parquet")
    assert [row[1] for row in listed(log)] == ["early", "late"]
    if dtype.is_temporal():
        assert log.time_form.bound("2022-01-08", float, "--test-from") == pytest.approx(19_000 * 86_400e6, abs=86_400e6)


@pytest.mark.parametrize("text", ["7 a b c\n8 b\n", "7\ta  b\tc \n\n8 b", "7 a b c\r\n8 b\r\n"])
@pytest.mark.parametrize("name", ["s.txt", "s.txt.gz"])
def test_one_line_per_user(tmp_path, text, name):
    log = read_interactions(written(tmp_path, name, text))
    assert [row[:2] for row in listed(log)] == [("7", "a"), ("7", "b"), ("7", "c"), ("8", "b")]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["2020-01-02", "2020-01-01"], ["b", "a"]),
        (["2020-01-01T00:00:02Z", "2020-01-01T00:00:01.5Z"], ["b", "a"]),
        (["1.5", "1.25"], ["b", "a"]),
        (["10", "9"], ["b", "a"]),  # numbers, not text
    ],
)
def test_forms_of_time(tmp_path, times, expected):
    text = f"user,item,time\n1,a,{times[0]}\n1,b,{times[1]}\n"
    assert [row[1] for row in listed(read_interactions(written(tmp_path, "r.csv", text)))] == expected


def test_a_file_without_a_header(tmp_path):
    path = written(tmp_path, "r.csv", "u1,i1,5.0,7\nu1,i0,3.0,6\n")
    log = read_interactions(path, file_format=FileFormat(names=("user", "item", "rating", "timestamp")))
    assert listed(log) == [("u1", "i0", 6, 3.0), ("u1", "i1", 7, 5.0)]


def test_file_order_needs_no_timestamps(tmp_path):
    path = written(tmp_path, "r.csv", "user,item\n1,b\n2,x\n1,a\n")
    assert [row[:2] for row in listed(read_interactions(path, file_order=True))] == [("1", "b"), ("1", "a"), ("2", "x")]


def test_actions_are_kept(tmp_path):
    path = written(tmp_path, "r.csv", "user,item,ts,event\n1,b,2,click\n1,a,1,view\n")
    assert read_interactions(path).action.to_list() == ["view", "click"]


@pytest.mark.parametrize(
    ("name", "text", "options", "said"),
    [
        ("r.csv", None, {}, "r.csv: found no such file"),
        ("r.xls", "", {}, "r.xls: the file extension '.xls' is a spreadsheet's"),
        ("r.dat", "", {}, "r.dat: the file extension '.dat' is unknown"),
        ("r.csv", "", {}, "r.csv: is empty"),
        ("r.csv", HEADER + "\n", {}, "r.csv: found no interaction"),
        (
            "r.csv",
            "a,movieId,timestamp\n1,2,3\n",
            {},
            "(a, movieId, timestamp) looks like the user; name it with --user-",
        ),
        (
            "r.csv",
            "user,item\n1,2\n",
            {},
            "looks like the timestamp; name it with --timestamp-column, or give --file-order",
        ),
        (
            "r.csv",
            HEADER + "\n1,2,3,4\n",
            {"columns": Columns(item="movidID")},
            "no column 'movidID' (--item-column); did you mean movieId?",
        ),
        ("r.csv", HEADER + "\n1,2,3,4\n", {"columns": Columns(user="movieId")}, "found one column used twice"),
        (
            "r.csv",
            HEADER + "\n1,2,3,4\n\n1,,3,5\n",
            {},
            "r.csv, line 4: column 'movieId': found nothing, expected an id",
        ),
        ("r.csv", HEADER + "\n1,2,3,4\n1,2,x,4\n", {}, "r.csv, line 3: column 'rating': found 'x', expected a number"),
        ("r.csv", HEADER + "\n1,2,3,4\n1,2,-inf,4\n", {}, "line 3: column 'rating': found '-inf', expected a number"),
        (
            "r.csv",
            HEADER + "\n1,2,3,4\n1,2,3,4\n1,2,3,4 oops\n",
            {},
            "r.csv, line 4: column 'timestamp': found '4 oops'",
        ),
        (
            "r.csv",
            HEADER + "\n1,2,3,soon\n",
            {},
            "column 'timestamp': found 'soon', expected a number, or a date such as",
        ),
        ("r.csv", HEADER + "\n1,2,3,4,5\n", {}, "r.csv, line 2: found 5 fields, expected 4; fix it, or skip"),
        ("s.txt", "1 2 3\n2\n", {}, "s.txt, line 2: found '2' alone"),
        ("s.txt", "1 2 3\n\n1 4\n", {}, "s.txt, line 3: found user '1' again, first in line 1"),
        ("s.txt", "", {}, "s.txt: is empty"),
        ("s.txt", "\n", {}, "s.txt: found no interaction"),
        ("s.txt", "1 2 3\n", {"columns": Columns(user="u")}, "--user-column is for tables"),
    ],
)
def test_mistakes_are_named(tmp_path, name, text, options, said):
    path = tmp_path / name if text is None else written(tmp_path, name, text)
    with pytest.raises(UserError) as error:
        read_interactions(path, **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_gzip_is_refused(tmp_path):
    whole = written(tmp_path, "r.csv.gz", "\n".join([HEADER, *ROWS * 100]))
    whole.write_bytes(whole.read_bytes()[:-12])
    with pytest.raises(UserError, match=r"r\.csv\.gz: cannot be read to its end \(a gzip stream that is cut short\)"):
        read_interactions(whole)


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path):
    path = written(tmp_path, "r.csv", "\n".join([HEADER, *ROWS, "9,d,5,40 oops", ",d,5,50"]))
    log = read_interactions(path, skip_bad=True)
    assert listed(log) == EXPECTED
    assert log.skipped == 2
    assert "line 6: column 'timestamp': found '40 oops'" in log.first_skipped


BAD = {
    "fields": ("1,a", "found 2 fields, expected 4"),
    "user": (",a,5,10", "column 'userId': found nothing"),
    "rating": ("1,a,great,10", "column 'rating': found 'great'"),
    "time": ("1,a,5,noon", "column 'timestamp': found 'noon'"),
}


@pytest.mark.parametrize("kinds", permutations(BAD))
def test_of_rows_that_are_bad_in_different_ways_the_first_of_the_file_is_named(tmp_path, kinds):
    lines = [HEADER, *ROWS, *(BAD[kind][0] for kind in kinds), *ROWS]
    path = written(tmp_path, "r.csv", "\n".join(lines))
    first = len(ROWS) + 2
    with pytest.raises(UserError) as error:
        read_interactions(path)
    assert str(error.value).startswith(f"{path}, line {first}: {BAD[kinds[0]][1]}")
    listed_lines = ", ".join(str(first + n) for n in range(4))
    assert str(error.value).endswith(f"(4 of {2 * len(ROWS) + 4} rows: {listed_lines})")
    log = read_interactions(path, skip_bad=True)
    assert log.skipped == 4
    assert log.first_skipped.startswith(f"{path}, line {first}: {BAD[kinds[0]][1]}")


def test_a_bad_value_of_the_first_file_is_named_before_a_damaged_line_of_the_second(tmp_path):
    a = written(tmp_path, "a.csv", "\n".join([HEADER, *ROWS, BAD["time"][0]]))
    b = written(tmp_path, "b.csv", "\n".join([HEADER, BAD["fields"][0], *ROWS]))
    with pytest.raises(UserError, match=r"a\.csv, line 6: column 'timestamp'.*\(2 of 10 rows: a\.csv:6, b\.csv:2\)"):
        read_interactions([a, b])


def test_of_bad_lines_of_sequences_the_first_of_the_file_is_named(tmp_path):
    path = written(tmp_path, "s.txt", "u1 a b\nu1 c\nalone\nu2 NULL\nu3 a b\n")
    with pytest.raises(UserError, match=r"s\.txt, line 2: found user 'u1' again.*\(3 of 7 rows: 2, 3, 4\)"):
        read_interactions(path)
    assert "line 2: " in read_interactions(path, skip_bad=True).first_skipped


def test_a_column_that_is_named_for_one_role_is_not_found_for_another(tmp_path):
    path = written(tmp_path, "r.csv", "user,item,ts,label\n1,b,2,4\n1,a,1,5\n")
    assert read_interactions(path).action.to_list() == ["5", "4"]
    log = read_interactions(path, columns=Columns(rating="label"))
    assert (log.rating.tolist(), log.action) == ([5, 4], None)
