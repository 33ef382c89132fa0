"""Checks and defaults that depend on the machine's GPUs, which are faked."""

import pytest
import torch

from ugt_composer.config.load import load_config
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
