import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from convert.jsonl_to_mds import main as to_shards
from convert.make_demo_data import main
from ugt_composer.demo.taxonomy import CODEBOOK_SIZES
from ugt_composer.vocabulary import CLS, ITEM, NUM_SPECIAL_IDS, USER

ROOT = Path(__file__).resolve().parents[2]
LISTS = ("l1_ids", "l2_ids", "l3_ids", "positions", "token_types", "mask")
FILES = [
    "catalogue.jsonl",
    "eval.jsonl",
    "facts.json",
    "preference_eval.jsonl",
    "preference_train.jsonl",
    "train.jsonl",
]
SMALL = ("--users", "300", "--eval-users", "200")


def make(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "convert/make_demo_data.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def fingerprints(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "data"
    done = make("--out", out, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "the best possible: recall@10" in done.stdout
    return out


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(made, tmp_path):
    for number, variables in enumerate(({"PYTHONHASHSEED": "1"}, {"OPENBLAS_NUM_THREADS": "1"})):
        assert make("--out", tmp_path / str(number), *SMALL, **variables).returncode == 0
        assert fingerprints(tmp_path / str(number)) == fingerprints(made)
    assert make("--out", tmp_path / "other", *SMALL, "--seed", "8").returncode == 0
    other = fingerprints(tmp_path / "other")
    differing = {name for name, fingerprint in fingerprints(made).items() if other[name] != fingerprint}
    assert differing == set(FILES) - {"catalogue.jsonl"}, "the shop is the same, its customers are others"


def test_files_and_counts(made):
    assert sorted(path.name for path in made.iterdir()) == FILES
    facts = json.loads((made / "facts.json").read_text())
    for name, count in facts["rows"].items():
        assert len(rows(made / name)) == count
    assert facts["rows"]["eval.jsonl"] == facts["rows"]["preference_eval.jsonl"] == 200
    assert facts["items"] == facts["rows"]["catalogue.jsonl"]
    assert tuple(facts["codebook_sizes"]) == CODEBOOK_SIZES
    assert facts["popularity"]["recall@10"] < facts["ceiling"]["recall@10"]
    assert facts["preference_of_clicks"] < facts["preference_ceiling"]


def check_lists(row: dict, side: str, first: int, special: int) -> None:
    columns = [row[f"{side}_{name}"] for name in LISTS]
    (length,) = {len(column) for column in columns}
    assert length > special
    *levels, positions, types, mask = columns
    for level, size in zip(levels, CODEBOOK_SIZES, strict=True):
        assert level[:special] == [CLS] * special
        assert all(NUM_SPECIAL_IDS <= id_ < size for id_ in level[special:])
    assert positions == list(range(length))
    assert types == [first] + [ITEM] * (length - 1)
    assert mask == [1] * length


def catalogue_triples(made: Path) -> set[tuple[int, int, int]]:
    return {triple(item) for item in rows(made / "catalogue.jsonl")}


def triple(item: dict) -> tuple[int, int, int]:
    return item["l1_id"], item["l2_id"], item["l3_id"]


def items_of(row: dict, side: str) -> list[tuple[int, int, int]]:
    return list(zip(*(row[f"{side}_l{level}_ids"] for level in (1, 2, 3)), strict=True))


@pytest.mark.parametrize(("name", "most"), [("train.jsonl", 5), ("eval.jsonl", 1)])
def test_recommend_rows_are_as_the_format_says(made, name, most):
    catalogue = catalogue_triples(made)
    for row in rows(made / name):
        assert len(row) == 1 + 6 + 6 + 3
        check_lists(row, "encoder", USER, special=1)
        check_lists(row, "decoder", ITEM, special=0)
        history, targets = items_of(row, "encoder")[1:], items_of(row, "decoder")
        assert 4 <= len(history) <= 30
        assert 1 <= len(targets) <= most
        assert catalogue.issuperset(history + targets)
        assert list(zip(*(row[f"labels_l{level}"] for level in (1, 2, 3)), strict=True)) == targets


@pytest.mark.parametrize("name", ["preference_train.jsonl", "preference_eval.jsonl"])
def test_preference_rows_are_as_the_format_says(made, name):
    catalogue, counts = catalogue_triples(made), set()
    for row in rows(made / name):
        check_lists(row["user_sequence"], "encoder", USER, special=1)
        rejected = row["rejected_items"] if "rejected_items" in row else [row["rejected_item"]]
        assert ("rejected_item" in row) == (len(rejected) == 1)
        shown = [triple(item) for item in (row["chosen_item"], *rejected)]
        assert len(set(shown)) == len(shown)
        assert catalogue.issuperset(shown)
        assert items_of(row["user_sequence"], "encoder")[-1] not in shown
        assert 0 < row["preference_score"] <= 1
        counts.add(len(rejected))
    assert counts == {1, 2, 3}


def test_training_rows_of_a_customer_are_cuts_of_one_sequence(made):
    by_user: dict[str, list[dict]] = {}
    for row in rows(made / "train.jsonl"):
        by_user.setdefault(row["user_id"], []).append(row)
    assert len(by_user) == 300
    for of_user in by_user.values():
        assert len(of_user) <= 3
        sequences = [items_of(row, "encoder")[1:] + items_of(row, "decoder") for row in of_user]
        longest = max(sequences, key=len)
        assert all(longest[: len(sequence)] == sequence for sequence in sequences)
        assert len({len(items_of(row, "encoder")) for row in of_user}) == len(of_user), "no cut twice"


def test_held_out_customers_are_not_trained_on(made):
    users = {name: {row["user_id"] for row in rows(made / name)} for name in FILES if name.endswith("l.jsonl")}
    trained = {row["user_id"] for name in ("train.jsonl", "preference_train.jsonl") for row in rows(made / name)}
    assert users["eval.jsonl"] == users["preference_eval.jsonl"]
    assert not users["eval.jsonl"] & trained


def test_names_can_be_read(made):
    names = [item["name"] for item in rows(made / "catalogue.jsonl")]
    assert all(
        re.fullmatch(r"[A-Z][a-z'-]+( [a-z-]+|-[a-z]+)*, (light|sturdy|classic|bright), no\. [1-8]", n) for n in names
    )


def test_an_earlier_run_is_replaced_only_with_overwrite(tmp_path):
    out, tiny = tmp_path / "data", ("--users", "5", "--eval-users", "5")
    assert make("--out", out, *tiny).returncode == 0
    before = fingerprints(out)
    refused = make("--out", out, *tiny, "--seed", "9")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert "--overwrite" in refused.stderr
    assert fingerprints(out) == before
    assert make("--out", out, *tiny, "--seed", "9", "--overwrite").returncode == 0
    assert fingerprints(out) != before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("option", ["--users", "--eval-users", "--cuts"])
def test_impossible_numbers_are_reported_in_a_sentence(tmp_path, option):
    done = make("--out", tmp_path / "data", option, "0")
    assert done.returncode == 2
    assert done.stderr == f"error: {option} is 0; at least 1 is expected\n"
    assert list(tmp_path.iterdir()) == []


def test_help_shows_an_example():
    done = make("--help")
    assert done.returncode == 0
    assert "ugt demo-data --out" in done.stdout


def test_the_law_of_signals_has_actions_times_and_its_own_bounds(tmp_path):
    options = ["--law", "signals", "--users", "200", "--eval-users", "100", "--cuts", "2"]
    first, again = tmp_path / "first", tmp_path / "again"
    for out in (first, again):
        assert main([*options, "--out", str(out)]) == 0
    assert sorted(path.name for path in first.iterdir()) == [
        "actions.json",
        "catalogue.jsonl",
        "eval.jsonl",
        "facts.json",
        "train.jsonl",
    ]
    for path in first.iterdir():
        assert path.read_bytes() == again.joinpath(path.name).read_bytes()
    assert len(rows(first / "train.jsonl")) == 400
    facts = json.loads((first / "facts.json").read_text())
    best = [facts[f"ceiling_{name}"]["recall@10"] for name in ("without_signals", "with_actions", "with_signals")]
    assert best == sorted(best)
    sizes = map(str, facts["codebook_sizes"])
    shards = tmp_path / "mds"
    command = [str(first / "eval.jsonl"), "--kind", "recommend", "--codebook-sizes", *sizes, "--out", str(shards)]
    assert to_shards(command) == 0
    assert json.loads((shards / "manifest.json").read_text())["actions"] == ["liked", "disliked"]
