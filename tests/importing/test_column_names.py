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
        ("user", ["用户ID", "商品ID"], "用户ID"),
        ("user", ["会员", "用户编号"], "用户编号"),
        ("user", ["用户", "会员"], "用户"),
        ("item", ["用户", "商品", "时间"], "商品"),
        ("item", ["商品", "商品编号"], "商品编号"),
        ("item", ["歌手 ID", "歌曲 ID"], "歌曲 ID"),
        ("item", ["视频号", "标题"], None),
        ("item", ["用户", "编号"], None),
        ("timestamp", ["下单时间", "时间戳"], "时间戳"),
        ("timestamp", ["观看时间"], None),
        ("rating", ["用户", "评分"], "评分"),
        ("rating", ["评价"], None),
        ("action", ["类型", "行为类型"], "行为类型"),
        ("action", ["类型"], None),
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
        (["商品", "标题", "类目", "价格"], "商品", "标题", ["标题", "类目"]),
        (["编号", "书名", "作者", "出版社"], "编号", "书名", ["书名", "作者", "出版社"]),
        (["电影ID", "电影名称", "电影类型", "上映年份"], "电影ID", "电影名称", ["电影名称", "电影类型"]),
        (["商品编号", "商品", "品牌"], "商品编号", "商品", ["商品", "品牌"]),
    ],
)
def test_names_of_item_tables(columns, item, name, texts):
    assert usual_columns(ITEM_TABLE_NAMES, columns)[0] == item
    assert usual_columns(NAME_COLUMNS, columns)[0] == name
    assert usual_columns(TEXT_COLUMNS, [column for column in columns if column != item]) == texts


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
