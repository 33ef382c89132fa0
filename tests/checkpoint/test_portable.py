"""A corrupted model is refused by training and by `ugt recommend`; one without a record still loads; and a stage may
read inputs that the model it starts from does not."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY
from ugt_composer.checkpoint.portable import CONFIG, RECORD, WEIGHTS, load_portable, load_weights, save_portable
from ugt_composer.cli.main import main as ugt
from ugt_composer.config.load import load_config
from ugt_composer.errors import EXIT_BAD_INPUT, UserError
from ugt_composer.model.ugt import UGT
from ugt_composer.training.build import build_trainer


@pytest.fixture
def best(stages, tmp_path) -> Path:
    return Path(shutil.copytree(stages / "stage2" / "best", tmp_path / "best"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_flipped_bit_is_refused_as_init_from_and_as_reference(stages, stage_config, tmp_path, best, name):
    flip_a_bit(best / name)
    sentence = rf"best/{name} has the xxh64 \w+, record\.json records \w+: it was corrupted or changed"
    with pytest.raises(UserError, match=sentence):
        build_trainer(stage_config(tmp_path / "run", 3, best, f"loss.reference_from={stages / 'stage2' / 'best'}"))
    good = stages / "stage2" / "best"
    with pytest.raises(UserError, match=sentence):
        build_trainer(stage_config(tmp_path / "run", 3, good, f"loss.reference_from={best}"))
    assert not (tmp_path / "run").exists()
    (best / RECORD).unlink()
    if name == WEIGHTS:  # the way out that the message names
        load_portable(best)


@pytest.mark.parametrize(
    ("name", "words"), [(WEIGHTS, "has the xxh64"), (CONFIG, "has the xxh64"), (RECORD, "is not a record")]
)
def test_ugt_recommend_refuses_a_corrupted_model(best, ended, name, words):
    flip_a_bit(best / name)
    result = ended(lambda: ugt(["recommend", "--checkpoint", str(best), "--history", "-"]))
    assert result.returncode == EXIT_BAD_INPUT
    assert result.stderr.startswith(f"error: {best / name} {words}")
    assert result.stderr.count("\n") == 1


def test_a_missing_file_is_refused_and_a_missing_record_accepted(best):
    (best / RECORD).rename(best / "elsewhere.json")
    load_portable(best)
    (best / "elsewhere.json").rename(best / RECORD)
    load_portable(best)
    (best / WEIGHTS).unlink()
    with pytest.raises(UserError, match=rf"{WEIGHTS} is missing"):
        load_portable(best)


@pytest.mark.parametrize("place", ["", "ba00000010.pt"])
def test_the_model_of_a_run_is_named_where_its_folder_or_checkpoint_is_given(stages, place):
    with pytest.raises(UserError, match=r"no such file; did you mean .*stage2/best\?"):
        load_portable(stages / "stage2" / place)


@pytest.mark.parametrize("stored", ["data", "model"])
def test_a_missing_reference_is_refused_with_its_key(stages, stage_config, tmp_path, stored):
    keys = ("loss.reference_from=nowhere", f"loss.reference_log_probs={stored}")
    with pytest.raises(
        UserError,
        match=r"loss.reference_from is nowhere; nowhere/model\.safetensors: no such file.*; loss.reference_from=null",
    ):
        build_trainer(stage_config(tmp_path / "run", 3, stages / "stage2" / "best", *keys))


def saved(folder: Path, model: UGT, **changes) -> Path:
    """A portable model of the tiny config with changes."""
    folder.mkdir(exist_ok=True)
    config = load_config()
    config = replace(config, model=replace(TINY, **changes), data=replace(config.data, catalogue="catalogue.jsonl"))
    save_portable(folder, model.state_dict(), config, {})
    return folder


INPUTS = {"num_actions": 2, "time_buckets": 8, "relative_time_bias": True}


OPTIONAL = {**INPUTS, "pair_buckets": 100, "repeat_bias": True, "level_softmax": "catalogue"}


@pytest.mark.parametrize("new", [INPUTS, {"num_actions": 2}, {"time_buckets": 8, "relative_time_bias": True}])
def test_a_stage_may_read_more_than_the_model_that_it_starts_from(tiny_model, random_batch, tmp_path, new):
    old, model, batch = tiny_model(seed=1), tiny_model(seed=2, **new), random_batch()
    load_weights(model, replace(TINY, **new), saved(tmp_path / "old", old))
    before, after = old(batch), model(batch)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_stage_may_add_vectors_of_pairs_and_a_bias_for_repeats(tiny_model, tmp_path):
    old = tiny_model(seed=1, level_softmax="catalogue")
    new = {"level_softmax": "catalogue", "pair_buckets": 100, "repeat_bias": True}
    model = tiny_model(seed=2, **new)
    load_weights(model, replace(TINY, **new), saved(tmp_path / "old", old, level_softmax="catalogue"))
    added = {model.heads.heads[1].pairs.weight, *model.level_repeats.parameters(), *model.user_repeats.parameters()}
    assert not any(parameter.any() for parameter in added)
    others = [parameter for parameter in model.parameters() if parameter not in added]
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), others, strict=True))


def test_a_model_with_inputs_is_loaded_with_their_weights(tiny_model, tmp_path):
    model, other = tiny_model(**OPTIONAL), tiny_model(seed=2, **OPTIONAL)
    torch.nn.init.normal_(model.gap_embedding.weight)
    torch.nn.init.normal_(model.heads.heads[1].pairs.weight)
    torch.nn.init.normal_(model.level_repeats.weight)
    load_weights(other, replace(TINY, **OPTIONAL), saved(tmp_path / "model", model, **OPTIONAL))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_actions": 0}, "model.num_actions = 2, now it is 0"),
        ({"num_actions": 3}, "model.num_actions = 2, now it is 3"),
        ({"time_buckets": 16}, "model.time_buckets = 8, now it is 16"),
        ({"relative_time_bias": False}, "model.relative_time_bias = True, now it is False"),
        ({"pair_buckets": 0}, "model.pair_buckets = 100, now it is 0"),
        ({"repeat_bias": False}, "model.repeat_bias = True, now it is False"),
    ],
)
def test_an_input_that_a_model_was_trained_with_is_not_dropped_or_changed(tiny_model, tmp_path, change, sentence):
    folder = saved(tmp_path / "model", tiny_model(**OPTIONAL), **OPTIONAL)
    now = {**OPTIONAL, **change}
    with pytest.raises(UserError, match=f"was trained with {sentence}.*keeps what it was trained with"):
        load_weights(tiny_model(**now), replace(TINY, **now), folder)
