"""What the importer says about tables whose rows are not what they seem."""

import json
from typing import Any

import numpy as np
import pytest

from convert.interactions_to_jsonl import main
from ugt_composer.errors import UserError

USERS, ITEMS, EACH = 20, 15, 6
HEADER = "user,item,timestamp,rating"
START, WEEK = 1_500_000_000, 604_800
Row = tuple[Any, ...]


def table() -> list[Row]:
    random = np.random.default_rng(0)
    return [
        (f"u{user}", f"i{item}", START + WEEK * int(n), int(random.integers(1, 6)))
        for user in range(USERS)
        for n, item in zip(random.permutation(40)[:EACH], random.permutation(ITEMS)[:EACH], strict=True)
    ]


@pytest.fixture
def report(tmp_path):
    """report(rows, *options, header) → report.json of an import of these rows."""

    def run(rows: list[Row], *options: str, header: str = HEADER) -> dict:
        path = tmp_path / "rows.csv"
        path.write_text(header + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
        assert main([str(path), "--out", str(tmp_path / "out"), "--overwrite", "--dimensions", "4", *options]) == 0
        return json.loads((tmp_path / "out" / "report.json").read_text())

    return run


def test_an_ordinary_table_has_no_warnings(report, capsys):
    made = report(table())
    assert made["warnings"] == []
    assert made["times"]["first"] == "2017-07-21 02:40:00"
    assert "from 2017-07-21 02:40:00 to 2018-04-13 02:40:00 (seconds since 1970)" in capsys.readouterr().out


def test_rows_written_twice_are_left_out(report, capsys):
    twice = [row for row in table() for _ in range(2)]
    made = report(twice)
    assert (made["interactions"], made["duplicates"], made["positive"]) == (240, 120, 120)
    assert made["unreachable_targets"] == {"validation": 0, "test": 0}
    assert "120 of 240 rows repeat an earlier row with the same user, item, time and rating" in capsys.readouterr().err
    made = report(twice, "--keep-duplicates")
    assert (made["positive"], made["unreachable_targets"]["test"]) == (240, USERS)
    assert f"{USERS} of {USERS} test targets are already in the history of their row" in made["warnings"][-1]
    made = report(sorted(twice), "--file-order")
    assert (made["duplicates"], made["positive"]) == (0, 240)
    assert "120 of 240 rows have the same user and item as the row before" in made["warnings"][0]
    assert report(sorted(twice), "--file-order", "--repeats", "first")["positive"] == 120


@pytest.mark.parametrize("which", ["first", "last"])
def test_repeats_of_an_item_are_counted_and_can_be_left_out(report, which):
    rows = [(user, f"i{int(item[1:]) // 4}", time, rating) for user, item, time, rating in table()]
    repeated = len(rows) - len({row[:2] for row in rows})
    kept, made = report(rows), report(rows, "--repeats", which)
    assert kept["repeats"] == {"interactions": repeated, "users": USERS, "kept": "keep", "at_the_same_time": 0}
    assert kept["positive"] - made["positive"] == repeated
    assert kept["unreachable_targets"]["test"] > made["unreachable_targets"]["test"] == 0


def test_other_ratings_at_the_same_time_are_named(report):
    made = report([again for row in table() for again in (row, (*row[:3], int(row[3]) % 5 + 1))])
    assert made["duplicates"] == 0
    assert "120 times a user has an item again at the same time, with another rating" in made["warnings"][0]


def test_actions_are_counted_and_have_to_be_chosen(report, capsys):
    rows = [(*row[:3], "click" if n % 3 else "impression") for n, row in enumerate(table())]
    header = "user,item,timestamp,event"
    with pytest.raises(UserError, match=r"click \(80\), impression \(40\); say which of them form the histories"):
        report(rows, header=header)
    made = report(rows, "--positive-actions", "click", header=header)
    assert (made["actions"], made["positive"]) == ({"click": 80, "impression": 40}, 80)
    assert "actions: click 80, impression 40" in capsys.readouterr().out
    assert report(rows, "--positive-actions", "all", header=header)["positive"] == 120


def test_ratings_that_mean_not_rated_are_named(report):
    rows = [(*row[:3], -1 if n % 4 == 0 else row[3]) for n, row in enumerate(table())]
    (warning,) = report(rows)["warnings"]
    assert "30 of 120 ratings are 0 or less (-1: 30), which often means «not rated»" in warning
    assert "--missing-ratings -1; keep them out of histories with --min-rating 1" in warning
    made = report(rows, "--missing-ratings", "-1")
    assert (made["warnings"], made["ratings"]["missing"], made["positive"]) == ([], 30, 120)
    assert report(rows, "--missing-ratings", "-1", "--min-rating", "1")["positive"] == 90


def test_ratings_that_are_all_zero_give_no_preference_rows(report):
    made = report([(*row[:3], 0) for row in table()])
    assert made["preferences"]["why_none"] == "the largest rating is 0; give --chosen-min and --rejected-max"


def test_a_k_core_removes_users_and_items_everywhere(report, tmp_path):
    rare = [("rare user", "i0", START, 5), ("u0", "rare item", START, 5)]
    made = report(table() + rare, "--k-core", "3")
    assert made["k_core"] == {"k": 3, "rounds": 1, "users_removed": 1, "items_removed": 1, "interactions_removed": 2}
    assert (made["users"], made["positive"]) == (USERS, 120)
    assert "rare" not in (tmp_path / "out" / "catalogue.jsonl").read_text()
    with pytest.raises(UserError, match="--k-core 50: no interaction is left of the 120 positive ones"):
        report(table(), "--k-core", "50")


def test_training_later_than_the_test_items_is_counted(report):
    rows = [
        (user, item, START + int(user[1:]) * 100 * WEEK + n * WEEK, 5) for n, (user, item, *_) in enumerate(table())
    ]
    assert report(rows)["training_after_median_test_time"] == pytest.approx(0.5, abs=0.05)
    assert report(rows, "--split", "time")["training_after_median_test_time"] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--held-out-users", "0.99"], "--held-out-users 0.99 keeps all 20 users out of training"),
        (
            ["--split", "time", "--validation-from", "2001-01-01", "--test-from", "2018-01-01"],
            "--validation-from 2001-01-01: there is no interaction before it; the interactions are from 2017-07-21",
        ),
        (["--repeats", "first", "--min-rating", "5"], "the training part is empty: no user has two interactions"),
    ],
)
def test_an_empty_training_part_is_explained(report, options, said):
    rows = (
        table()
        if "--repeats" not in options
        else [(*row[:3], 5 if n % EACH < 3 else 1) for n, row in enumerate(table())]
    )
    with pytest.raises(UserError) as error:
        report(rows, *options)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--min-interactions", "50"],
            "no user has the 50 interactions of --min-interactions (the longest history has 6)",
        ),
        (
            ["--split", "time", "--validation-from", "2030-01-01", "--test-from", "2031-01-01"],
            "no interaction is in that part of the time; --validation-from 2030-01-01",
        ),
    ],
)
def test_empty_held_out_parts_are_explained(report, options, said):
    warnings = report(table(), *options)["warnings"]
    assert [warning.partition(":")[0] for warning in warnings] == [
        "validation.jsonl has no rows",
        "test.jsonl has no rows",
    ]
    assert all(said in warning for warning in warnings)
