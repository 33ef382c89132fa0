"""bfloat16 on a CPU, which runs the same code as a GPU's mixed precision."""

import pytest
import torch

from tests.shop import comparable
from ugt_composer.config.load import load_config
from ugt_composer.config.schema import Config
from ugt_composer.parallelism import precision as precisions
from ugt_composer.parallelism.precision import about_precision, precision_context, resolve_precision
from ugt_composer.training.build import build_trainer

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's precision is Composer's")


def test_the_context_rounds_products_to_half_only_where_it_is_to():
    x = torch.randn(4, 4)
    for precision, dtype in (("amp_bf16", torch.bfloat16), ("fp32", torch.float32)):
        with precision_context(precision):
            assert (x @ x).dtype == dtype


@pytest.mark.parametrize(
    ("precision", "has_instructions", "warns"),
    [("amp_bf16", False, True), ("amp_bf16", True, False), ("auto", False, False)],
)
def test_a_cpu_without_instructions_for_half_is_warned_of(monkeypatch, precision, has_instructions, warns):
    monkeypatch.setattr(precisions, "cpu_multiplies_bf16", lambda: has_instructions)
    remark = about_precision(Config(precision=precision))
    assert (remark is not None) == warns
    assert not warns or all(word in remark for word in ("amp_bf16", "avx512_bf16", "precision=fp32"))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_stage_trains_in_half_as_it_does_in_single(stage_config, stages, tmp_path, stage):
    previous = stages / f"stage{stage - 1}/best" if stage > 1 else None
    lines, dtypes = {}, set()
    for precision in ("fp32", "amp_bf16"):
        out = tmp_path / precision
        # With the tests' usual learning rate of .01, steps amplify rounding errors to several per cent in four batches.
        overrides = [f"precision={precision}", "optimizer.lr=1e-3", "max_duration=4ba"]
        trainer = build_trainer(stage_config(out, stage, previous, *overrides))
        product = trainer.state.model.model.encoder.layers[0].ff.up
        product.register_forward_hook(lambda module, given, made: dtypes.add(made.dtype))
        assert all(p.dtype == torch.float32 for p in trainer.state.model.parameters())
        trainer.train()
        trainer.close()
        assert dtypes == {torch.float32 if precision == "fp32" else torch.bfloat16}
        dtypes.clear()
        lines[precision] = comparable(out)
    for single, half in zip(lines["fp32"], lines["amp_bf16"], strict=True):
        assert half["loss/train/total"] == pytest.approx(single["loss/train/total"], rel=0.01)
    assert lines["fp32"] != lines["amp_bf16"]


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
def test_auto_is_bf16_if_the_gpu_supports_it(monkeypatch, asked, bf16, resolved, remark):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(precisions, "gpu_multiplies_bf16", lambda: bf16)
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
