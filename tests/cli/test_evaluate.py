"""`ugt evaluate`: its metrics equal those of the run's own evaluation, and their source is reported."""

import json
import math

import pytest

from tests.shop import SIZES, shop_item
from ugt_composer.cli.main import main
from ugt_composer.data.history import decoder_lists, encoder_lists
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
    assert ("dpo_loss" in expected) == ("dpo_accuracy" in expected) == (stage == 3)
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


@pytest.fixture
def converted(shop, tmp_path):
    """converted(rows, *options) → a folder of recommend rows, as (history, targets) of item numbers of the shop."""
    from convert.jsonl_to_mds import main as convert

    def run(rows, *options, **keys) -> str:
        name = f"rows{len(list(tmp_path.glob('rows*.jsonl')))}"
        lines = [
            {
                "user_id": f"u{user}",
                **encoder_lists(list(map(shop_item, history))),
                **decoder_lists(list(map(shop_item, targets))),
                **{key: values[user] for key, values in keys.items()},
            }
            for user, (history, targets) in enumerate(rows)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        sizes = ["--codebook-sizes", *map(str, SIZES), "--max-positions", "32", *options]
        sizes += ["--catalogue", str(shop / "catalogue.jsonl")]
        words = [str(tmp_path / f"{name}.jsonl"), "--kind", "recommend", "--out", str(tmp_path / name), *sizes]
        assert convert(words) == 0
        return str(tmp_path / name)

    return run


LONG = [([(3 * user + step) % 60 for step in range(4 + user)], [(4 * user + 4) % 60]) for user in range(20)]


def test_of_long_histories_the_most_recent_items_are_read_and_all_are_excluded(evaluate, converted, capsys):
    long = evaluate(1, "-k", "5", "50", data=[converted(LONG)])
    assert (long["max_history"], long["longer_histories"]) == (7, 16)
    assert (
        "16 of 20 rows have histories of more than 7 items; the model reads the most recent 7"
        in capsys.readouterr().err
    )
    short = evaluate(1, "-k", "5", "50", data=[converted([(history[-7:], targets) for history, targets in LONG])])
    assert long["metrics"] == short["metrics"]
    assert short["longer_histories"] == 0
    assert short["warnings"] == []
    assert evaluate(1, "-k", "5", "50", "--max-history", "31", data=[converted(LONG)])["metrics"] != short["metrics"]
    # Items that are not read are excluded too: of 60 items 30 remain, and all of them are recommended.
    rows = [(list(range(30)), [59])]
    found = evaluate(1, "-k", "30", "--exclude-seen", data=[converted(rows)])
    assert found["metrics"]["recall@30"] == 1
    assert "1 of 1 row has a history of more than 7 items" in found["warnings"][0]


def test_targets_that_exclusion_removes_are_counted(evaluate, converted, capsys):
    rows = [([1, 2, 3], [2]), ([1, 2, 3], [4]), ([5, 5], [5])]
    folder = converted(rows)
    found = evaluate(1, "--exclude-seen", data=[folder])
    assert found["unreachable_rows"] == 2
    assert "2 of 3 ranked rows have a target whose semantic ID is also in their history" in found["warnings"][0]
    assert found["warnings"][0] in capsys.readouterr().err
    assert found["metrics"]["recall@50"] < 0.34
    assert evaluate(1, "--include-seen", data=[folder])["warnings"] == []


def test_histories_that_the_conversion_truncated_are_counted(evaluate, converted, capsys):
    folder = converted(LONG, "--max-history", "6")
    found = evaluate(1, "--exclude-seen", data=[folder])
    assert found["incomplete_histories"] == 18
    before = converted(LONG, earlier_items=[user % 4 for user in range(20)])
    assert evaluate(1, "--exclude-seen", data=[before])["incomplete_histories"] == 15
    assert evaluate(1, "--include-seen", data=[before])["warnings"] == evaluate(1, data=[converted(LONG)])["warnings"]
    assert "18 of 20 rows lack the earliest items of the user's history" in capsys.readouterr().err


def test_a_model_of_stage_3_needs_no_reference_for_rows_without_pairs(evaluate, tmp_path):
    gone = ("--reference", str(tmp_path / "gone"))
    assert "recall@10" in evaluate(3, *gone, data=["eval"])["metrics"]
    with pytest.raises(UserError, match="--reference DIR"):
        evaluate(3, *gone)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-k", "0"], ["-k is 0; expected at least 1"]),
        (["-k", "-3"], ["-k is -3; expected at least 1"]),
        (["-k", "1000000000"], ["-k is [1000000000]; expected numbers above 0, at most 10,000"]),
        (["--max-history", "0"], ["--max-history is 0; expected at least 1"]),
        (["-k", "20", "--beam-width", "10"], ["--beam-width is 10; expected at least the largest of -k (20)"]),
        (["--beam-width", "10"], ["--beam-width is 10; expected at least the largest of evaluation.k_values (50)"]),
        (["--json", "nowhere/found.json"], ["nowhere/found.json cannot be written"]),
        (["--plot", "found.pdf"], ["found.pdf", ".png"]),
        (["--data", "nowhere"], ["nowhere: no such folder"]),
        (["--data", __file__], ["is a file; expected a folder of MDS shards"]),
        (["--catalogue", "nowhere.jsonl"], ["nowhere.jsonl: no such catalogue"]),
    ],
)
def test_a_mistake_is_named(evaluate, options, words):
    with pytest.raises(UserError) as error:
        evaluate(1, *options)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("stage", [1, 2])
def test_a_model_without_a_preference_loss_has_no_metrics_of_it(evaluate, tmp_path, capsys, stage):
    found = evaluate(stage, data=["preference_eval"])
    assert not {"dpo_loss", "dpo_accuracy", "dpo_reward_margin", "recall@10", "mrr"} & found["metrics"].keys()
    assert 0 <= found["metrics"]["preference_accuracy"] <= 1
    shown = capsys.readouterr().out
    assert "dpo" not in shown
    assert "nan" not in shown
    with_reference = evaluate(stage, "--reference", str(tmp_path), data=["preference_eval"])
    assert with_reference["metrics"] == found["metrics"]
    assert "was not used" in with_reference["warnings"][-1]
    assert "loss.lambda_preference 0" in with_reference["warnings"][-1]
