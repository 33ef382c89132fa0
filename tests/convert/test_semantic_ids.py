import json
from pathlib import Path

import numpy as np
import pytest

from convert.interactions_to_jsonl import main as import_interactions
from convert.semantic_ids import main
from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.errors import UserError

LINES = [f"u{user} " + " ".join(f"i{(user * 7 + step * step) % 30}" for step in range(8)) for user in range(25)]


@pytest.fixture
def source(tmp_path):
    (tmp_path / "sequences.txt").write_text("\n".join(LINES))
    titles = "\n".join(f"i{n}\t{'red' if n % 2 else 'blue'} thing {n % 5}" for n in range(33))
    (tmp_path / "items.tsv").write_text("item_id\ttitle\n" + titles + "\n")
    return tmp_path / "sequences.txt"


def test_ids_are_those_that_an_import_builds(source, capsys):
    items = ["--items", str(source.with_name("items.tsv"))]
    assert main([str(source), *items, "--out", str(source.with_name("ids"))]) == 0
    assert "semantic IDs of 33 items: no two items share one" in capsys.readouterr().out
    report = json.loads((source.with_name("ids") / "report.json").read_text())
    assert report["item_columns"] == {"item": "item_id", "name": "title", "text": ["title"], "unused": []}
    assert "columns" in report
    assert import_interactions([str(source), *items, "--out", str(source.with_name("rows"))]) == 0
    for name in ("semantic_ids.json", "catalogue.jsonl"):
        assert (
            source.with_name("ids").joinpath(name).read_bytes() == source.with_name("rows").joinpath(name).read_bytes()
        )


def test_ids_from_texts_alone_and_from_vectors_alone(source):
    items = ["--items", str(source.with_name("items.tsv"))]
    assert main([*items, "--out", str(source.with_name("texts"))]) == 0
    np.save(source.with_name("v.npy"), np.random.default_rng(0).standard_normal((33, 4)))
    assert main([*items, "--vectors", str(source.with_name("v.npy")), "--out", str(source.with_name("vectors"))]) == 0
    for name, method in (("texts", "built"), ("vectors", "vectors")):
        assert json.loads((source.parent / name / "report.json").read_text())["made"]["method"] == method
        catalogue = Catalogue.load(source.parent / name / "catalogue.jsonl")
        assert len(catalogue) == 33
        assert catalogue.collisions.count == 0


def test_the_report_judges_codes_and_writes_nothing(source, capsys):
    index = source.with_name("index.json")
    index.write_text(json.dumps({f"i{n}": [n % 2, 0, 0] for n in range(33)}))
    before = sorted(source.parent.iterdir())
    assert main([str(source), "--items", str(source.with_name("items.tsv")), "--report", "--codes", str(index)]) == 0
    shown = capsys.readouterr().out
    assert "33 items share 2 of them" in shown
    assert "nearest by texts" in shown
    assert "nearest by co-occurrence" in shown
    assert sorted(source.parent.iterdir()) == before


def write_titles(source, titles):
    lines = [f"i{n}\t{title}\n" for n, title in enumerate(titles)]
    source.with_name("items.tsv").write_text("item_id\ttitle\n" + "".join(lines), encoding="utf-8")
    return [str(source), "--items", str(source.with_name("items.tsv"))]


@pytest.mark.parametrize("program", [main, import_interactions])
def test_texts_without_common_words_are_a_warning(program, source, capsys):
    titles = [f"name{n}" for n in range(33)]
    assert program([*write_titles(source, titles), "--out", str(source.with_name("unlike"))]) == 0
    said = capsys.readouterr()
    assert "nearest by texts" not in said.out
    (warning,) = [line for line in said.err.splitlines() if "share no word" in line]
    assert warning.startswith("warning: the texts of 33 of 33 items share no word")
    assert warning.endswith("or give vectors of a language model with --vectors")
    assert program([*write_titles(source, titles[:10] + ["red"] * 23), "--out", str(source.with_name("alike"))]) == 0
    assert "share no word" not in capsys.readouterr().err


def test_chinese_tables_are_read_without_naming_columns_and_titles_give_vectors(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [f"{user},{(user * 7 + step * step) % 30},{step},{step % 5 + 1}" for user in range(25) for step in range(8)]
    kinds, adjectives = ("露营帐篷", "跑步鞋", "保温杯"), "夏季新款轻便防水加厚"
    titles = [f"{n},{adjectives[n % 9 : n % 9 + 2]}{kinds[n % 3]}{chr(0x4E10 + n)}款,户外" for n in range(33)]
    Path("r.csv").write_text("\n".join(["用户,商品,时间,评分", *rows]), encoding="utf-8")
    Path("i.csv").write_text("\n".join(["商品,标题,类目", *titles]), encoding="utf-8")
    assert import_interactions(["r.csv", "--items", "i.csv", "--min-rating", "4", "--out", "out"]) == 0
    said = capsys.readouterr()
    assert "of the 10 items nearest by texts, " in said.out
    assert "share no word" not in said.err
    report = json.loads(Path("out/report.json").read_text(encoding="utf-8"))
    assert report["columns"] == {"user": "用户", "item": "商品", "timestamp": "时间", "rating": "评分"}
    assert report["item_columns"] == {"item": "商品", "name": "标题", "text": ["标题", "类目"], "unused": []}


def test_rows_that_are_skipped_are_said(source, capsys):
    source.write_text("\n".join([LINES[0], "alone", *LINES[1:]]))
    with pytest.raises(UserError, match=r"sequences\.txt, line 2: found 'alone' alone"):
        main([str(source), "--out", str(source.with_name("ids"))])
    assert main([str(source), "--on-error", "skip", "--out", str(source.with_name("ids"))]) == 0
    report = json.loads((source.with_name("ids") / "report.json").read_text())
    (warning,) = [text for text in report["warnings"] if "skipped" in text]
    assert warning.startswith("skipped rows of the interactions: 1; the first: ")
    assert f"warning: {warning}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "out"], "no items to make semantic IDs for"),
        ([], "--out DIR is missing"),
        (["--report"], "--report needs --codes FILE"),
    ],
)
def test_mistakes_are_named(arguments, said):
    with pytest.raises(UserError, match=said):
        main(arguments)


def test_what_the_interactions_are_is_printed_and_reported(tmp_path, capsys):
    lines = [f"u{n // 5},i{n % 7},{1_500_000_000 + n},{'click' if n % 2 else 'impression'}" for n in range(40)]
    (tmp_path / "r.csv").write_text("\n".join(["user,item,ts,event", *lines]) + "\n")
    arguments = [str(tmp_path / "r.csv"), "--out", str(tmp_path / "ids"), "--dimensions", "4"]
    assert main([*arguments, "--positive-actions", "click"]) == 0
    assert "from 2017-07-14 02:40:00 to 2017-07-14 02:40:39 (seconds since 1970)" in capsys.readouterr().out
    report = json.loads((tmp_path / "ids" / "report.json").read_text())
    assert report["actions"] == {"click": 20, "impression": 20}


def test_the_question_about_actions_names_only_options_of_this_program(tmp_path):
    lines = "".join(f"u{n % 3},i{n},{n},{'click' if n % 2 else 'impression'}\n" for n in range(12))
    (tmp_path / "r.csv").write_text("user,item,ts,event\n" + lines)
    for program, named in ((main, False), (import_interactions, True)):
        with pytest.raises(UserError, match="for example --positive-actions click") as error:
            program([str(tmp_path / "r.csv"), "--out", str(tmp_path / "out")])
        assert ("--chosen-actions" in str(error.value)) is named
