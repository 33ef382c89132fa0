import polars as pl
import pytest

from ugt_composer.errors import UserError
from ugt_composer.importing.file_format import FileFormat
from ugt_composer.importing.interactions import Columns, read_interactions
from ugt_composer.importing.items import ITEMS_BY_EXTENSION, read_items

ROWS = ["user,item,timestamp", "u1,b,2", "u1,a,1"]
EXPECTED = [("u1", "a"), ("u1", "b")]


def written(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def listed(log):
    return list(zip(log.users[log.user], log.items[log.item], strict=True))


@pytest.mark.parametrize(
    ("separator", "given"),
    [(";", ";"), ("|", "|"), ("\t", "tab"), ("\t", "\\t"), ("\t", "\t"), ("::", "::"), (" ", "space"), (" | ", " | ")],
)
@pytest.mark.parametrize("name", ["r.csv", "r.dat", "r.txt", "r.unknown"])
def test_columns_separated_by_any_text(tmp_path, separator, given, name):
    path = written(tmp_path, name, "\n".join(ROWS).replace(",", separator))
    assert listed(read_interactions(path, file_format=FileFormat(separator=given))) == EXPECTED


def test_blanks_around_values_do_not_matter(tmp_path):
    path = written(tmp_path, "r.csv", "user, item, timestamp, rating\nu1, b, 2, 4.5\nu1, a , 1, \n")
    log = read_interactions(path)
    assert listed(log) == EXPECTED
    assert log.rating[1] == 4.5


def test_quoted_fields_of_other_separators_than_tabs(tmp_path):
    text = 'user;item;timestamp\nu1;"b;c";1\n"u1";"a""d";2\n'
    log = read_interactions(written(tmp_path, "r.csv", text), file_format=FileFormat(separator=";"))
    assert listed(log) == [("u1", "b;c"), ("u1", 'a"d')]
    log = read_interactions(written(tmp_path, "r.tsv", 'user\titem\ttimestamp\nu1\t7" tab\t1\n'))
    assert listed(log) == [("u1", '7" tab')]


def test_a_header_may_name_its_columns_with_blanks_or_not_at_all(tmp_path):
    log = read_interactions(written(tmp_path, "r.csv", ", user ,item,timestamp\n0,u1,b,2\n1,u1,a,1\n"))
    assert listed(log) == EXPECTED


def test_names_of_the_first_columns_are_enough(tmp_path):
    path = written(tmp_path, "u.item", "1|Café (1990)|01-Jan|0|1\n2|A|||\n".encode("latin-1"))
    form = FileFormat(separator="|", encoding="latin-1", names=("item", "title"), option="--items-")
    assert read_items(path, file_format=form).names.to_list() == ["Café (1990)", "A"]


@pytest.mark.parametrize(
    ("name", "text", "form", "said"),
    [
        ("r.csv", "a;b;c\n", {}, "found only one column, 'a;b;c'; its columns seem to be separated otherwise: give "),
        ("r.csv", "a\tb\n", {}, "give --separator tab"),
        ("r.csv", "a::b\n", {}, "give --separator '::'"),
        ("r.tsv", "a,b\n", {}, "give --separator ','"),
        ("r.csv", '"a";"b"\n"c";"d"\n', {}, "its columns seem to be separated otherwise: give --separator ';'"),
        ("r.csv", '"a"\t"b"\n', {}, "give --separator tab"),
        ("r.inter", "a|b\n", {}, "give --separator '|'"),
        (
            "r.csv",
            "a::b::c\n",
            {"separator": ":"},
            "every second column of its first line is empty (a, , b, , c); give ",
        ),
        (
            "r.dat",
            "x",
            {},
            "or give --format (csv, tsv, jsonl, parquet, mind, sequences), or --separator for a table of text",
        ),
        ("r.csv", "x", {"separator": ""}, "--separator '': expected one or more characters"),
        ("r.jsonl", "{}", {"separator": ";"}, "--separator is for tables of text, but this file is read as jsonl"),
        ("r.parquet", "x", {"encoding": "latin-1"}, "--encoding is for files of text"),
        ("r.parquet", "x", {}, "r.parquet: is no Parquet file"),
        ("r.parquet", "", {}, "r.parquet: is empty, expected a Parquet file"),
        ("r.parquet", "PAR1xx", {}, "r.parquet: is a Parquet file that is cut short"),
        ("r.parquet", "PAR1xxxxxxxxxxxxPAR1", {}, "r.parquet: cannot be read; expected a complete and undamaged table"),
        (
            "r.csv",
            "196,242,3,881250949\n",
            {},
            "none of its columns (196, 242, 3, 881250949) looks like the user; name it with --user-column, or if the "
            "file has no header line, name its columns in order with --columns, as in user,item,rating,timestamp",
        ),
        (
            "r.csv",
            "u1,u1,1\n",
            {},
            "its header line has 'u1' twice; rename one, or if the file has no header line, name",
        ),
        ("r.csv", "u,i,1\n", {"names": ("user", "item", "item")}, "--columns user,item,item: expected different names"),
        ("r.csv", "u,i,1\n", {"names": ("user", "", "ts")}, "a column that is not used can have any name"),
        ("r.csv", "u,i,1\n", {"names": ("user item ts",)}, "separated by commas, such as user,item,timestamp"),
        ("r.parquet", "u,i,1\n", {}, "is no Parquet file, expected a Parquet file; if it is another table, give its"),
        ("r.csv", b"PAR1abc", {}, "is a Parquet file, expected text; let its name end in .parquet, and give no other"),
        ("r.csv", "u,i,1\n", {"names": tuple("abcd")}, "--columns names 4 columns, but line 1 has 3"),
        (
            "r.csv",
            "user,item\nu,i\n",
            {"names": ("user", "item")},
            "line 1 has the column name 'user'; --columns is for",
        ),
        ("r.csv", b"us\xffer,item\n", {}, "r.csv, line 1: found bytes that are not UTF-8"),
        ("r.csv", "user;item;ts, UTC\n1;2;3\n", {}, "or separate them otherwise with --separator ';'"),
        ("r.jsonl", '[{"user": 1}]', {}, "r.jsonl, line 1: found a list, expected one JSON object per line"),
        ("r.json", '{\n"user": 1}', {}, "r.json, line 1: found '{', expected one JSON object per line"),
        ("r.csv", "user,item,timestamp\nu\nu\nu,i,1\n", {"skip": True}, "2 of 3 rows are damaged, which are too many"),
        ("s.txt", "user,item\nu,i\nv\nw\nu a b\n", {"skip": True}, "(if it is a table, give --format or --separator)"),
    ],
)
def test_what_is_no_table_of_this_format_is_said_without_words_of_the_engine(tmp_path, name, text, form, said):
    skip = form.pop("skip", False)
    with pytest.raises(UserError) as error:
        read_interactions(written(tmp_path, name, text), file_format=FileFormat(**form), skip_bad=skip)
    assert said in str(error.value)
    assert not any(word in str(error.value).lower() for word in ("polars", "schema", "dtype", "ragged", "\n"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("items.dat", "x", "or give --items-format"),
        ("items.csv", "item;title\n1;a\n", "give --items-separator ';'"),
        (
            "items.csv",
            "7,Seven\n8,Eight\n",
            "name it with --items-column, or if the file has no header line, name its ",
        ),
        ("items.txt", "1 a\n", "expected a table of items; give its format with --items-format"),
        (
            "items.csv",
            b"item,title\n1,\xe9\n",
            "line 2: found bytes that are not UTF-8, expected text in UTF-8; if the ",
        ),
    ],
)
def test_messages_about_items_name_the_options_of_items(tmp_path, name, text, said):
    with pytest.raises(UserError) as error:
        read_items(written(tmp_path, name, text))
    assert said in str(error.value)
    assert "--items-" in str(error.value)
    assert ITEMS_BY_EXTENSION.option == "--items-"


def test_json_values_become_text(tmp_path):
    lines = [
        '{"user": 7, "item": "b", "timestamp": 2.0, "rating": 5.0, "style": {"size": "s"}}',
        "",
        '{"item": "a", "user": 7.0, "rating": null, "timestamp": 1, "more": NaN}',
    ]
    log = read_interactions(written(tmp_path, "r.jsonl", "\n".join(lines)))
    assert listed(log) == [("7", "a"), ("7", "b")]
    assert log.time.tolist() == [1, 2]
    assert log.rating.tolist()[1] == 5


@pytest.mark.parametrize(
    "line",
    ['{"user": 1', "{'user': 1}", "[1]", "7", '"a"', "null", "nonsense", '{"a": "\\ud800"}', '{"a": ' + "[" * 9999],
)
def test_a_line_that_is_no_json_object_is_named_and_can_be_skipped(tmp_path, line):
    good = '{"user": "u", "item": "i", "timestamp": 1}'
    path = written(tmp_path, "r.jsonl", f"{good}\n\n{line}\n{good}\n")
    with pytest.raises(UserError, match=r"r\.jsonl, line 3: found .*, expected one JSON object per line.*; fix it"):
        read_interactions(path)
    assert read_interactions(path, skip_bad=True).skipped == 1


def test_a_value_of_json_lines_is_named_by_its_line(tmp_path):
    path = written(
        tmp_path, "r.ndjson", '\n{"user": "u", "item": "i", "timestamp": 1}\n{"user": "u", "timestamp": 2}\n'
    )
    with pytest.raises(UserError, match=r"r\.ndjson, line 3: column 'item': found nothing"):
        read_interactions(path)


def test_nested_lists_of_items_become_text(tmp_path):
    nested = [["Beauty", "Hair"], ["Care"]]
    json_lines = written(
        tmp_path,
        "a.jsonl",
        '{"asin": "1", "title": "T", "categories": [["Beauty", "Hair"], ["Care"]], "features": []}\n',
    )
    pl.DataFrame({"asin": ["1"], "title": ["T"], "categories": [nested]}).write_parquet(tmp_path / "a.parquet")
    for path in (json_lines, tmp_path / "a.parquet"):
        assert read_items(path).texts.to_list() == ["T | Beauty, Hair, Care"]


def test_columns_may_be_named_in_a_table_of_any_format(tmp_path):
    path = written(tmp_path, "r.jsonl", '{"a": 1, "b": 2, "c": 3}\n')
    assert listed(read_interactions(path, Columns("a", "b", "c"))) == [("1", "2")]
