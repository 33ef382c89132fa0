"""`ugt report`: which runs and options it takes, and what it says about the others."""

import json
import os
import subprocess
import sys

import pytest

from tests.report.made_runs import made_run
from tests.shop import ROOT
from ugt_composer.checkpoint.save_folder import METRICS
from ugt_composer.cli.main import main
from ugt_composer.errors import UserError


@pytest.fixture
def folder(stage_config, tmp_path):
    return made_run(stage_config(tmp_path / "run"), tmp_path / "run")


def report(*arguments) -> int:
    return main(["report", *map(str, arguments)])


def test_curves_alone_need_no_torch(folder, tmp_path):
    out = tmp_path / "report.html"
    code = f"""
import sys
from ugt_composer.cli.main import main
status = main(["report", {str(folder)!r}, "--no-evaluation", "--out", {str(out)!r}])
sys.exit(status or any(name in sys.modules for name in ("torch", "composer", "streaming")))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    text = out.read_text()
    assert "not evaluated, because of --no-evaluation" in text
    assert "Are the semantic IDs good?" in text


def test_a_run_that_has_only_begun_gives_a_report(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / METRICS).write_text("")
    assert report(tmp_path / "run", "--out", tmp_path / "report.html") == 0
    shown = capsys.readouterr()
    assert "run was not evaluated" in shown.err
    assert "no model in best or latest/ yet" in shown.err
    text = (tmp_path / "report.html").read_text()
    for sentence in (
        "No loss was logged yet",
        "No evaluation was logged",
        "No events.jsonl",
        "the run has no catalogue",
    ):
        assert sentence in text


def test_results_of_ugt_evaluate_are_used(folder, shop, tmp_path):
    file, out = tmp_path / "results.json", tmp_path / "report.html"
    options = ["--checkpoint", str(folder / "best"), "--data", str(shop / "eval"), "--json", str(file)]
    assert main(["evaluate", *options]) == 0
    recall = json.loads(file.read_text())["metrics"]["recall@10"]
    assert report(folder, "--json", file, "--out", out) == 0
    text = out.read_text()
    assert f"41 rows of {shop / 'eval'}, by {file}" in text
    assert f"{recall:.6g}" in text
    assert "leave out --json to evaluate here" in text
    other = tmp_path / "other.json"
    other.write_text(file.read_text().replace(str(folder / "best"), "elsewhere/best"))
    with pytest.raises(UserError, match="a model of none of the runs"):
        report(folder, "--json", other, "--out", out)
    other.write_text("{}")
    with pytest.raises(UserError, match="not written by ugt evaluate --json"):
        report(folder, "--json", other, "--out", out)


def test_options_that_cannot_be_used_are_refused_and_change_nothing(folder, shop, tmp_path):
    out = tmp_path / "report.html"
    out.write_text("earlier")
    for options, message in (
        ((folder, "--out", tmp_path), "is a folder; expected the name of a file"),
        ((folder, "--out", tmp_path / "none" / "report.html"), "cannot be written; expected a file"),
        ((folder, "--out", out, "--rows", 0), "--rows is 0; expected at least 1"),
        ((folder, "--out", out, "--seed", -1), "--seed is -1; expected 0 or more"),
        ((folder, "--out", out, "--no-evaluation", "--data", shop / "eval"), "--data and --no-evaluation are both"),
        ((folder, "--out", out, "--data", tmp_path / "none"), "no such folder"),
        ((tmp_path / "none", "--out", out), "no such folder"),
    ):
        with pytest.raises(UserError, match=message):
            report(*options)
    assert out.read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run"]
