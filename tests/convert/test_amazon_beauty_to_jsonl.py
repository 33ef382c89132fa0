import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "amazon_beauty"
HEADER = "item_id\tasin\ttitle\tattributes"
ITEMS = [
    "1\tB1\tOPI Nail Lacquer &amp; Base\tOPI|Makeup|Nails|Nail Polish",
    "2\tB2\tOPI Red\tOPI|Makeup|Nails|Nail Polish",
    "3\tB3\tOpi Top Coat\tMakeup|Nails|Top Coats",  # no brand: the title's first word is the maker
    "4\tB4\tEssie Pink\tEssie|Makeup|Nails|Nail Polish",  # the only one of its maker: the category path
    "5\tB5\tOil\tUnknown|Skin Care|Body|Oils",
    "6\tB6\t\tSkin Care|Body|Oils",
]
SEQUENCES = ["7 1 2 3 4 5 6 1 2", "9 6 5 4 3 2"]


def convert(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "convert/amazon_beauty_to_jsonl.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def item_numbers(row: dict, side: str) -> list[int]:
    """L3 is the item's number, after the five special ids."""
    return [id_ - 5 for id_ in row[f"{side}_l3_ids"] if id_ >= 5]


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "items.tsv").write_text("\n".join([HEADER, *ITEMS]) + "\n", encoding="utf-8")
    (folder / "sequences.txt").write_text("\n".join(SEQUENCES) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def made(data) -> Path:
    out = data.parent / "out"
    done = convert("--data", data, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_level_ids_follow_the_stated_rule(made):
    l1, l2, l3 = (
        {row["item_id"]: row[f"l{level}_id"] for row in rows(made / "catalogue.jsonl")} for level in (1, 2, 3)
    )
    assert l1["1"] == l1["2"] == l1["3"] == l1["4"] != l1["5"] == l1["6"]
    assert l2["1"] == l2["2"] == l2["3"], "three items of one maker in one department"
    assert len({l2["1"], l2["4"], l2["5"]}) == 3
    assert l2["5"] == l2["6"], "makers of too few items: the category path"
    assert list(l3.values()) == [6, 7, 8, 9, 10, 11]
    assert json.loads((made / "facts.json").read_text())["codebook_sizes"] == [64, 64, 64]


def test_names_are_titles_without_html(made):
    names = [row["name"] for row in rows(made / "catalogue.jsonl")]
    assert names[0] == "OPI Nail Lacquer & Base"
    assert names[5] == "item 6", "an item without a title still has a name"


def test_the_last_two_items_are_held_out(made):
    train, evaluation, test = (rows(made / f"{name}.jsonl") for name in ("train", "eval", "test"))
    assert [(item_numbers(r, "encoder"), item_numbers(r, "decoder")) for r in evaluation] == [
        ([1, 2, 3, 4, 5, 6], [1]),
        ([6, 5, 4], [3]),
    ]
    assert [(item_numbers(r, "encoder"), item_numbers(r, "decoder")) for r in test] == [
        ([1, 2, 3, 4, 5, 6, 1], [2]),
        ([6, 5, 4, 3], [2]),
    ]
    assert [(item_numbers(r, "encoder"), item_numbers(r, "decoder")) for r in train] == [
        ([1], [2, 3, 4, 5, 6]),
        ([1, 2], [3, 4, 5, 6]),
        ([1, 2, 3], [4, 5, 6]),
        ([1, 2, 3, 4], [5, 6]),
        ([1, 2, 3, 4, 5], [6]),
        ([6], [5, 4]),
        ([6, 5], [4]),
    ]
    assert all(row["labels_l3"] == row["decoder_l3_ids"] for row in train)


def test_histories_keep_the_twenty_most_recent(data):
    items = [1 + at % 6 for at in range(40)]
    (data / "sequences.txt").write_text("1 " + " ".join(map(str, items)) + "\n")
    assert convert("--data", data, "--out", data / "out").returncode == 0
    (row,) = rows(data / "out" / "eval.jsonl")
    assert item_numbers(row, "encoder") == items[:-2][-20:]
    assert row["encoder_positions"] == list(range(21)), "the user token and twenty items"


def test_cuts_limit_the_rows_of_a_user_and_are_the_same_each_time(data, tmp_path):
    for name in ("first", "second"):
        assert convert("--data", data, "--out", tmp_path / name, "--cuts", "2").returncode == 0
    train = rows(tmp_path / "first" / "train.jsonl")
    assert [row["user_id"] for row in train] == ["7", "7", "9", "9"]
    assert (tmp_path / "first" / "train.jsonl").read_bytes() == (tmp_path / "second" / "train.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("items.tsv", None, "items.tsv cannot be read: No such file"),
        ("sequences.txt", None, "sequences.txt cannot be read: No such file"),
        ("items.tsv", HEADER + "\n1\tB1\tOPI\n", "items.tsv, line 2: 3 columns found, 4 expected"),
        ("items.tsv", HEADER + "\n1\tB1\tOPI\tOPI|Books\n", "items.tsv, line 2: 'OPI|Books' names none of"),
        ("items.tsv", HEADER + "\n", "items.tsv holds no item"),
        ("items.tsv", "\n".join([HEADER, *ITEMS, ITEMS[0]]), "items.tsv, line 8: item 1 again"),
        ("sequences.txt", "1 1 2 3 4\n2 1 2 99 4\n", "sequences.txt, line 2: item 99 is not in items.tsv"),
        ("sequences.txt", "1 1 2 3\n", "sequences.txt, line 1: 3 items found, at least 4 expected"),
        ("sequences.txt", "1 1 2 x 4\n", "sequences.txt, line 1: 'x' found, an item number expected"),
        ("sequences.txt", "1 1 2 3 4\n1 1 2 3 4\n", "sequences.txt, line 2: user 1 again"),
        ("sequences.txt", "", "sequences.txt holds no user"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(data, file, text, said):
    (data / file).unlink()
    if text is not None:
        (data / file).write_text(text)
    done = convert("--data", data, "--out", data.parent / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in data.parent.iterdir()] == ["data"]


def test_an_earlier_run_is_replaced_only_with_overwrite(data, made):
    refused = convert("--data", data, "--out", made)
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr
    assert convert("--data", data, "--out", made, "--overwrite").returncode == 0


def test_help_shows_an_example():
    done = convert("--help")
    assert done.returncode == 0
    assert "python convert/amazon_beauty_to_jsonl.py --data" in done.stdout


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the Amazon Beauty histories are not at {REAL}")
def test_popularity_on_the_real_histories_is_as_published(tmp_path):
    done = convert("--data", REAL, "--out", tmp_path / "out", "--cuts", "1")
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "out" / "facts.json").read_text())
    assert facts["items"] == 12101
    assert facts["rows"]["eval.jsonl"] == facts["rows"]["test.jsonl"] == facts["rows"]["train.jsonl"] == 22363
    assert facts["popularity"]["test"]["recall@10"] == pytest.approx(0.0115, abs=2e-4)
    catalogue = rows(tmp_path / "out" / "catalogue.jsonl")
    for level, size in enumerate(facts["codebook_sizes"], start=1):
        ids = {row[f"l{level}_id"] for row in catalogue}
        assert min(ids) >= 5
        assert max(ids) < size <= (1024, 4096, 16384)[level - 1]
    assert len({row["l3_id"] for row in catalogue}) == 12101
    parents = {(row["l2_id"], row["l1_id"]) for row in catalogue}
    assert len(parents) == len({l2 for l2, _ in parents}), "every L2 code has one L1 code above it"
