"""The file with the names of actions: where it is found, and mistakes in it."""

import re

import pytest

from ugt_composer.conversion.action_names import action_names
from ugt_composer.errors import UserError
from ugt_composer.jsonl.sources import find_sources


def sources(tmp_path, *folders):
    paths = []
    for folder in folders:
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / "rows.jsonl"
        path.write_text("{}\n")
        paths.append(str(path))
    return find_sources(paths, tmp_path / "out")


def test_the_file_is_found_beside_the_input(tmp_path):
    rows = sources(tmp_path, "a", "b")
    assert action_names(None, rows) == (None, None)
    (tmp_path / "b" / "actions.json").write_text('["view", "b\\u00fay"]')
    assert action_names(None, rows) == (("view", "búy"), None)
    assert action_names("none", rows) == (None, None)
    (tmp_path / "a" / "actions.json").write_text('[ "view","búy" ]', "utf-8")
    assert action_names(None, rows) == (("view", "búy"), None), "two files with the same names"


def test_different_files_beside_the_input_are_not_used(tmp_path):
    rows = sources(tmp_path, "a", "b")
    (tmp_path / "a" / "actions.json").write_text('["view"]')
    (tmp_path / "b" / "actions.json").write_text('["buy"]')
    names, warning = action_names(None, rows)
    assert names is None
    assert "differ, so actions have no names; name one of them by --actions" in warning
    assert action_names(str(tmp_path / "b" / "actions.json"), rows) == (("buy",), None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not JSON"),
        ("{}", "found {}, expected a list of names"),
        ("[]", "found [], expected a list of names"),
        ('["a", 3]', 'found ["a", 3], expected a list of names'),
        ('["a", ""]', "expected a list of names"),
        ('["a", "b", "a"]', 'found "a" twice'),
    ],
)
def test_a_mistake_is_named(tmp_path, text, message):
    rows = sources(tmp_path, "a")
    file = tmp_path / "a" / "actions.json"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(f"--actions {file}: ") + ".*" + re.escape(message)):
        action_names(str(file), rows)
    names, warning = action_names(None, rows)
    assert names is None
    assert message in warning


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--actions .*/no.json: No such file"):
        action_names(str(tmp_path / "no.json"), sources(tmp_path, "a"))
