"""Files that must not be lost or mixed up, and data that must not be trained on."""

import json

import pytest
import torch

from tests.shop import metrics_of, without_catalogue
from ugt_composer.checkpoint.portable import LONGEST_HISTORY, load_portable, save_portable
from ugt_composer.checkpoint.save_folder import list_checkpoints
from ugt_composer.errors import UserError
from ugt_composer.training.build import build_trainer
from ugt_composer.training.dry_run import describe


def test_a_fresh_start_moves_the_earlier_run_aside(stage_config, tmp_path):
    first = build_trainer(stage_config(tmp_path))
    first.train()
    first.close()
    old = {path.name for path in list_checkpoints(tmp_path)}
    fresh = build_trainer(stage_config(tmp_path, 1, None, "autoresume=false", "max_duration=4ba"))
    fresh.train()
    fresh.close()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["ba00000004.pt", "ba00000003.pt"]
    assert {path.name for path in list_checkpoints(tmp_path / "earlier-1")} == old
    assert [line["batch"] for line in metrics_of(tmp_path)] == [1, 2, 3, 4]


def test_a_remote_is_fetched_checked_and_gives_the_same_numbers(shop, stage_config, tmp_path):
    local = build_trainer(stage_config(tmp_path / "local", 1, None, "max_duration=4ba"))
    local.train()
    local.close()
    cache = tmp_path / "cache"
    remotes = (
        f"data.train.local={cache}/train",
        f"data.train.remote={shop / 'train'}",
        f"data.eval.streams=[{{local: {cache}/eval, remote: {shop / 'eval'}}},{{local: {shop / 'preference_eval'}}}]",
    )
    remote = build_trainer(stage_config(tmp_path / "remote", 1, None, *remotes, "max_duration=4ba"))
    remote.train()
    remote.close()
    for ours, theirs in zip(metrics_of(tmp_path / "local"), metrics_of(tmp_path / "remote"), strict=True):
        assert {k: v for k, v in ours.items() if "samples/s" not in k} == {
            k: v for k, v in theirs.items() if "samples/s" not in k
        }
    with pytest.raises(UserError, match="expected at least those sizes"):
        build_trainer(stage_config(tmp_path / "small", 1, None, *remotes, "model.codebook_sizes=[24,40,60]"))
    nowhere = (f"data.train.local={cache}/new", f"data.train.remote={tmp_path}/nowhere")
    with pytest.raises(UserError, match=r"nowhere/manifest\.json: cannot be fetched"):
        build_trainer(stage_config(tmp_path / "nowhere", 1, None, *nowhere))


def test_preference_rows_without_a_preference_loss_are_refused(shop, stage_config, tmp_path):
    with pytest.raises(UserError, match=r"loss\.lambda_preference is 0"):
        build_trainer(stage_config(tmp_path, 1, None, f"data.train.local={shop / 'preference'}"))


STARTS = pytest.mark.parametrize("start", [build_trainer, describe])


@STARTS
@pytest.mark.parametrize(
    "change",
    [
        "model.n_heads=4",
        "model.user_pooling=mean",
        "model.user_activation=none",
        "model.top_k_experts=1",
        "model.history_positions=from_end",
    ],
)
def test_weights_of_a_differently_configured_model_are_refused(stages, stage_config, tmp_path, change, start):
    with pytest.raises(UserError, match=change.split("=")[0]):
        start(stage_config(tmp_path, 2, stages / "stage1" / "best", change))


@STARTS
def test_weights_of_another_shape_are_listed(stages, stage_config, tmp_path, start):
    with pytest.raises(UserError, match="of another shape") as error:
        start(stage_config(tmp_path, 2, stages / "stage1" / "best", "model.d_ff=64", "model.dropout=0.25"))
    assert "does not fit model.*: model.d_ff was 32, now it is 64; " in str(error.value)
    assert "ff.up" in str(error.value)
    with pytest.raises(UserError, match="missing"):
        start(stage_config(tmp_path, 2, stages / "stage1" / "best", "model.n_encoder_layers=2"))


@STARTS
def test_a_model_of_other_items_is_refused(shop, stages, stage_config, tmp_path, start):
    lines = (shop / "catalogue.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "catalogue.jsonl").write_text("".join(lines[1:]))
    other = (f"data.catalogue={tmp_path / 'catalogue.jsonl'}", *without_catalogue(shop, tmp_path))
    with pytest.raises(UserError, match="was trained with a catalogue of fingerprint"):
        start(stage_config(tmp_path / "run", 2, stages / "stage1" / "best", *other))


def test_a_run_does_not_resume_with_other_rows(shop, stages, stage_config):
    with pytest.raises(UserError, match=r"other rows in data\.train"):
        build_trainer(stage_config(stages / "stage1", 1, None, f"data.train.local={shop / 'eval'}"))


def test_a_nan_loss_ends_the_run_before_it_is_saved(stage_config, tmp_path):
    trainer = build_trainer(stage_config(tmp_path, 1, None, "save_interval=1ba"))
    trainer.fit(duration="2ba")
    with torch.no_grad():
        trainer.state.model.model.decoder.norm.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="the loss of batch 3 is nan"):
        trainer.train()
    trainer.close()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["ba00000002.pt", "ba00000001.pt"]
    model, _, _ = load_portable(tmp_path / "latest")
    assert all(torch.isfinite(weight).all() for weight in model.state_dict().values())


def test_items_that_share_a_semantic_id_are_reported(shop, stage_config, tmp_path, caplog):
    twin = {"item_id": "twin", "l1_id": 5, "l2_id": 6, "l3_id": 9}
    (tmp_path / "catalogue.jsonl").write_text((shop / "catalogue.jsonl").read_text() + json.dumps(twin) + "\n")
    other = (f"data.catalogue={tmp_path / 'catalogue.jsonl'}", *without_catalogue(shop, tmp_path))
    build_trainer(stage_config(tmp_path / "run", 1, None, *other)).close()
    assert "2 items share 1 semantic ID" in caplog.text
    assert "twin" in caplog.text


@pytest.mark.parametrize("name", ["a file", "below a file"])
def test_an_unusable_save_folder_is_refused(stage_config, tmp_path, name):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" if name == "a file" else tmp_path / "file" / "run"
    with pytest.raises(UserError, match="save_folder"):
        build_trainer(stage_config(folder))


def test_a_data_set_smaller_than_its_canonical_nodes_is_refused(stage_config, tmp_path):
    with pytest.raises(UserError, match=r"205 rows, fewer than data\.train\.num_canonical_nodes \(300\)"):
        build_trainer(stage_config(tmp_path, 1, None, "data.train.num_canonical_nodes=300"))


def test_a_later_stage_of_shorter_histories_keeps_the_length_of_the_earlier_one(stages, stage_config, tmp_path):
    model, config, facts = load_portable(stages / "stage1" / "best")
    save_portable(tmp_path / "longer", model.state_dict(), config, {**facts, LONGEST_HISTORY: "20"})
    trainer = build_trainer(stage_config(tmp_path / "run", 2, tmp_path / "longer", "max_duration=1ba"))
    trainer.train()
    trainer.close()
    assert trainer.state.model.max_history == 20
    assert load_portable(tmp_path / "run" / "latest")[2][LONGEST_HISTORY] == "20"
