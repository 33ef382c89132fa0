from pathlib import Path

import pytest

from ugt_composer.importing.file_format import FileFormat
from ugt_composer.importing.inputs import find_parts
from ugt_composer.importing.json_records import JsonObject, json_objects


def problems(folder: Path, lines: str, single: tuple[str, ...] = ()) -> list[str | None]:
    (folder / "r.jsonl").write_text(lines)
    (part,) = find_parts([folder / "r.jsonl"], FileFormat())
    return [item.problem for item in json_objects(part, single)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "found a list, expected one JSON object per line (a JSON array becomes that with: jq -c '.[]' FILE"),
        ("[", "found '[', expected one JSON object per line (a JSON array"),
        ("{'a': 1}", "expected one JSON object per line (this is a dictionary of Python, not JSON)"),
        ('{"a": 1},', "expected one JSON object per line"),
        ('{"a": {"$oid": "x"}}', """found 'a' with {"$oid": "x"}, expected a single value"""),
        ('{"a": [1, 2]}', "found 'a' with [1, 2], expected a single value"),
    ],
)
def test_lines_that_are_no_rows_are_named(tmp_path, line, said):
    good, bad = problems(tmp_path, f'{{"a": 1, "b": [1]}}\n{line}\n', single=("a",))
    assert good is None
    assert said in bad


def test_values_can_be_lists_where_they_are_texts(tmp_path):
    assert problems(tmp_path, '{"a": [1, 2]}\n\n{"a": {"b": 1}}\n') == [None, None]
    part = find_parts([tmp_path / "r.jsonl"], FileFormat())[0]
    assert list(json_objects(part))[1] == JsonObject(3, {"a": {"b": 1}})
