import numpy as np
import polars as pl
import pytest

from ugt_composer.errors import UserError
from ugt_composer.importing.assign import read_given
from ugt_composer.importing.code_array import read_code_array
from ugt_composer.importing.codes import parse_codes
from ugt_composer.importing.items import Items, read_items
from ugt_composer.importing.settings import IdSettings

CODES = np.array([[0, 2, 3], [4, 5, 6], [0, 2, 9], [1, 1, 1]])
IDS = ["a", "b", "c", "d"]


@pytest.mark.parametrize("array", [CODES, CODES.T, CODES.astype(float), CODES.astype(np.int16)])
def test_arrays_are_read_like_the_same_codes_in_json(tmp_path, array):
    np.save(tmp_path / "codes.npy", array)
    expected = parse_codes(tmp_path, {item: row.tolist() for item, row in zip(IDS, CODES, strict=True)})
    for items_file, items in ((None, pl.Series(IDS)), (tmp_path / "order.txt", None)):
        (tmp_path / "order.txt").write_text("\n".join(IDS) + "\n")
        ids, codes = read_code_array(tmp_path / "codes.npy", items_file, items)
        assert (ids.to_list(), codes) == (expected[0].to_list(), expected[1])


def with_value(value: float) -> np.ndarray:
    codes = CODES.astype(float)
    codes[2, 1] = value
    return codes


@pytest.mark.parametrize(
    ("array", "items", "said"),
    [
        (CODES, None, "the item of each code is not known; give a file of item ids with --code-items, or give --items"),
        (
            CODES,
            [*IDS[:3], "x", "y"],
            "found the shape (4, 3), but the table of items has 5 items; expected (5, levels)",
        ),
        (
            CODES[:3],
            IDS[:3],
            "with the shape (3, 3) and 3 items, a row can be an item or a level",
        ),
        (CODES[:, 0], IDS, "found whole numbers of shape (4,), expected whole numbers of shape (items, levels)"),
        (CODES[None], IDS, "found whole numbers of shape (1, 4, 3)"),
        (CODES > 2, IDS, "found truth values of shape (4, 3)"),
        (CODES[:, :0], IDS, "of shape (4, 0)"),
        (with_value(-1), IDS, "item 'c' (number 3 of the file): found -1 at level 2, expected a whole number from 0"),
        (with_value(1.5), IDS, "found 1.5 at level 2"),
        (with_value(np.nan), IDS, "found nan at level 2"),
        (with_value(2.0**31), IDS, "(1 of 4 items have an invalid code)"),
    ],
)
def test_mistakes_are_named(tmp_path, array, items, said):
    np.save(tmp_path / "codes.npy", array)
    with pytest.raises(UserError) as error:
        read_code_array(tmp_path / "codes.npy", None, None if items is None else pl.Series(items))
    assert said in str(error.value)


def test_ids_of_an_array_are_in_one_form_and_distinct(tmp_path):
    np.save(tmp_path / "codes.npy", CODES)
    order = tmp_path / "order.json"
    order.write_text("[1.0, 2.0, 3.0, 4.0]")
    given = read_given(IdSettings(codes=tmp_path / "codes.npy", code_items=order), None)
    assert given.items.to_list() == ["1", "2", "3", "4"]
    order.write_text('["a", "b", "a", "c"]')
    with pytest.raises(UserError, match=r"order\.json: item 'a' occurs twice"):
        read_given(IdSettings(codes=tmp_path / "codes.npy", code_items=order), None)


def test_the_order_can_be_that_of_the_table_of_items(tmp_path):
    np.save(tmp_path / "codes.npy", CODES)
    given = read_given(IdSettings(codes=tmp_path / "codes.npy"), Items(pl.Series(IDS)))
    assert given.items.to_list() == IDS
    assert given.made == {"method": "codes", "levels_given": [3]}


def test_a_list_of_ids_is_for_arrays_alone(tmp_path):
    for codes in (None, tmp_path / "codes.json"):
        with pytest.raises(UserError, match=r"--code-items .*expected --codes with an array \(\.npy"):
            IdSettings(codes=codes, code_items=tmp_path / "order.txt")


def test_rows_of_the_table_that_were_left_out_are_named(tmp_path):
    np.save(tmp_path / "codes.npy", CODES)
    (tmp_path / "items.csv").write_text("item_id,title\na,x\nb,y\na,x\n")
    with pytest.raises(UserError, match=r"items\.csv without 1 of its rows, which were left out, has 2 items"):
        read_given(IdSettings(codes=tmp_path / "codes.npy"), read_items(tmp_path / "items.csv"))
