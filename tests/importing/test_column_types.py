import polars as pl
import pytest

from ugt_composer.errors import UserError
from ugt_composer.importing.interactions import read_interactions

TABLE = {"user": ["u"], "item": ["i"], "timestamp": [1_500_000_000], "rating": [1.0], "action": ["click"]}


@pytest.mark.parametrize(
    ("role", "value", "said"),
    [
        ("user", {"id": 1}, "column 'user' holds objects, expected ids, which are text or integers"),
        ("item", [1], "column 'item' holds lists, expected ids"),
        ("item", True, "column 'item' holds truth values, expected ids"),
        ("timestamp", [1], "column 'timestamp' holds lists, expected times, which are numbers, dates or text"),
        ("timestamp", None, "column 'timestamp' holds nothing, expected times"),
        ("timestamp", pl.duration(days=1), "column 'timestamp' holds durations, expected times"),
        ("rating", [1], "column 'rating' holds lists, expected ratings, which are numbers"),
        ("rating", pl.date(2020, 1, 1), "column 'rating' holds dates, expected ratings"),
        ("action", ["click"], "column 'action' holds lists, expected actions, which are text or numbers"),
    ],
)
def test_columns_of_another_type_are_named(tmp_path, role, value, said):
    table = pl.DataFrame(TABLE)
    values = value if isinstance(value, pl.Expr) else pl.Series(role, [value])
    table.with_columns(values.alias(role)).write_parquet(tmp_path / "r.parquet")
    with pytest.raises(UserError) as error:
        read_interactions(tmp_path / "r.parquet")
    assert said in str(error.value)
    assert str(error.value).endswith(f"name another column with --{role}-column")


def test_other_types_are_read(tmp_path):
    types = {"user": pl.Categorical, "item": pl.UInt64, "rating": pl.Boolean, "action": pl.Int8}
    table = pl.DataFrame(TABLE | {"item": [1], "rating": [True], "action": [1]})
    table.cast(types).write_parquet(tmp_path / "r.parquet")
    assert len(read_interactions(tmp_path / "r.parquet")) == 1
