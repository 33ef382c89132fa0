"""A model that reads actions and times: training, evaluation and serving with data that have them, or lack them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.shop import SIZES, stage_arguments
from ugt_composer.cli.main import main as ugt
from ugt_composer.config.load import load_config
from ugt_composer.data.codec import decode_row
from ugt_composer.data.evaluation_dataset import RowFolder
from ugt_composer.errors import UserError
from ugt_composer.training.build import build_trainer
from ugt_composer.training.dry_run import describe

READS = ["model.num_actions=3", "model.time_buckets=8", "model.relative_time_bias=true", "max_duration=1ep"]


def with_inputs(source: Path, target: Path) -> None:
    """Copies rows and adds actions 1 or 2 and rising times; the moment of prediction is an hour after the history."""
    random = np.random.default_rng(0)
    lines = []
    for line in source.read_text().splitlines():
        row = json.loads(line)
        sequence = row.get("user_sequence", row)
        tokens = len(sequence["encoder_mask"])
        times = np.cumsum(random.integers(0, 10_000, tokens)).tolist()
        sequence["encoder_actions"] = [0, *random.integers(1, 3, tokens - 1).tolist()]
        sequence["encoder_times"] = times
        row["decoder_times"] = [times[-1] + 3600] * len(row.get("decoder_mask", "1"))
        lines.append(json.dumps(row) + "\n")
    target.write_text("".join(lines))


@pytest.fixture(scope="module")
def timed_shop(shop, tmp_path_factory):
    """The shop with actions and times in all rows."""
    from convert.jsonl_to_mds import main as convert

    folder = tmp_path_factory.mktemp("timed")
    shutil.copy(shop / "catalogue.jsonl", folder)
    (folder / "actions.json").write_text('["view", "buy"]')
    for name, kind in (("train", "recommend"), ("eval", "recommend"), ("preference_eval", "preference")):
        with_inputs(shop / f"{name}.jsonl", folder / f"{name}.jsonl")
        options = ["--codebook-sizes", *map(str, SIZES), "--max-positions", "32"]
        assert convert([str(folder / f"{name}.jsonl"), "--kind", kind, "--out", str(folder / name), *options]) == 0
    return folder


def config_of(shop, out, *overrides, previous=None):
    path, *rest = stage_arguments(shop, out, 1 if previous is None else 2, previous)
    return load_config(path, overrides=[*rest, *READS, *overrides])


@pytest.fixture(scope="module")
def trained(timed_shop, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "stage1"
    trainer = build_trainer(config_of(timed_shop, out))
    trainer.train()
    trainer.close()
    return out / "best"


@pytest.fixture
def program(capsys):
    """program(*words) → what `ugt` printed to stdout and stderr."""

    def run(*words):
        capsys.readouterr()
        assert ugt(list(map(str, words))) == 0
        return capsys.readouterr()

    return run


def recommended(program, tmp_path, trained, *histories):
    """The JSON of each history's recommendations, and the messages."""
    file = tmp_path / "users.jsonl"
    file.write_text("".join(json.dumps(history) + "\n" for history in histories))
    shown = program("recommend", "--checkpoint", trained, "--history", file, "-k", "5", "--json")
    return [json.loads(line)["recommendations"] for line in shown.out.splitlines()], shown.err


HISTORY = {"items": ["item-3", "nothing", "item-5", "item-6"], "times": [5, 6, 7.5, 9e3], "now": 10_000}


def test_names_and_numbers_of_actions_are_the_same_history(program, tmp_path, trained):
    named = HISTORY | {"actions": ["view", "buy", "view", "buy"]}
    numbered = HISTORY | {"actions": [1, 2, 1, 2]}
    (first, second, other), messages = recommended(
        program, tmp_path, trained, named, numbered, HISTORY | {"actions": [2, 2, 2, 1]}
    )
    assert first == second != other
    assert "warning" not in messages


def test_lists_of_a_row_are_the_same_history(program, tmp_path, trained):
    items = [(5 + n // 16, 5 + n // 4, 5 + n) for n in (3, 5, 6)]
    row = {f"encoder_l{level + 1}_ids": [1, *(item[level] for item in items)] for level in range(3)}
    row |= {"encoder_positions": [0, 1, 2, 3], "encoder_token_types": [0, 1, 1, 1], "encoder_mask": [1] * 4}
    row |= {"encoder_actions": [0, 1, 1, 2], "encoder_times": [0, 5, 7, 9000], "now": 10_000}
    named = HISTORY | {"actions": ["view", "buy", "view", "buy"]}
    (first, second), _ = recommended(program, tmp_path, trained, named, row)
    assert [entry["item_id"] for entry in first] == [entry["item_id"] for entry in second]
    assert [entry["score"] for entry in first] == pytest.approx([entry["score"] for entry in second])


def test_the_moment_of_prediction_matters(program, tmp_path, trained):
    (first, second), _ = recommended(program, tmp_path, trained, HISTORY, HISTORY | {"now": 90_000_000})
    assert [entry["score"] for entry in first] != [entry["score"] for entry in second]


def test_what_no_history_has_is_said(program, tmp_path, trained):
    _, messages = recommended(program, tmp_path, trained, {"items": ["item-3"]}, {"items": ["item-4"], "times": [3]})
    file = tmp_path / "users.jsonl"
    assert [line for line in messages.splitlines() if line.startswith("warning")] == [
        f"warning: no row of {file} has actions, although model.num_actions is 3: every action is unknown to the model",
        f"warning: no row of {file} has now, although model.time_buckets is 8: the model takes the time of the last "
        "item for the moment of prediction",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": [5, 6, 7]}, "users.jsonl:1: times: found 3 values, expected 4, as many as items has"),
        ({"times": [5, 6, 7, 6]}, "times[3]: found 6, expected at least 7"),
        ({"times": [5, 6, 7, "8"]}, 'times[3]: found "8", expected a time in seconds'),
        ({"now": 8999}, "now: found 8999, expected at least 9000, the time of the last history token"),
        ({"now": -1}, "now: found -1, expected a time in seconds"),
        ({"actions": ["view"]}, "actions: found 1 values, expected 4"),
        ({"actions": ["view", "buy", "bye", 1]}, 'actions[2]: found "bye", expected an action (did you mean buy?)'),
        ({"actions": [4, 1, 1, 1]}, "actions[0]: found 4, expected an action in 0..3"),
        ({"decoder_times": [5]}, "found both `now` and decoder_times; expected one of them"),
    ],
)
def test_a_mistake_in_a_history_is_named(program, tmp_path, trained, change, message):
    with pytest.raises(UserError) as caught:
        recommended(program, tmp_path, trained, HISTORY | change)
    assert message in str(caught.value)


def test_evaluation_and_reference_read_them(program, tmp_path, timed_shop, shop, trained):
    words = ["--checkpoint", trained, "--data"]
    shown = program("evaluate", *words, timed_shop / "eval", "--json", tmp_path / "timed.json")
    assert "although model" not in shown.err
    shown = program("evaluate", *words, shop / "eval", "--json", tmp_path / "plain.json")
    assert shown.err.count("although model") == 2
    metrics = [json.loads((tmp_path / f"{name}.json").read_text())["metrics"] for name in ("timed", "plain")]
    assert metrics[0] != metrics[1]
    program("reference", *words, timed_shop / "preference_eval", "--out", tmp_path / "scored")
    program("inspect", tmp_path / "scored", "--json")
    before, after = (
        decode_row(RowFolder(str(f), None)[0]) for f in (timed_shop / "preference_eval", tmp_path / "scored")
    )
    for name in ("encoder_actions", "encoder_times", "decoder_times"):
        assert getattr(before, name).tolist() == getattr(after, name).tolist()


def test_own_preferences_keep_them(program, tmp_path, timed_shop, trained):
    from convert.jsonl_to_mds import main as convert

    words = ["--checkpoint", trained, "--data", timed_shop / "eval", "--rejected", "2", "--out", tmp_path / "own"]
    program("preferences", *words, "--jsonl", tmp_path / "own.jsonl")
    shutil.copy(timed_shop / "actions.json", tmp_path)
    options = ["--kind", "preference", "--codebook-sizes", *map(str, SIZES), "--max-positions", "32"]
    assert convert([str(tmp_path / "own.jsonl"), "--out", str(tmp_path / "converted"), *options]) == 0
    shard = "shard.00000.mds"
    assert (tmp_path / "own" / shard).read_bytes() == (tmp_path / "converted" / shard).read_bytes()
    ours, theirs = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("own", "converted"))
    for key in ("codec_version", "inputs", "actions"):
        assert ours[key] == theirs[key]


def renamed(timed_shop, folder, names):
    """A copy of the rows `train` with other names of actions."""
    copy = Path(shutil.copytree(timed_shop / "train", folder))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"actions": names}))
    return copy


def test_rows_with_more_actions_than_the_model_are_refused(timed_shop, tmp_path):
    config = config_of(timed_shop, tmp_path / "run", "model.num_actions=1")
    for run in (build_trainer, describe):
        with pytest.raises(UserError, match=r"train \(data.train\) names 2 actions, but model.num_actions is 1;"):
            run(config)
    other = config_of(timed_shop, tmp_path / "run", "model.num_actions=0")
    assert "although model.num_actions" not in describe(other)


def test_actions_must_have_the_same_names_everywhere(timed_shop, tmp_path, trained, program):
    folder = renamed(timed_shop, tmp_path / "renamed", ["buy", "view"])
    config = config_of(timed_shop, tmp_path / "run", f"data.train.local={folder}")
    for run in (build_trainer, describe):
        with pytest.raises(UserError, match=r"action 1 is buy in .*renamed, but view in .*eval; expected"):
            run(config)
    with pytest.raises(UserError, match=r"action 1 is view in .*best, but buy in .*renamed"):
        program("evaluate", "--checkpoint", trained, "--data", folder)
    streams = f"data.eval.streams=[{{local: {folder}}}]"
    config = config_of(timed_shop, tmp_path / "2", f"data.train.local={folder}", streams, previous=trained)
    for run in (build_trainer, describe):
        with pytest.raises(UserError, match=r"action 1 is view in .*best, but buy in .*renamed"):
            run(config)


def test_a_dry_run_says_what_rows_have_and_lack(timed_shop, shop, tmp_path):
    report = describe(config_of(timed_shop, tmp_path / "run"))
    assert "train (encoder_actions 100%, encoder_times 100%, decoder_times 100%)" in report
    assert "although" not in report
    lines = describe(config_of(shop, tmp_path / "run")).splitlines()
    assert sum("although model." in line for line in lines) == 4
    assert f"{'train':6} {205:>12,} recommend rows in {shop / 'train'}" in lines


def test_training_warns_of_lists_that_no_row_has(shop, tmp_path, caplog):
    trainer = build_trainer(config_of(shop, tmp_path / "run"))
    trainer.close()
    warnings = [record.message for record in caplog.records if "although model." in record.message]
    assert len(warnings) == 4
    assert warnings[0].startswith("no row of data.train has encoder_actions, although model.num_actions is 3")
