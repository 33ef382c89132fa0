import polars as pl
import pytest

from ugt_composer.importing.file_format import FileFormat
from ugt_composer.importing.inputs import find_parts
from ugt_composer.importing.sample import first_values
from ugt_composer.importing.table import open_table

LINES = {
    "r.csv": 'user,kind\n1,"a"\n\n2,b\n3\n',
    "r.tsv": "user\tkind\n1\ta\n2\tb\n",
    "r.jsonl": '{"user": 1, "kind": "a", "more": [1]}\n{"user": 2}\n{"kind": "b"}\n',
}


@pytest.mark.parametrize("name", [*LINES, "r.parquet"])
def test_the_first_values_of_each_column(tmp_path, name):
    path = tmp_path / name
    if name in LINES:
        path.write_text(LINES[name])
    else:
        pl.DataFrame({"user": [1, 2, None], "kind": ["a", None, "b"], "more": [[1]] * 3}).write_parquet(path)
    table = open_table(find_parts([path], FileFormat()))
    assert first_values(table, table.names) == {"user": {"1", "2"}, "kind": {"a", "b"}}


def test_a_file_without_a_header(tmp_path):
    (tmp_path / "r.csv").write_text("1,a\n2,b\n")
    table = open_table(find_parts([tmp_path / "r.csv"], FileFormat(names=("user", "kind"))))
    assert first_values(table, ["kind"]) == {"kind": {"a", "b"}}
