"""Parameter groups, optimizers and schedules."""

from types import SimpleNamespace

import pytest
import torch
from composer import Time, Timestamp

from ugt_composer.config.load import load_config
from ugt_composer.parallelism.strategy import placed
from ugt_composer.training.optim import create_optimizer, create_scheduler, parameter_groups
from ugt_composer.training.run_length import batches, run_length


def test_biases_and_norms_are_not_decayed_and_nothing_is_lost(tiny_model):
    model = tiny_model()
    model.user_proj.requires_grad_(False)
    decayed, kept = parameter_groups(model, 0.01)
    names = {id(p): name for name, p in model.named_parameters()}
    kept_names = {names[id(p)] for p in kept["params"]}
    decayed_names = {names[id(p)] for p in decayed["params"]}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.01, 0.0)
    norms = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__
        for own, _ in module.named_parameters(recurse=False)
    }
    biases = {name for name in names.values() if name.rpartition(".")[2].endswith("bias")}
    frozen = {"user_proj.weight", "user_proj.bias"}
    assert kept_names == (norms | biases) - frozen
    assert decayed_names == set(names.values()) - kept_names - frozen


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_optimizers_step_and_leave_pad_rows_at_zero(tiny_model, random_batch, name):
    model = tiny_model().train()
    optimizer = create_optimizer(model, name, lr=0.1, weight_decay=0.1)
    before = model.user_proj.weight.clone()
    outputs = model(random_batch())
    sum(value.float().pow(2).sum() for value in outputs.values()).backward()
    optimizer.step()
    assert not torch.equal(before, model.user_proj.weight)
    assert all(table.weight[0].abs().max() == 0 for table in model.item_embedding.levels)


def rate(scheduler, batch):
    state = SimpleNamespace(
        timestamp=Timestamp(batch=batch), max_duration=Time.from_timestring("7ba"), dataloader_len=None
    )
    return scheduler(state)


@pytest.mark.parametrize(
    ("name", "middle"), [("linear", 0.55), ("cosine", 0.55), ("polynomial", 0.1 + 0.9 * 0.25), ("constant", 1.0)]
)
def test_schedules_warm_up_then_fall_to_the_floor(name, middle):
    scheduler = create_scheduler(name, t_warmup="10ba", t_max="110ba", min_lr_ratio=0.1)
    assert rate(scheduler, 0) == 0
    assert rate(scheduler, 5) == pytest.approx(0.5)
    assert rate(scheduler, 10) == pytest.approx(1.0)
    assert rate(scheduler, 60) == pytest.approx(middle)
    assert rate(scheduler, 110) == pytest.approx(1.0 if name == "constant" else 0.1)


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "constant"])
def test_a_schedule_stays_at_its_floor_in_a_longer_run(name):
    scheduler = create_scheduler(name, t_warmup="1ba", t_max="4ba", min_lr_ratio=0.1)
    assert rate(scheduler, 6) == rate(scheduler, 4) == pytest.approx(1.0 if name == "constant" else 0.1)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["max_duration=3ep"], (11, 33, 3, 33)),  # 10000ba, at most 10 % of 33
        (["max_duration=30ba", "scheduler.t_warmup=2ba"], (11, 30, 2, 30)),
        (["max_duration=30ba", "scheduler.t_warmup=50%"], (11, 30, 15, 30)),
        (["max_duration=4ep", "scheduler.t_warmup=1ep", "scheduler.max_warmup_ratio=1"], (11, 44, 11, 44)),
        (["max_duration=30ba", "scheduler.t_warmup=50%", "scheduler.t_max=1ep"], (11, 30, 6, 11)),
    ],
)
def test_run_length_in_batches(overrides, expected):
    config = load_config(overrides=["global_train_batch_size=10", *overrides])
    length = run_length(config, rows_per_epoch=101)
    assert (length.batches_per_epoch, length.total, length.warmup, length.schedule) == expected


def test_times_in_batches():
    assert [batches(time, 7, 100) for time in ("3ba", "2ep", "2.5%")] == [3, 14, 3]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_adamw_is_fused_on_any_device(tiny_model, device, monkeypatch):
    """A strategy may move parameters after the optimizer is created; other devices of the machine do not matter."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "meta")
    optimizer = create_optimizer(tiny_model(), "adamw", lr=0.1, weight_decay=0.1)
    assert [group["fused"] for group in optimizer.param_groups] == [True, True]


def test_a_restored_state_is_on_the_device_of_its_parameter():
    """The fused kernel refuses a `step` on another device."""
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
    found = placed(moments, torch.device("meta"))
    assert {value.device.type for value in found.values()} == {"meta"}
    copied = placed(moments, torch.device("cpu"))
    assert all(torch.equal(copied[key], moments[key]) and copied[key] is not moments[key] for key in moments)
