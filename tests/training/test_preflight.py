"""Checks and defaults that depend on the machine's GPUs, which are faked, and on what the data has."""

import pytest
import torch

from convert.jsonl_to_mds import main as convert
from tests.shop import SIZES, add_actions_and_times, write_rows
from ugt_composer.config.load import load_config
from ugt_composer.data.manifest import check_data, streams_of
from ugt_composer.errors import UserError
from ugt_composer.parallelism import precision
from ugt_composer.training.preflight import check_machine, check_run


@pytest.fixture
def gpus(monkeypatch):
    """gpus(bf16=True, ranks=1): pretends that this machine has eight GPUs and runs that many ranks."""

    def pretend(bf16: bool = True, ranks: int = 1) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
        monkeypatch.setattr(precision, "gpu_multiplies_bf16", lambda: bf16)
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))

    return pretend


def test_an_auto_microbatch_needs_a_single_process(gpus):
    config = load_config(overrides=["device_train_microbatch_size=auto", "global_train_batch_size=2048"])
    gpus(ranks=1)
    check_machine(config)
    gpus(ranks=4)
    with pytest.raises(UserError, match=r"auto with 4 ranks.*expected a number.*global_train_batch_size=512"):
        check_machine(config)


@pytest.mark.parametrize("key", ["init_from", "loss.reference_from"])
@pytest.mark.parametrize("folder", ["run", "run/best", "./run/latest", "other/../run/best"])
def test_a_model_that_the_run_replaces_is_no_starting_point(tmp_path, monkeypatch, key, folder):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{key} is {folder}, which this run replaces"):
        check_run(load_config(overrides=["save_folder=run", f"{key}={folder}"]))
    check_run(load_config(overrides=["save_folder=run", f"{key}=run/earlier-1/best"]))


@pytest.fixture(scope="module")
def with_actions(tmp_path_factory):
    """Shards whose rows have actions up to 3 and times."""
    folder = tmp_path_factory.mktemp("actions")
    write_rows(folder / "rows.jsonl", "recommend", 8, seed=0)
    add_actions_and_times(folder / "rows.jsonl", 3, seed=0)
    sizes = ["--codebook-sizes", *map(str, SIZES)]
    assert convert([str(folder / "rows.jsonl"), "--kind", "recommend", "--out", str(folder / "mds"), *sizes]) == 0
    return folder / "mds"


def test_actions_that_the_model_has_no_embedding_for_are_refused(stage_config, with_actions, tmp_path):
    options = f"data.train.local={with_actions}"
    for number in (0, 3):
        config = stage_config(tmp_path, 1, None, options, f"model.num_actions={number}")
        check_data(config, "data.train", streams_of("data.train", config.data.train))
    config = stage_config(tmp_path, 1, None, options, "model.num_actions=2")
    with pytest.raises(UserError, match=r"mds \(data.train\) has the action 3, but model.num_actions is 2.*at least 3"):
        check_data(config, "data.train", streams_of("data.train", config.data.train))
