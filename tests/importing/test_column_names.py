from pathlib import Path

import pytest

from ugt_composer.errors import UserError
from ugt_composer.importing.column_names import (
    ITEM_TABLE_NAMES,
    NAME_COLUMNS,
    TEXT_COLUMNS,
    find_column,
    named_column,
    usual_columns,
)

PATH = Path("t.csv")


@pytest.mark.parametrize(
    ("role", "columns", "expected"),
    [
        ("user", ["User ID", "Movie"], "User ID"),
        ("user", ["user_id:token", "item_id:token"], "user_id:token"),
        ("user", ["session_id", "customer-id"], "customer-id"),
        ("item", ["asin", "parent_asin"], "parent_asin"),
        ("item", ["movie_id", "item_id"], "item_id"),
        ("item", ["album_id", "artist_id", "track_id"], "track_id"),
        ("item", ["User-ID", "ISBN", "Book-Rating"], "ISBN"),
        ("item", ["News ID"], "News ID"),
        ("item", ["product_code", "article_id"], "article_id"),
        ("item", ["store_id", "SKU"], "SKU"),
        ("item", ["product_code"], "product_code"),
        ("item", ["user", "id"], None),
        ("timestamp", ["date", "timestamp"], "timestamp"),
        ("timestamp", ["t_dat"], "t_dat"),
        ("timestamp", ["Created At"], "Created At"),
        ("rating", ["Book-Rating"], "Book-Rating"),
        ("action", ["Event Type"], "Event Type"),
    ],
)
def test_usual_names_are_found_without_case_blanks_and_types(role, columns, expected):
    assert find_column(role, None, columns, PATH, "--x") == expected


@pytest.mark.parametrize(
    ("columns", "item", "name", "texts"),
    [
        (
            ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"],
            "item_id:token",
            "movie_title:token_seq",
            ["movie_title:token_seq", "class:token_seq"],
        ),
        (["id", "Product Title", "price"], "id", "Product Title", ["Product Title"]),
        (
            ["news_id", "category", "subcategory", "title", "abstract"],
            "news_id",
            "title",
            ["title", "abstract", "category", "subcategory"],
        ),
        (["track_id", "artist_name", "track_name"], "track_id", "track_name", ["track_name", "artist_name"]),
        (["ISBN", "Book-Title", "Book-Author"], "ISBN", "Book-Title", ["Book-Title", "Book-Author"]),
        (["business_id", "name", "categories"], "business_id", "name", ["name", "categories"]),
    ],
)
def test_names_of_item_tables(columns, item, name, texts):
    assert usual_columns(ITEM_TABLE_NAMES, columns)[0] == item
    assert usual_columns(NAME_COLUMNS, columns)[0] == name
    assert usual_columns(TEXT_COLUMNS, columns) == texts


def test_a_name_that_the_user_gives_is_exact_before_it_is_alike():
    columns = ["movie_title:token_seq", "year", "Year", "YEAR "]
    assert named_column("Movie Title", columns, PATH, "--name-column") == "movie_title:token_seq"
    assert named_column("Year", columns, PATH, "--name-column") == "Year"
    with pytest.raises(UserError, match="--name-column 'yEAR' can mean 'year' and 'Year' and 'YEAR '"):
        named_column("yEAR", columns, PATH, "--name-column")
    with pytest.raises(UserError, match=r"t\.csv: has no column 'yeer' \(--x\); did you mean year"):
        named_column("yeer", columns, PATH, "--x")


def test_of_two_columns_alike_the_first_is_taken():
    assert usual_columns(("title",), ["Title", "title"]) == ["Title"]
