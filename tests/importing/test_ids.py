from datetime import date
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ugt_composer.errors import UserError
from ugt_composer.importing.ids import MISSING, distinct_ids, one_form
from ugt_composer.importing.interactions import Interactions, read_interactions


def ids_of(*values: str | None, keep_missing: bool = False) -> list[str | None]:
    return one_form(pl.Series("item", values, pl.String), "t.csv", keep_missing)[0].to_list()


def remarks_on(*values: str) -> tuple[str, ...]:
    return one_form(pl.Series("item", values, pl.String), "t.csv", False)[2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1.0", "2.0", "10.0"], ["1", "2", "10"]),
        (["1", "1.0", "1.00", "-1.0"], ["1", "1", "1", "-1"]),
        (["1.0", "nan", None, "NULL", "3.0"], ["1", None, None, None, "3"]),
        (["1.0", "1.10", "1.1"], ["1.0", "1.10", "1.1"]),
        (["1.0", "a"], ["1.0", "a"]),
        (["007", "7", "7.0"], ["007", "7", "7"]),
        (["1e5", "12e3", "100000"], ["1e5", "12e3", "100000"]),
        (["012345678X", "0123456789"], ["012345678X", "0123456789"]),
        (["+5", "5"], ["+5", "5"]),
        ([" 12 ", "12", "\u00a0a b\ufeff"], ["12", "12", "a b"]),
        (["9007199254740993", "2"], ["9007199254740993", "2"]),
        (["9007199254740992.0", "2.0"], [None, "2"]),
        (["99999999999999999999.0", "2.0"], [None, "2"]),
        (["1.23457E+11", "1e+16", "2"], [None, None, "2"]),
        (["1.5e+10", "abc"], ["1.5e+10", "abc"]),
        (["", "  ", "x"], [None, None, "x"]),
        (["Nan", "Na", "null7"], ["Nan", "Na", "null7"]),
    ],
)
def test_ids_of_a_column_have_one_form(values, expected):
    assert ids_of(*values) == expected


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1), min_size=1))
def test_text_without_blanks_and_numbers_is_never_changed(words):
    words = [f"id-{word}" for word in words]
    assert ids_of(*words) == words


@pytest.mark.parametrize("value", MISSING)
def test_values_that_mean_missing_are_no_ids_unless_kept(value):
    assert ids_of("x", f" {value} ") == ["x", None]
    assert ids_of("x", value, keep_missing=True) == ["x", value]
    assert ids_of("1.0", value, keep_missing=True) == ["1", value]


def test_changed_and_merged_ids_are_remarked():
    assert remarks_on("a", "b", "007") == ()
    assert remarks_on("A12 ", "A12", "b") == (
        "t.csv: blanks around ids, such as 'A12 ', were removed (ids: 1)",
        "t.csv: ids that differ from another only in that were taken as the same id (ids: 1)",
    )
    assert remarks_on("1.0", "2.0") == ("t.csv: all ids are whole numbers, so '1.0' means '1' (ids written so: 2)",)


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        (["A12", "a12", "b"], "upper and lower case, such as 'A12' and 'a12'"),
        (["007", "x", "7"], "leading zeros, such as '007' and '7'"),
        (["1", "1.0", "x"], "a '.0' at the end, such as '1' and '1.0'"),
    ],
)
def test_ids_that_differ_little_are_kept_apart_and_remarked(ids, what):
    assert ids_of(*ids) == ids
    assert remarks_on(*ids) == (f"t.csv: some ids differ from another only in {what}; they are kept apart (ids: 2)",)


def test_values_that_are_kept_as_ids_are_remarked():
    values = pl.Series(["a", "nan", "NULL", "nan"])
    assert one_form(values, "t.csv", True)[2] == ("t.csv: 'nan', 'NULL' are ids, by --missing-as-ids",)


def test_a_list_of_ids_has_each_of_them_once():
    ids, warnings = distinct_ids(pl.Series(["2.0", "1.0"]), "codes.json", False)
    assert ids.to_list() == ["2", "1"]
    assert "codes.json: all ids are whole numbers" in warnings[0]
    with pytest.raises(
        UserError, match=r"codes\.json: item '1' occurs twice as '1' and '1\.0'; expected each item once"
    ):
        distinct_ids(pl.Series(["1", "2", "1.0"]), "codes.json", False)
    with pytest.raises(UserError, match=r"codes\.json: item 2 is 'null' \(such items: 1\).*--missing-as-ids"):
        distinct_ids(pl.Series(["a", "null"]), "codes.json", False)
    assert distinct_ids(pl.Series(["a", "null"]), "codes.json", True)[0].to_list() == ["a", "null"]


def read(path: Path, frame: pl.DataFrame, **options) -> Interactions:
    path = path / "r"
    if options.pop("as_csv", False):
        frame.write_csv(path.with_suffix(".csv"))
        return read_interactions(path.with_suffix(".csv"), **options)
    frame.write_parquet(path.with_suffix(".parquet"))
    return read_interactions(path.with_suffix(".parquet"), **options)


def table(users: list, items: list) -> pl.DataFrame:
    return pl.DataFrame({"user": users, "item": items, "ts": range(len(users))})


@pytest.mark.parametrize("role", ["user", "item"])
def test_missing_ids_are_refused_with_their_lines_skipped_or_kept(tmp_path, role):
    ids = ["a", "nan", "b", "NULL", "nan", "nan", "  "]
    frame = table(ids, ["x"] * 7) if role == "user" else table(["x"] * 7, ids)
    with pytest.raises(UserError) as error:
        read(tmp_path, frame, as_csv=True)
    assert str(error.value).startswith(
        f"{tmp_path}/r.csv, lines 3, 5, 6 and 2 more: column '{role}': found 'nan' (3 times), "
    )
    assert "'NULL' (once)" in str(error.value)
    assert "nothing (once)" in str(error.value)
    assert "--missing-as-ids" in str(error.value)
    assert "--on-error skip (5 of 7 rows: 3, 5, 6, 7, 8)" in str(error.value)
    log = read(tmp_path, frame, as_csv=True, skip_bad=True)
    assert (len(log), log.skipped) == (2, 5)
    log = read(tmp_path, frame, as_csv=True, skip_bad=True, missing_as_ids=True)
    assert (len(log), log.skipped) == (6, 1), "blanks are never an id"


@pytest.mark.parametrize(
    ("dtype", "values", "said"),
    [
        (pl.Float64, [1.0, None, 3.0], "row 2: column 'item': found nothing, expected an id"),
        (pl.Float64, [1.0, float("nan"), 3.0], "row 2: column 'item': found 'NaN', expected an id"),
        (pl.Float64, [1.0, 2.5, 3.0], "row 2: column 'item': found '2.5', expected an id; floating-point numbers"),
        (
            pl.Float64,
            [1.0, 2.0**53, 3.0],
            "found '9007199254740992.0', expected an id; floating-point numbers hold ids exactly",
        ),
        (pl.Float32, [1.0, 2.0**24, 3.0], "row 2: column 'item': found '16777216.0'"),
        (pl.Int64, [1, None, 3], "row 2: column 'item': found nothing"),
        (pl.Categorical, ["a", "None", "b"], "row 2: column 'item': found 'None', expected an id; that usually"),
    ],
)
def test_typed_columns_hold_exact_ids_alone(tmp_path, dtype, values, said):
    frame = table(["u"] * 3, values).with_columns(pl.col("item").cast(dtype))
    with pytest.raises(UserError) as error:
        read(tmp_path, frame)
    assert said in str(error.value)
    log = read(tmp_path, frame, skip_bad=True)
    assert log.items.to_list() == (["a", "b"] if dtype == pl.Categorical else ["1", "3"])


@pytest.mark.parametrize("values", [[[1], [2]], [{"id": 1}, {"id": 2}], [True, False], [date(2020, 1, 1)] * 2])
def test_columns_of_lists_dates_and_truth_values_hold_no_ids(tmp_path, values):
    with pytest.raises(UserError, match=r"column 'item' holds .*, expected ids, .*with --item-column"):
        read(tmp_path, table(["u", "u"], values))


def test_a_decimal_column_and_integers_beyond_a_floats_are_exact(tmp_path):
    frame = table(["u", "u"], [1, 2]).with_columns(pl.col("item").cast(pl.Decimal(10, 2)))
    assert read(tmp_path, frame).items.to_list() == ["1", "2"]
    assert read(tmp_path, table(["u", "u"], [2**53 + 1, 2**53])).items.to_list() == [str(2**53), str(2**53 + 1)]


def test_sequences_name_the_lines_of_missing_ids(tmp_path):
    path = tmp_path / "s.txt"
    path.write_text("u1 a b\nNULL a nan\nu3 nan c\n")
    with pytest.raises(
        UserError, match=r"s\.txt, line 2: found 'NULL' \(2 times\), expected an id.*skip \(3 of 6 rows: 2, 3\)"
    ):
        read_interactions(path)
    log = read_interactions(path, skip_bad=True)
    assert (len(log), log.skipped, log.users.to_list()) == (3, 3, ["u1", "u3"])
