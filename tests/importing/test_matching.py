from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ugt_composer.errors import UserError
from ugt_composer.importing.interactions import Interactions, read_interactions
from ugt_composer.importing.items import Items, read_items
from ugt_composer.importing.matching import Matches, form_hint, match_codes, match_items


def read(folder: Path, interactions: list[str], table: list[str]) -> tuple[Interactions, Items]:
    (folder / "r.csv").write_text("user,item,ts\n" + "".join(f"u,{item},{t}\n" for t, item in enumerate(interactions)))
    (folder / "items.csv").write_text("item,title\n" + "".join(f"{item},text\n" for item in table))
    return read_interactions(folder / "r.csv"), read_items(folder / "items.csv")


def match(log: Interactions, known: Items | None, max_unmatched: float) -> Matches:
    return match_items(log.items, np.bincount(log.item, minlength=len(log.items)), known, max_unmatched)


@pytest.mark.parametrize(
    ("interactions", "table"),
    [(["1.0", "2.0", "3.0"], ["1", "2", "3"]), (["1", "2", "3"], ["1.0", "2.00", "3"]), ([" a", "b "], ["a", "b"])],
)
def test_the_same_items_in_other_forms_match(tmp_path, interactions, table):
    log, known = read(tmp_path, interactions, table)
    matches = match(log, known, 0)
    assert (matches.facts["not_in_table"], matches.facts["table_without_interactions"]) == (0, 0)
    assert matches.warnings == ()


def test_items_that_one_file_lacks_are_counted_and_named(tmp_path):
    log, known = read(tmp_path, ["a", "b", "b", "c"], ["a", "c", "d"])
    matches = match(log, known, 0.5)
    assert matches.facts == {
        "items_of_interactions": 3,
        "not_in_table": 1,
        "interactions_not_in_table": 2,
        "first_not_in_table": ["b"],
        "table_without_interactions": 1,
        "first_without_interactions": ["d"],
    }
    assert (
        "items.csv: lacks 1 of the 3 items of the interactions (33%; 2 of 4 interactions): 'b'" in matches.warnings[0]
    )
    with pytest.raises(UserError, match=r"expected at most a fraction of 0\.2.*--items-column.*--max-unmatched 1"):
        match(log, known, 0.2)


def test_a_table_with_many_more_items_is_right(tmp_path):
    log, known = read(tmp_path, ["1"], [str(n) for n in range(100)])
    assert match(log, known, 0).warnings == ()


@pytest.mark.parametrize(
    ("ours", "theirs", "what"),
    [
        (
            ["007", "010"],
            ["7", "10"],
            "2 of them match without regard to leading zeros: '007' in the interactions is '7'",
        ),
        (["a12", "b"], ["A12", "B"], "upper and lower case: 'a12' in the interactions is 'A12' in the table"),
        (["1.0", "x.0"], ["1", "x"], "a '.0' at the end"),
        (["a-1", "a-2"], ["a1", "a2"], "blanks and punctuation"),
        (["item_1", "item_2"], ["1", "2"], "the letters before the number"),
        (["caf\u00e9"], ["cafe\u0301"], "the form of letters and digits in Unicode"),
        (["a:x1z", "a:y"], ["https://host/x1z", "y"], "what comes before the last ':' or '/'"),
        (["Ab-01"], ["ab1x", "ab01"], "case, zeros and punctuation"),
    ],
)
def test_ids_that_are_only_written_differently_are_shown(ours, theirs, what):
    assert what in form_hint(pl.Series(ours), pl.Series(theirs), "the table")


def test_other_ids_have_no_hint():
    assert form_hint(pl.Series(["a", "b"]), pl.Series(["c", "1"]), "the table") == ""
    assert form_hint(pl.Series(["a"]), pl.Series([], dtype=pl.String), "the table") == ""


def test_without_a_table_there_is_nothing_to_match(tmp_path):
    log, known = read(tmp_path, ["1"], ["1"])
    assert match(log, None, 0.5).facts == {}
    assert match(log, replace(known, table=None), 0.5).facts == {}
    assert np.array_equal(log.item, [0])


def test_codes_match_a_table_or_are_named(tmp_path):
    _, known = read(tmp_path, ["1"], ["a", "b", "c"])
    assert match_codes(pl.Series(["a", "b"]), known, 0) == ()
    assert (
        "lacks 1 of the 2 items of the file of codes or vectors (50%): 'x'"
        in match_codes(pl.Series(["a", "x"]), known, 0.5)[0]
    )
    with pytest.raises(UserError, match="'A' in the file of codes or vectors is 'a' in the table"):
        match_codes(pl.Series(["A", "B"]), known, 0.5)


def test_the_column_that_has_the_ids_is_suggested(tmp_path):
    log, _ = read(tmp_path, ["1", "2"], ["1"])
    (tmp_path / "two.csv").write_text("item_id,number,title\n7,1.0,x\n8,2.0,y\n")
    with pytest.raises(UserError, match=r"with --items-column \('number' has 2 of the 2 ids\), or import"):
        match(log, read_items(tmp_path / "two.csv"), 0.5)
    (warning,) = match(log, read_items(tmp_path / "two.csv"), 1).warnings
    assert warning.endswith("is another column the item ('number' has 2 of the 2 ids)? See --items-column")
    (tmp_path / "none.csv").write_text("item_id,number,title\n7,5,x\n8,6,y\n")
    with pytest.raises(UserError, match="with --items-column, or import"):
        match(log, read_items(tmp_path / "none.csv"), 0.5)
