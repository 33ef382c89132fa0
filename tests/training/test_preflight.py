"""Checks and defaults that depend on the machine's GPUs, which are faked."""

import pytest
import torch

from ugt_composer.config.load import load_config
from ugt_composer.errors import UserError
from ugt_composer.parallelism import precision
from ugt_composer.parallelism.precision import about_precision, resolve_precision
from ugt_composer.training.preflight import check_machine


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


@pytest.mark.parametrize(
    ("asked", "bf16", "resolved", "remark"),
    [
        ("auto", True, "amp_bf16", None),
        ("auto", False, "fp32", "precision is auto, which is fp32 on Tesla T4"),
        ("amp_bf16", True, "amp_bf16", None),
        ("amp_bf16", False, "amp_bf16", "which Tesla T4 only emulates"),
        ("amp_fp16", False, "amp_fp16", None),
        ("fp32", False, "fp32", None),
    ],
)
def test_auto_is_bf16_if_the_gpu_supports_it(gpus, asked, bf16, resolved, remark):
    gpus(bf16)
    assert resolve_precision(asked) == resolved
    found = about_precision(load_config(overrides=[f"precision={asked}"]))
    assert found is None if remark is None else remark in found


def test_emulated_bf16_does_not_count(monkeypatch):
    """A Turing GPU emulates bf16: it has no instructions for it."""
    from types import SimpleNamespace

    from ugt_composer.parallelism.precision import gpu_multiplies_bf16

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    for major, multiplies in ((7, False), (8, True)):
        properties = SimpleNamespace(major=major)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=properties: found)
        assert gpu_multiplies_bf16() == multiplies
