"""Actions, times and what histories hold, compared with plain loops over the table."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.interactions_to_jsonl import main

START = 1_400_000_000  # in 2014
LIKED = 4.0
Interaction = tuple[str, str, float | None, int]  # user, item, rating, seconds


def write(folder: Path, table: list[Interaction]) -> Path:
    """The table, and codes for its items, so that no ids have to be made."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame(table, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    frame.write_csv(folder / "ratings.csv")
    items = sorted({item for _, item, _, _ in table})
    codes = {item: [n % 3, n % 2, n] for n, item in enumerate(items)}
    (folder / "codes.json").write_text(json.dumps(codes))
    return folder / "ratings.csv"


def run(source: Path, name: str, *options: object) -> Path:
    out = source.parent / name
    arguments = [source, "--codes", source.parent / "codes.json", "--out", out, *options]
    assert main(list(map(str, arguments))) == 0
    return out


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


class Import:
    """The rows of an import, in terms of the table's items and names of actions."""

    def __init__(self, out: Path):
        self.out = out
        self.item_of = {
            tuple(row[f"l{level}_id"] for level in (1, 2, 3)): row["item_id"] for row in read(out / "catalogue.jsonl")
        }
        names = out / "actions.json"
        self.actions = [None, *json.loads(names.read_text("utf-8"))] if names.exists() else []

    def items(self, row: dict, side: str) -> list[str]:
        triples = zip(*(row[f"{side}_l{level}_ids"] for level in (1, 2, 3)), strict=True)
        return [self.item_of[triple] for triple in triples if triple != (1, 1, 1)]

    def history(self, row: dict) -> list[tuple[str, str | None, int]]:
        """(item, action, seconds), without the user's token."""
        actions = row.get("encoder_actions")
        names = [None] * len(row["encoder_mask"]) if actions is None else [self.actions[a] for a in actions]
        assert names[0] is None
        assert row["encoder_times"][0] == row["encoder_times"][1]
        return list(zip(self.items(row, "encoder"), names[1:], row["encoder_times"][1:], strict=True))

    def rows(self, name: str) -> list[tuple]:
        """(user, history, targets with their seconds, number of earlier items)."""
        return [
            (
                row["user_id"],
                self.history(row),
                list(zip(self.items(row, "decoder"), row["decoder_times"], strict=True)),
                row.get("earlier_items", 0),
            )
            for row in read(self.out / f"{name}.jsonl")
        ]


def of_user(table: list[Interaction], user: str) -> list[Interaction]:
    """A user's interactions, oldest first, without those that equal an earlier one."""
    return sorted(dict.fromkeys(row for row in table if row[0] == user), key=lambda row: row[3])


def is_liked(row: Interaction) -> bool:
    return row[2] is not None and row[2] >= LIKED


def without_repeats(rows: list[Interaction], repeats: str) -> list[Interaction]:
    if repeats == "keep":
        return rows
    kept = {}
    for row in rows if repeats == "first" else reversed(rows):
        kept.setdefault((row[1], is_liked(row)), row)
    return [row for row in rows if row in kept.values()]


def twin(table: list[Interaction], history: str, repeats: str, most: int, targets: int) -> dict[str, list[tuple]]:
    """The rows of every part, by plain loops."""
    found: dict[str, list[tuple]] = {"train": [], "validation": [], "test": []}
    known: set[float | None] = set()  # ratings of the training interactions of histories
    for user in sorted({row[0] for row in table}):
        events = without_repeats(of_user(table, user), repeats)
        liked = [row for row in events if is_liked(row)]
        held_out = liked[-2:] if len(liked) >= 3 else []
        events = [row for row in events if history == "all" or is_liked(row)]
        known |= {row[2] for row in (_before(events, held_out[0]) if held_out else events)}
        trained = liked[: len(liked) - len(held_out)]
        for cut in range(1, len(trained)):
            found["train"].append((user, _before(events, trained[cut]), trained[cut : cut + targets]))
        for part, target in zip(("validation", "test"), held_out, strict=False):
            found[part].append((user, _before(events, target), [target]))
    ratings = sorted(rating for rating in known if rating is not None)

    def name(rating: float | None) -> str | None:
        """That of the nearest rating of a training interaction."""
        if rating is None or len(known) < 2:
            return None
        return f"rated {min(ratings, key=lambda other: abs(other - rating)):g}"

    cut_anywhere = {part: any(len(events) > most for _, events, _ in rows) for part, rows in found.items()}
    return {
        part: [
            (
                user,
                [(item, name(rating), time) for _, item, rating, time in events[-most:]],
                [(item, time) for _, item, _, time in wanted],
                max(len(events) - most, 0) if cut_anywhere[part] else 0,
            )
            for user, events, wanted in rows
        ]
        for part, rows in found.items()
    }


def _before(events: list[Interaction], target: Interaction) -> list[Interaction]:
    return events[: events.index(target)]


interactions = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from("123456"),
        st.sampled_from([None, 1.0, 2.5, 4.0, 5.0]),
        st.integers(START, START + 9),
    ),
    min_size=1,
    max_size=30,
)
base = [("a", str(n), 5.0 - n % 2, START + n) for n in range(1, 5)]  # so that there is a training part


@settings(max_examples=30, deadline=None)
@given(
    interactions, st.sampled_from(["positive", "all"]), st.sampled_from(["keep", "first", "last"]), st.integers(1, 6)
)
def test_rows_are_those_of_plain_loops(tmp_path_factory, table, history, repeats, most):
    table = [*base, *table, ("d", "9", 1.0, START + 10)]
    folder = tmp_path_factory.mktemp("table")
    options = ("--min-rating", LIKED, "--history", history, "--repeats", repeats, "--max-history", most)
    out = run(write(folder, table), "out", *options, "--cuts-per-user", "all", "--max-targets", 2, "--no-preferences")
    expected, imported = twin(table, history, repeats, most, 2), Import(out)
    for part, rows in expected.items():
        assert imported.rows(part) == rows, part


def pairs_table(changed: int = 0) -> list[Interaction]:
    """Every user rates twelve different items, one a minute; `changed` users' last ratings and times are others."""
    rows: list[Interaction] = []
    ratings = np.random.default_rng(0).integers(1, 6, (30, 12)).tolist()
    for user in range(30):
        for at in range(12):
            rating = float(ratings[user][at])
            late = user < changed and at > 8
            seconds = START + 1000 * user + 60 * at + 7 * late * at
            rows.append((f"u{user}", str((user + at * 5) % 13), rating % 5 + 1 if late else rating, seconds))
    return rows


@pytest.mark.parametrize("history", ["positive", "all"])
def test_histories_of_preferences_end_before_both_items_of_the_pair(tmp_path, history):
    table = pairs_table()
    out = run(write(tmp_path, table), "out", "--min-rating", LIKED, "--history", history, "--pairs-per-user", "all")
    imported, count = Import(out), 0
    for name in ("train_preference", "validation_preference"):
        for row in read(out / f"{name}.jsonl"):
            items = [imported.item_of[tuple(item.values())] for item in (row["chosen_item"], *row["rejected_items"])]
            events = of_user(table, row["user_id"])
            earliest = min(at for at, event in enumerate(events) if event[1] in items)
            assert row["decoder_times"] == events[earliest][3]
            kept = [event for event in events[:earliest] if history == "all" or is_liked(event)]
            assert imported.history(row["user_sequence"]) == [(i, f"rated {r:g}", time) for _, i, r, time in kept]
            count += 1
    assert count == 40


def test_histories_that_hold_everything_change_nothing_but_histories(tmp_path):
    source = write(tmp_path, pairs_table())
    outs = [run(source, name, "--min-rating", LIKED, "--history", name) for name in ("positive", "all")]
    for file in ("catalogue.jsonl", "semantic_ids.json"):
        assert outs[0].joinpath(file).read_bytes() == outs[1].joinpath(file).read_bytes()
    for file in sorted(path.name for path in outs[0].glob("*.jsonl") if path.name != "catalogue.jsonl"):
        rows = [read(out / file) for out in outs]
        assert len(rows[0]) == len(rows[1]) > 0
        for fewer, more in zip(*rows, strict=True):
            for row in (fewer, more):
                for key in [key for key in row if key.startswith("encoder_") or key == "user_sequence"]:
                    del row[key]
            assert fewer == more


@pytest.mark.parametrize("options", [(), ("--history", "all"), ("--split", "time", "--history", "all")])
def test_later_ratings_and_times_change_nothing_that_comes_before_them(tmp_path, options):
    """The three last ratings of some users are others, at other times: their rows that end before them stay."""
    before, after = (
        run(write(tmp_path / str(changed), pairs_table(changed)), "out", "--cuts-per-user", "all", *options)
        for changed in (0, 3)
    )
    rows = [Import(out).rows("train") for out in (before, after)]
    latest = {(f"u{user}"): START + 1000 * user + 60 * 8 for user in range(3)}
    kept = [[row for row in of if row[2][-1][1] <= latest.get(row[0], START * 2)] for of in rows]
    assert kept[0] == kept[1] != []
    assert (before / "actions.json").read_bytes() == (after / "actions.json").read_bytes()


def remapped(row: Interaction) -> Interaction:
    """Another rating, which no other interaction has, on the same side of every threshold, a second later."""
    user, item, rating, seconds = row
    assert rating is not None
    return user, item, 4.5 if rating >= 4 else 1.5 if rating <= 2 else 3.5, seconds + 1


@pytest.mark.parametrize("history", ["positive", "all"])
@pytest.mark.parametrize("split", ["leave-one-out", "time"])
def test_ratings_and_times_of_held_out_interactions_are_in_no_training_row(tmp_path, history, split):
    table, start = pairs_table(), START + 15_000
    changed = []
    for user in sorted({row[0] for row in table}):
        events = of_user(table, user)
        liked = [row for row in events if is_liked(row)]
        if split == "time":
            first = sum(row[3] < start for row in events)
        else:
            first = events.index(liked[-2]) if len(liked) >= 3 else len(events)
        changed += [*events[:first], *map(remapped, events[first:])]
    assert changed != table
    options = ("--min-rating", LIKED, "--history", history, "--cuts-per-user", "all", "--split", split)
    bounds = ("--validation-from", start, "--test-from", start + 7_000) if split == "time" else ()
    before, after = (
        run(write(tmp_path / name, rows), "out", *options, *bounds)
        for name, rows in (("before", table), ("after", changed))
    )
    for name in ("train.jsonl", "train_preference.jsonl", "actions.json", "catalogue.jsonl"):
        assert (before / name).read_bytes() == (after / name).read_bytes(), name
    assert (before / "test.jsonl").read_bytes() != (after / "test.jsonl").read_bytes()


def test_the_largest_held_out_rating_moves_no_threshold_of_training_pairs(tmp_path):
    table = pairs_table()
    start = max(row[3] for row in table if row[0] == "u0")
    higher = [(*row[:2], 50.0, row[3]) if row[3] == start and row[0] == "u0" else row for row in table]
    assert higher != table
    before, after = (run(write(tmp_path / str(n), rows), "out") for n, rows in enumerate((table, higher)))
    assert (before / "train_preference.jsonl").read_bytes() == (after / "train_preference.jsonl").read_bytes()


def test_signals_can_be_left_out_one_by_one(tmp_path):
    source = write(tmp_path, pairs_table())
    written = {name: run(source, name, "--signals", name) for name in ("all", "actions", "times", "none")}
    optional = {"encoder_actions", "encoder_times", "decoder_times"}
    for name, keys in {
        "all": optional,
        "actions": {"encoder_actions"},
        "times": {"encoder_times", "decoder_times"},
        "none": set(),
    }.items():
        for row in read(written[name] / "train.jsonl"):
            assert optional & row.keys() == keys
        assert (written[name] / "actions.json").exists() == (name in ("all", "actions"))
    bare = [
        {key: value for key, value in row.items() if key not in optional}
        for row in read(written["all"] / "train.jsonl")
    ]
    assert bare == read(written["none"] / "train.jsonl")


def test_the_report_counts_actions_and_says_why_there_are_no_times(tmp_path, capsys):
    table = [(user, item, rating, time - START) for user, item, rating, time in pairs_table()]
    out = run(write(tmp_path, table), "out", "--min-rating", LIKED, "--history", "all")
    facts = json.loads((out / "report.json").read_text())["histories"]
    counts = {f"rated {stars}": sum(row[2] == stars for row in table) for stars in range(1, 6)}
    liked = sum(map(is_liked, table))
    assert facts == {
        "hold": "all",
        "interactions": len(table),
        "not_positive": len(table) - liked,
        "why_no_times": "plain numbers, of which only the order counts",
        "actions": counts,
        "without_action": 0,
    }
    printed = capsys.readouterr().out
    assert f"{len(table) - liked} interactions that are not positive are in histories too (--history all)" in printed
    assert f"actions of the rows: rated 1 {counts['rated 1']}, rated 2 {counts['rated 2']}" in printed
    assert "rows have no times: plain numbers, of which only the order counts" in printed
    assert "The rows have actions, which a model reads with model.num_actions=5\n" in printed


def test_the_report_has_the_range_of_times_of_histories(tmp_path, capsys):
    out = run(write(tmp_path, pairs_table()), "out")
    facts = json.loads((out / "report.json").read_text())["histories"]
    assert facts["times"] == {"first": START, "last": START + 1000 * 29 + 60 * 11}
    keys = "model.num_actions=5 model.time_buckets=32"
    assert f"The rows have actions and times, which a model reads with {keys}\n" in capsys.readouterr().out


def test_seen_items_in_histories_are_reported(tmp_path, capsys):
    """A purchase after a view of the same item cannot be recommended by an evaluation that excludes seen items."""
    rows = []
    for user in range(4):
        for at in range(6):
            for action, item, shift in (("view", at, 0), ("view", at + 20, 1), ("buy", at, 1)):
                rows.append((f"u{user}", f"i{item}", action, START + 100 * at + shift))
    frame = pl.DataFrame(rows, schema=["user", "item", "action", "timestamp"], orient="row")
    frame.write_csv(tmp_path / "events.csv")
    (tmp_path / "codes.json").write_text(json.dumps({f"i{n}": [n % 3, n % 2, n] for n in range(26)}))
    options = "--positive-actions", "buy"
    out = run(tmp_path / "events.csv", "all", *options, "--history", "all")
    report = json.loads((out / "report.json").read_text())
    assert report["unreachable_targets"] == {"validation": 4, "test": 4}
    assert report["histories"]["actions"] == {"buy": 24, "view": 48}
    error = capsys.readouterr().err
    assert "--history positive leaves out what came before the user liked an item" in error
    assert "4 of 4 validation rows and 4 of 4 test rows hold interactions that are not positive" in error
    out = run(tmp_path / "events.csv", "positive", *options)
    report = json.loads((out / "report.json").read_text())
    assert report["unreachable_targets"] == {"validation": 0, "test": 0}
    assert report["warnings"] == []
    assert "actions" not in report["histories"], "all of them are purchases"
    assert not (out / "actions.json").exists()


def test_nothing_that_is_not_positive_is_a_warning(tmp_path, capsys):
    run(write(tmp_path, pairs_table()), "out", "--history", "all")
    assert "because every interaction is positive; choose what is positive with --min-rating" in capsys.readouterr().err
