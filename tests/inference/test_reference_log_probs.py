"""Stage 3 on rows that contain the reference's log-probabilities, compared with stage 3 that runs the reference."""

import json

import numpy as np
import pytest
import torch

from tests.shop import metrics_of
from ugt_composer.cli.main import main as ugt
from ugt_composer.data.codec import decode_row
from ugt_composer.data.evaluation_dataset import RowFolder
from ugt_composer.errors import UserError
from ugt_composer.inference.evaluation import evaluation_config
from ugt_composer.training.build import build_trainer
from ugt_composer.training.dry_run import describe


@pytest.fixture(scope="module")
def scored(shop, stages, tmp_path_factory):
    """The shop's preference folders with the log-probabilities of stage 2's model."""
    folder = tmp_path_factory.mktemp("scored")
    for name in ("preference", "preference_eval"):
        words = ["--data", str(shop / name), "--out", str(folder / name), "--batch-size", "7"]
        assert ugt(["reference", "--checkpoint", str(stages / "stage2/best"), *words]) == 0
    return folder


@pytest.fixture
def overrides(shop, scored):
    def make(folder=scored, eval_folder=scored):
        streams = f"[{{local: {folder / 'preference'}, proportion: 0.5}},{{local: {shop / 'train'}, proportion: 0.5}}]"
        evaluation = f"[{{local: {shop / 'eval'}}},{{local: {eval_folder / 'preference_eval'}}}]"
        return (
            f"data.train.streams={streams}",
            f"data.eval.streams={evaluation}",
            "loss.reference_log_probs=data",
            "loss.lambda_anchor=0",
        )

    return make


def test_rows_are_the_same_but_for_what_the_model_says_of_their_items(shop, stages, scored):
    from ugt_composer.checkpoint.portable import load_portable
    from ugt_composer.data.collate import PackedRow, collate

    model, *_ = load_portable(stages / "stage2/best")
    before, after = (RowFolder(str(folder / "preference"), None) for folder in (shop, scored))
    assert len(before) == len(after)
    for number in range(len(before)):
        row = decode_row(after[number])
        assert after[number].startswith(before[number][:10])
        for name in ("user_id", "preference_score"):
            assert getattr(row, name) == getattr(decode_row(before[number]), name)
        batch = collate([PackedRow(0, before[number])])
        with torch.no_grad():
            outputs = model(batch)
        wanted = torch.cat((outputs["chosen_logps"], outputs["rejected_logps"][0]))
        np.testing.assert_allclose(row.reference, wanted, rtol=1e-5, atol=1e-6)


def test_the_losses_are_those_with_the_reference_itself_which_is_not_loaded(stages, stage_config, overrides, tmp_path):
    # Without a lambda_anchor, as `ugt reference --help` says. Batches of four rows: some evaluate no pair.
    config = stage_config(tmp_path / "run", 3, stages / "stage2/best", *overrides()[:-1], "device_eval_batch_size=4")
    with_model = stage_config(tmp_path / "wanted", 3, stages / "stage2/best", "loss.lambda_anchor=0")
    for one in (with_model, config):
        trainer = build_trainer(one)
        assert (trainer.state.model.reference is None) == (one is config)
        trainer.train()
        trainer.close()
    ours, wanted = metrics_of(tmp_path / "run"), metrics_of(tmp_path / "wanted")
    assert len(ours) == len(wanted)
    for line, other in zip(ours, wanted, strict=True):
        for name in (
            "loss/train/total",
            "loss/train/dpo_loss",
            "metrics/eval/loss",
            "metrics/eval/preference_accuracy",
        ):
            assert (name in line) == (name in other)
            if name in line:
                assert line[name] == pytest.approx(other[name], rel=1e-5)


def test_rows_with_no_or_another_reference_are_refused(shop, stages, stage_config, scored, overrides, tmp_path):
    for given, stage, words in (
        (overrides(folder=shop), 2, "data.train) holds no log-probabilities of a reference"),
        (overrides(eval_folder=shop), 2, "data.eval) holds no log-probabilities of a reference"),
        (overrides(), 1, "data.train) holds the log-probabilities of another reference"),
    ):
        config = stage_config(tmp_path / "run", 3, stages / f"stage{stage}/best", *given)
        for start in (describe, build_trainer):
            with pytest.raises(UserError) as error:
                start(config)
            assert words in str(error.value)
            assert "ugt reference" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_probabilities_over_other_ids_are_refused(stages, stage_config, overrides, tmp_path):
    more = ("model.level_softmax=catalogue", *overrides())
    config = stage_config(tmp_path / "run", 3, stages / "stage2/best", *more)
    for start in (describe, build_trainer):
        with pytest.raises(UserError, match=r"model\.level_softmax is catalogue, but .* where it is codebook"):
            start(config)


def test_an_unused_reference_is_refused(stages, stage_config, tmp_path):
    for more in ("loss.dpo_reference_free=true", "loss.lambda_preference=0"):
        stored = ("loss.reference_log_probs=data", "loss.lambda_anchor=0", more)
        with pytest.raises(UserError, match="reference_log_probs is data, but loss"):
            stage_config(tmp_path, 3, stages / "stage2/best", *stored)


def test_an_evaluation_with_the_reference_has_the_anchor_of_the_training(stages, stage_config, tmp_path):
    for options, anchor in ((("loss.reference_log_probs=data",), 0), ((), 0.4)):
        config = stage_config(tmp_path, 3, stages / "stage2/best", *options)
        assert config.loss.lambda_anchor is None
        assert evaluation_config(config, [], batch_size=8).loss.anchor_weight == anchor


def test_bad_input_leaves_nothing_behind(shop, stages, scored, tmp_path):
    checkpoint = ["reference", "--checkpoint", str(stages / "stage2/best")]
    with pytest.raises(UserError, match="holds recommend rows; expected rows of --kind preference"):
        ugt([*checkpoint, "--data", str(shop / "train"), "--out", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="give --overwrite"):
        ugt([*checkpoint, "--data", str(shop / "preference"), "--out", str(scored / "preference")])


def test_scored_again_by_the_same_model_is_the_same_folder(stages, scored, tmp_path):
    words = ["--data", str(scored / "preference"), "--out", str(tmp_path / "again"), "--batch-size", "7"]
    assert ugt(["reference", "--checkpoint", str(stages / "stage2/best"), *words]) == 0
    for path in (scored / "preference").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    facts = json.loads((tmp_path / "again/manifest.json").read_text())
    assert facts["reference"].startswith("xxh64:")
