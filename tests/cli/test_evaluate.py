"""`ugt evaluate`: its metrics equal those of the run's own evaluation, and their source is reported."""

import json
import math

import pytest

from ugt_composer.cli.main import main
from ugt_composer.errors import UserError
from ugt_composer.training.build import build_trainer

EVAL = ("eval", "preference_eval")


@pytest.fixture
def evaluate(shop, stages, tmp_path):
    """evaluate(stage, *options, data) → the JSON of `ugt evaluate --json`."""

    def run(stage: int, *options: str, data=EVAL) -> dict:
        folders = [word for name in data for word in ("--data", str(shop / name))]
        checkpoint = ["--checkpoint", str(stages / f"stage{stage}" / "best")]
        assert main(["evaluate", *checkpoint, *folders, "--json", str(tmp_path / "found.json"), *options]) == 0
        return json.loads((tmp_path / "found.json").read_text())

    return run


@pytest.mark.parametrize("stage", [1, 3])
def test_the_numbers_are_those_of_the_trainer(evaluate, stage_config, stages, tmp_path, stage):
    best = stages / f"stage{stage}" / "best"
    previous = stages / f"stage{stage - 1}" / "best"
    trainer = build_trainer(stage_config(tmp_path / "run", stage, previous, f"init_from={best}"))
    expected = {name.removeprefix("metrics/eval/"): value for name, value in trainer.evaluate().items()}
    trainer.close()
    found = evaluate(stage, "--batch-size", "7")
    assert found["metrics"] == pytest.approx(expected, abs=1e-6)
    assert "preference_accuracy" in expected
    assert (expected["dpo_loss"] > 0) == (stage == 3)
    assert [folder["rows"] for folder in found["data"]] == [41, found["rows"] - 41]


def test_the_rows_by_length_add_up_to_the_whole(evaluate):
    found = evaluate(1)
    assert found["ranked_rows"] == sum(row["users"] for row in found["by_history_length"]) == 41
    assert len(found["by_history_length"]) > 1
    for name in ("recall@10", "ndcg@10", "hit_rate_l1@10"):
        whole = math.fsum(row["users"] * row[name] for row in found["by_history_length"]) / 41
        assert whole == pytest.approx(found["metrics"][name], abs=1e-6)


def test_options_change_cut_offs_and_what_may_be_recommended(evaluate, shop, tmp_path, capsys):
    found = evaluate(1, "-k", "3", "20", "--exclude-seen", "--plot", str(tmp_path / "found.png"), data=["eval"])
    assert found["k_values"] == [3, 20]
    assert found["exclude_seen"] is True
    assert "recall@3" in found["metrics"]
    assert "preference_accuracy" not in found["metrics"]
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "hit_rate_l1_l2" in shown
    assert f"{found['metrics']['recall@3']:.4f}" in shown
    assert "6-10" in shown


def test_a_model_of_stage_3_needs_no_reference_for_rows_without_pairs(evaluate, tmp_path):
    gone = ("--reference", str(tmp_path / "gone"))
    assert "recall@10" in evaluate(3, *gone, data=["eval"])["metrics"]
    with pytest.raises(UserError, match="--reference DIR"):
        evaluate(3, *gone)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-k", "0"], ["--k is 0"]),
        (["-k", "20", "--beam-width", "10"], ["beam_width is 10", "20"]),
        (["--json", "nowhere/found.json"], ["nowhere/found.json cannot be written"]),
        (["--plot", "found.pdf"], ["found.pdf", ".png"]),
        (["--data", "nowhere"], ["nowhere: no such folder"]),
        (["--catalogue", "nowhere.jsonl"], ["nowhere.jsonl: no such catalogue"]),
    ],
)
def test_a_mistake_is_named(evaluate, options, words):
    with pytest.raises(UserError) as error:
        evaluate(1, *options)
    assert all(word in str(error.value) for word in words), error.value
