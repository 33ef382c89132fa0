from pathlib import Path

import pytest

from ugt_composer.errors import UserError
from ugt_composer.importing.actions import (
    counts_of_actions,
    in_histories,
    names_of_actions,
    with_actions,
    with_one_spelling,
)
from ugt_composer.importing.interactions import read_interactions
from ugt_composer.importing.log import Log


def logged(tmp_path: Path, **counts: int) -> Log:
    return logged_rows(tmp_path, [name for name, count in counts.items() for _ in range(count)])


def logged_rows(tmp_path: Path, actions: list[str]) -> Log:
    lines = "".join(f'u,{n},{n},"{action}"\n' for n, action in enumerate(actions))
    (tmp_path / "r.csv").write_text("user,item,ts,event\n" + lines)
    return Log.of(read_interactions(tmp_path / "r.csv"))


def question(log: Log) -> str:
    with pytest.raises(UserError) as error:
        in_histories(log, None, "r.csv")
    return str(error.value)


def test_several_actions_are_listed_with_a_suggestion(tmp_path):
    log = logged(tmp_path, impression=8, click=2)
    assert question(log) == (
        "r.csv: column 'event' holds 2 different actions: impression (8), click (2); say which of them form the "
        "histories: for example --positive-actions click (and for preference rows --chosen-actions click "
        "--rejected-actions impression), or --positive-actions all if every row is a choice of the user"
    )
    kept, warnings = in_histories(log, ("Click",), "r.csv")
    assert (kept, warnings) == (["click"], ())
    assert log.partitions.map(with_actions, kept)[0].sum() == 2
    assert in_histories(log, ("all",), "r.csv") == (None, ())


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        (["view", "view", "cart", "remove_from_cart", "buy"], "--positive-actions buy cart, or"),
        (["pv", "pv", "unlike"], "--positive-actions pv, or"),
        (["0", "0", "1"], "--positive-actions 1 (and for preference rows --chosen-actions 1 --rejected-actions 0)"),
        (["false", "true"], "--positive-actions true (and"),
        (["Dislike", "SKIP", "Add to List"], "--positive-actions 'Add to List' (and for preference rows"),
        (
            ["", "play"],
            "(empty) (1), play (1); say which of them form the histories: for example --positive-actions play",
        ),
        (["nan", "play"], "(empty) (1), play (1); say which"),
        (["click", "Removed From Wishlist", "Ad impression"], "--positive-actions click (and for preference rows"),
        (["impression", "skip"], "name those that form the histories with --positive-actions"),
        (["1", "2", "5"], "if these are ratings, name the column with --rating-column"),
        ([f"x{n}" for n in range(60)], "and 48 others; these do not look like actions: name another column"),
    ],
)
def test_suggestions(tmp_path, actions, said):
    assert said in question(with_one_spelling(logged_rows(tmp_path, actions))[0])


def test_a_column_of_another_name_is_known_by_its_values(tmp_path):
    lines = "".join(f"u,{n},{n},x,{action}\n" for n, action in enumerate(["like", "dislike", "dislike"]))
    (tmp_path / "r.csv").write_text("user,item,ts,type,feedback\n" + lines)
    log = Log.of(read_interactions(tmp_path / "r.csv"))
    assert (log.columns["action"], log.unused) == ("feedback", ("type",))
    assert "column 'feedback' holds 2 different actions: dislike (2), like (1)" in question(log)


def test_one_action_needs_no_option(tmp_path):
    assert in_histories(logged(tmp_path, click=3), None, "r.csv") == (None, ())
    (warning,) = in_histories(logged(tmp_path, Impression=3), None, "r.csv")[1]
    assert "has 'Impression' in every row" in warning


def test_spellings_become_one(tmp_path):
    log, warnings = with_one_spelling(logged_rows(tmp_path, ["click", "click", "Click", " click ", "view"]))
    assert counts_of_actions(log) == {"click": 4, "view": 1}
    assert warnings == ("column 'event': ' click ', 'Click' are read as 'click'; only case, blanks or .0 differ",)
    log, _ = with_one_spelling(logged_rows(tmp_path, ["1.0", "1.0", "1", "0", " "]))
    assert counts_of_actions(log) == {"1": 3, "0": 1, "": 1}


def test_actions_may_be_separated_by_commas(tmp_path):
    log = logged(tmp_path, click=3, buy=2, view=1)
    assert names_of_actions(counts_of_actions(log), ("click,Buy",), "--positive-actions") == ["click", "buy"]
    log = logged_rows(tmp_path, ["click, buy", "click"])
    names = names_of_actions(counts_of_actions(log), ("click, buy",), "--positive-actions")
    assert names == ["click, buy"], "an action's own comma"


def test_an_unknown_action_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--chosen-actions clik: no interaction has this action; did you mean click"):
        names_of_actions(counts_of_actions(logged(tmp_path, click=3)), ("clik",), "--chosen-actions")
