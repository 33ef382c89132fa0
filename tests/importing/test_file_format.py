from pathlib import Path

import pytest

from ugt_composer.errors import UserError
from ugt_composer.importing.file_format import FileFormat, is_wide
from ugt_composer.importing.settings import SourceSettings


@pytest.mark.parametrize(
    ("name", "kind", "separator"),
    [
        ("r.csv", "csv", ","),
        ("R.CSV.GZ", "csv", ","),
        ("r.tsv.zst", "tsv", "\t"),
        ("r.inter", "tsv", "\t"),
        ("r.item", "tsv", "\t"),
        ("r.json.gz", "jsonl", None),
        ("r.ndjson", "jsonl", None),
        ("r.parquet", "parquet", None),
        ("r.txt", "sequences", None),
    ],
)
def test_the_format_follows_from_the_extension(name, kind, separator):
    found = FileFormat().of(Path(name))
    assert (found.kind, found.separator, found.encoding) == (kind, separator, "utf-8")


@pytest.mark.parametrize("name", ["r.dat", "r", "r.txt", "r.csv"])
def test_a_separator_makes_a_table_of_text(name):
    assert FileFormat(separator="::").of(Path(name)).kind == "csv"


@pytest.mark.parametrize(
    ("interactions", "items", "given", "expected"),
    [
        ("ratings.dat", "movies.dat", {}, ("csv", "::", "iso8859-1")),
        ("ratings.dat", "movies.csv", {}, ("csv", ",", "utf-8")),
        ("ratings.dat", "movies.dat", {"items_separator": "|"}, ("csv", "|", "iso8859-1")),
        ("ratings.dat", "movies.dat", {"items_encoding": "utf-8"}, ("csv", "::", "utf-8")),
        ("ratings.dat", "movies.dat", {"items_format": "csv"}, ("csv", ",", "utf-8")),
        ("ratings.dat", "u.item", {"items_separator": ";"}, ("tsv", ";", "utf-8")),
    ],
)
def test_items_are_read_like_interactions_of_the_same_extension(interactions, items, given, expected):
    source = SourceSettings((Path(interactions),), separator="::", encoding="latin-1", items=Path(items), **given)
    written = source.items_written.of(Path(items))
    assert (written.kind, written.separator, written.encoding) == expected
    assert written.names is None, "columns of interactions are not those of items"


def test_encodings_whose_ascii_is_not_ascii_are_wide():
    assert [is_wide(name) for name in ("utf-16", "utf-32", "utf-7", "utf-8", "latin-1", "shift_jis")] == [
        *(True, True, True),
        *(False, False, False),
    ]


@pytest.mark.parametrize("separator", ["", '"', "a\nb"])
def test_separators_that_cannot_be_one_are_refused(separator):
    with pytest.raises(UserError, match="expected one or more characters"):
        FileFormat(separator=separator).of(Path("r.csv"))
