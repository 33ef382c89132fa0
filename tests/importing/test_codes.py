from pathlib import Path

import pytest

from ugt_composer.errors import UserError
from ugt_composer.importing.codes import parse_codes, read_json

PATH = Path("index.json")


def test_numbers_tokens_and_texts_of_tokens_are_codes():
    given = {
        "1": [12, 3, 200],
        "2": ["<a_12>", "<b_3>", "<c_201>", "<d_0>"],
        "3": "<a_1><b_2><c_3>",
        "4": ["a_1", "7", "2"],
        "5": [1.0, 7.0, 2],
    }
    items, codes = parse_codes(PATH, given)
    assert items.to_list() == ["1", "2", "3", "4", "5"]
    assert codes == [(12, 3, 200), (12, 3, 201, 0), (1, 2, 3), (1, 7, 2), (1, 7, 2)]


@pytest.mark.parametrize(
    "value", [[], "", [1.5], [-1], [True], ["<a>"], None, [None], [2**31], ["<a_99999999999>"], {"a": 1}]
)
def test_an_invalid_code_is_named_with_its_item(value):
    with pytest.raises(UserError, match=r"index\.json: item 'x': found "):
        parse_codes(PATH, {"ok": [1, 2, 3], "x": value})


@pytest.mark.parametrize("given", [[], {}, [[1, 2, 3]], "x"])
def test_a_value_that_is_not_an_object_is_refused(given):
    with pytest.raises(UserError, match="expected an object such as"):
        parse_codes(PATH, given)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: cannot be read \(No such file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match=r"bad\.json: is not JSON"):
        read_json(tmp_path / "bad.json")
    (tmp_path / "twice.json").write_text('{"1": [1], "2": [2], "1": [3]}')
    with pytest.raises(UserError, match=r"twice\.json: '1' occurs twice"):
        read_json(tmp_path / "twice.json")
