"""`ugt recommend --out`: parts that are written once, and messages about what does not fit them."""

import json
import os
from pathlib import Path

import polars as pl
import pytest

from ugt_composer.cli.main import main
from ugt_composer.errors import UserError

USERS = 50


@pytest.fixture
def users(tmp_path) -> Path:
    path = tmp_path / "users.jsonl"
    lines = (
        {"user_id": f"u{u}", "items": [f"item-{(u * 7 + n) % 60}" for n in range(1 + u % 4)]} for u in range(USERS)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def recommend(stages, users, capsys):
    """recommend(*options, history) → what `ugt recommend` prints."""

    def run(*options, history=users) -> str:
        words = ("--checkpoint", stages / "stage1" / "best", "--history", history, "--batch-size", 8, *options)
        capsys.readouterr()
        assert main(["recommend", *map(str, words)]) == 0
        return capsys.readouterr().out

    return run


def test_the_parts_are_the_lists_that_are_printed(recommend, tmp_path):
    printed = recommend("--json")
    out = recommend("--out", tmp_path / "lists", "--users-per-part", 16)
    assert f"{USERS} users in 4 parts" in out
    index = json.loads((tmp_path / "lists" / "index.json").read_text())
    assert [part["users"] for part in index["parts"]] == [16, 16, 16, 2]
    assert "".join((tmp_path / "lists" / part["name"]).read_text() for part in index["parts"]) == printed

    recommend("--out", tmp_path / "tables", "--users-per-part", 16, "--out-format", "parquet")
    table = pl.read_parquet(tmp_path / "tables" / "part-*.parquet")
    assert [json.loads(line) for line in printed.splitlines()] == table.to_dicts()


def test_a_list_without_items_has_a_row_in_parquet(recommend, users, tmp_path):
    users.write_text('{"user_id": "none", "items": ["item-1"], "only": []}\n')
    recommend("--out", tmp_path / "lists", "--out-format", "parquet")
    assert pl.read_parquet(tmp_path / "lists" / "part-00000.parquet").to_dicts() == [
        {"user_id": "none", "recommendations": []}
    ]


def test_a_second_start_writes_what_is_missing_or_corrupted(recommend, tmp_path):
    out = tmp_path / "lists"
    options = ("--out", out, "--users-per-part", 10)
    recommend(*options)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "part-00001.jsonl").unlink()
    (out / "part-00003.jsonl").write_text("x")
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert f"{USERS} users in 5 parts, 3 of them finished before" in recommend(*options)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    changed = {path.name for path in out.glob("part-*") if times.get(path.name) != path.stat().st_mtime_ns}
    assert changed == {"part-00001.jsonl", "part-00003.jsonl"}
    assert "5 of them finished before" in recommend(*options)


def test_other_inputs_or_options_are_an_error_unless_they_replace_the_parts(recommend, users, tmp_path, stages):
    out = ("--out", tmp_path / "lists", "--users-per-part", 20)
    recommend(*out)
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("item-1\n")
    for options, words in (
        (("-k", 3), "-k was 10, is 3"),
        (("--exclude", exclude), "--exclude has changed"),
        (("--out-format", "parquet"), '--out-format was "jsonl", is "parquet"'),
    ):
        with pytest.raises(UserError) as error:
            recommend(*out, *options)
        assert words in str(error.value)
        assert "--overwrite" in str(error.value)
    users.write_text(users.read_text() + '{"items": ["item-1"]}\n')
    with pytest.raises(UserError, match="other inputs or options: --history has changed"):
        recommend(*out)
    recommend(*out, "--out-format", "parquet", "--overwrite")
    assert sorted(os.listdir(tmp_path / "lists")) == ["index.json", *(f"part-0000{n}.parquet" for n in range(3))]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out-format", "jsonl"], "--out-format is given without --out"),
        (["--overwrite"], "--overwrite is given without --out"),
        (["--out", "OUT", "--json"], "expected one of them"),
        (["--out", "OUT", "--history", "-"], "expected a file"),
        (["--out", "OUT", "--users-per-part", "0"], "--users-per-part is 0"),
        (["--out", "HOME"], "holds letter.txt, which ugt recommend did not write"),
        (["--out", "HOME/letter.txt"], "is a file; name a folder"),
        (["--out", "HOME", "--history", "HOME"], "lies inside --history"),
        (["--out", "OUT", "--history", "EMPTY"], "is empty; expected a history"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(recommend, tmp_path, options, words):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("Dear")
    (tmp_path / "home" / "users.jsonl").write_text('{"items": ["item-1"]}')
    (tmp_path / "empty.jsonl").touch()
    places = {"OUT": tmp_path / "out", "HOME": tmp_path / "home", "EMPTY": tmp_path / "empty.jsonl"}
    places["HOME/letter.txt"] = tmp_path / "home" / "letter.txt"
    with pytest.raises(UserError) as error:
        recommend(*(places.get(word, word) for word in options))
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "home").iterdir())) == 2


def test_a_mistake_in_a_history_keeps_the_finished_parts(recommend, users, tmp_path):
    lines = users.read_text().splitlines()
    lines[25] = '{"items": ["item-1"], "only": 3}'
    users.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"users\.jsonl:26: only: found 3"):
        recommend("--out", tmp_path / "lists", "--users-per-part", 10)
    assert sorted(path.name for path in (tmp_path / "lists").glob("part-*")) == ["part-00000.jsonl", "part-00001.jsonl"]
    assert not (tmp_path / "lists" / "index.json").exists()
