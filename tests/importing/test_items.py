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
        ("movieId,title\n1,a\n1,b\n", {}, "items.csv, lines 2, 3: item '1' occurs 2 times with different names"),
        ("movieId,title\n1,a\n1.0,b\n", {}, "items.csv, lines 2, 3: item '1' occurs 2 times"),
        ("movieId,title\n1,a\n,b\n", {}, "items.csv, line 3: column 'movieId': found nothing, expected an id"),
        ("movieId,title\n1,a\nnull,b\n", {}, "items.csv, line 3: column 'movieId': found 'null', expected an id"),
        (
            "movieId,cost,colour\n1,2,red\n",
            {},
            "'movieId' is the item, but none of its other columns (cost, colour) looks like a name or a text",
        ),
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


def test_a_table_of_ids_alone_is_right_and_so_is_one_whose_texts_are_not_wanted(tmp_path):
    assert read_items(written(tmp_path, "ids.csv", "item_id\n1\n2\n")).texts is None
    items = read_items(written(tmp_path, "items.csv", "item_id,cost\n1,2\n"), text_columns=())
    assert (items.texts, items.names, items.warnings) == (None, None, ())


def test_a_name_column_that_is_given_is_a_text_too(tmp_path):
    path = written(tmp_path, "items.csv", "item_id,label,genres\n1,Heat,Crime\n")
    assert read_items(path, name_column="Label").texts.to_list() == ["Heat | Crime"]
    assert read_items(path, name_column="label", text_columns=["genres"]).texts.to_list() == ["Crime"]


def test_the_columns_and_their_use_are_kept_for_the_report(tmp_path):
    header = "item_id:token,movie_title:token_seq,release_year:token,class:token_seq"
    items = read_items(written(tmp_path, "ml.csv", f"{header}\n1,Heat,1995,Crime Drama\n2,,1996,\n"))
    assert items.table.columns == {
        "item": "item_id:token",
        "name": "movie_title:token_seq",
        "text": ["movie_title:token_seq", "class:token_seq"],
        "unused": ["release_year:token"],
    }
    assert items.texts.to_list() == ["Heat | Crime Drama", None]
    assert items.table.facts["items_without_text"] == 1


def test_rows_that_repeat_an_item_are_left_out_and_counted(tmp_path):
    items = read_items(written(tmp_path, "items.csv", "item_id,title\n1,a\n2,b\n1,a\n1.0,a\n"))
    assert items.ids.to_list() == ["1", "2"]
    assert items.table.facts["repeated_rows"] == 2
    assert "2 rows repeat an item with the same name and text" in items.warnings[-1]


def test_rows_that_contradict_each_other_or_have_no_id_can_be_skipped(tmp_path):
    path = written(tmp_path, "items.csv", "item_id,title\n1,a\nnan,x\n1,b\n2,c\n")
    items = read_items(path, skip_bad=True)
    assert items.ids.to_list() == ["1", "2"]
    assert items.texts.to_list() == ["a", "c"]
    assert "lines 2, 4: item '1' occurs 2 times" in items.warnings[-1]
    assert (items.table.facts["skipped_rows"], items.table.facts["contradicting_rows"]) == (1, 1)
    with pytest.raises(UserError, match="no row has an item id"):
        read_items(written(tmp_path, "none.csv", "item_id,title\nnan,x\n"), skip_bad=True)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("1,nan,red\n2,NULL,", "column 'title' is used as name or text of the items, but is empty"),
        ("1,1,red\n2,2,", "column 'title' is used as name or text of the items, but holds their ids; name another"),
    ],
)
def test_a_column_of_texts_that_says_nothing_is_remarked(tmp_path, rows, said):
    assert said in read_items(written(tmp_path, "items.csv", f"item_id,title,brand\n{rows}\n")).warnings[0]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            "1,,x\n2,N/A,y",
            "has no name and no text of any item: 'title' is empty (not used: colour); name other columns",
        ),
        ("1,1,x\n2,2,y", "has no name and no text of any item: 'title' holds their ids (not used: colour)"),
    ],
)
def test_a_table_without_any_text_is_refused_unless_only_ids_are_wanted(tmp_path, rows, said):
    path = written(tmp_path, "items.csv", f"item_id,title,colour\n{rows}\n")
    with pytest.raises(UserError) as error:
        read_items(path)
    assert said in str(error.value)
    assert read_items(path, text_columns=[]).texts is None
    assert read_items(path, text_columns=["colour"]).texts.to_list() == ["x", "y"]


def test_an_empty_column_beside_others_is_remarked_only_if_it_was_asked_for(tmp_path):
    path = written(tmp_path, "items.csv", "item_id,title,description\n1,a,\n2,b,\n")
    assert read_items(path).warnings == ()
    (warning,) = read_items(path, text_columns=["description"]).warnings
    assert "column 'description' is used as name or text of the items, but is empty" in warning


def test_names_of_columns_may_be_separated_by_commas(tmp_path):
    path = written(tmp_path, "items.csv", 'item_id,kind,colour,"a,b"\n1,hat,red,x\n2,bag,blue,y\n')
    assert read_items(path, text_columns=["kind, colour"]).texts.to_list() == ["hat | red", "bag | blue"]
    assert read_items(path, text_columns=["a,b"]).texts.to_list() == ["x", "y"]
