import polars as pl
import pytest

from ugt_composer.errors import UserError
from ugt_composer.importing.items import Items, all_items, numbers_of, read_items


def written(tmp_path, name: str, text: str):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_usual_columns_are_found_and_entities_become_characters(tmp_path):
    text = 'item_id\tasin\ttitle\tattributes\n1\tB1\t7" Brush &amp; Comb\tOPI|Nails\n2\tB2\t\tOPI\n'
    items = read_items(written(tmp_path, "items.tsv", text))
    assert items.ids.to_list() == ["1", "2"], "item_id comes before asin"
    assert items.names.to_list() == ['7" Brush & Comb', None]
    assert items.texts.to_list() == ['7" Brush & Comb | OPI|Nails', "OPI"]


def test_named_columns_and_lists_in_parquet(tmp_path):
    path = tmp_path / "items.parquet"
    pl.DataFrame({"sku": [7, 8], "label": ["a", "b"], "shelves": [["x", "y"], None]}).write_parquet(path)
    items = read_items(path, "sku", ["label", "shelves"], "label")
    assert items.ids.to_list() == ["7", "8"]
    assert items.texts.to_list() == ["a | x, y", "b"]
    assert items.names.to_list() == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("movieId,title\n1,a\n1,b\n", {}, "item '1' occurs twice"),
        ("movieId,title\n1,a\n,b\n", {}, "item 2 has no id"),
        ("movieId,title\n", {}, "found no item"),
        ("name,title\n1,a\n", {}, "looks like the item; name it with --items-column"),
        (
            "movieId,title\n1,a\n",
            {"text_columns": ["titel"]},
            "no column 'titel' (--text-columns); did you mean title?",
        ),
        ("movieId,title\n1,a\n", {"name_column": "nam"}, "no column 'nam' (--name-column)"),
    ],
)
def test_mistakes_are_named(tmp_path, text, options, said):
    with pytest.raises(UserError) as error:
        read_items(written(tmp_path, "items.csv", text), **options)
    assert said in str(error.value)


def test_the_catalogue_is_the_union_within_what_is_covered():
    seen, covered = pl.Series(["10", "9"]), pl.Series(["9", "3", "x"])
    known = Items(pl.Series(["3", "9"]), pl.Series(["three", "nine"]))
    union = all_items(seen, known, None, only_seen=False)
    assert union.ids.to_list() == ["3", "9", "10"]
    assert union.names.to_list() == ["three", "nine", None]
    assert all_items(seen, known, None, only_seen=True).ids.to_list() == ["9", "10"]
    assert all_items(seen, known, covered, only_seen=False).ids.to_list() == ["3", "9", "x"]
    assert all_items(seen, None, covered, only_seen=True).ids.to_list() == ["9"]


def test_numbers_of_unknown_items_are_minus_one():
    assert numbers_of(pl.Series(["b", "?", "a"]), Items(pl.Series(["a", "b"]))).tolist() == [1, -1, 0]
