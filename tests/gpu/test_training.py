"""Whole runs on a GPU: stages, strategies, precisions, resuming."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.gpu.conftest import PRECISIONS, STRATEGIES, train
from tests.shop import ROOT, stage_arguments
from ugt_composer.errors import EXIT_PREEMPTED
from ugt_composer.model.grouped_product import runs_without_waiting

TOTAL, NORM = "loss/train/total", "metrics/train/grad_norm"
NO_EVALUATION = ("data.eval.streams=[]", "save_best_on=null")
DETERMINISTIC = ("deterministic=true", "model.dropout=0.2")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_stage_learns_and_is_evaluated(run, precision):
    for stage in (1, 2, 3):
        lines = run(f"stage{stage}", stage, f"precision={precision}")
        # Stage 3's batches mix two kinds of rows in changing proportions, so that its total loss is noisy.
        name = TOTAL if stage < 3 else "loss/train/dpo_loss"
        assert lines[-1][name] < lines[0][name]
        assert all(line[NORM] > 0 for line in lines)
        evaluated = [line for line in lines if "metrics/eval/recall@10" in line]
        assert len(evaluated) >= 2
        assert evaluated[-1]["metrics/eval/recall@10"] > 10 / 60 / 2
        assert evaluated[-1]["metrics/eval/hit_rate_l1@10"] > 0.3


ALIKE = (*NO_EVALUATION, "model.expert_capacity_factor=1.0", "optimizer.lr=1e-4")


@pytest.fixture(scope="session")
def in_float32(shop, trained, tmp_path_factory) -> list[dict]:
    out = tmp_path_factory.mktemp("in_float32")
    return train(shop, out, 3, trained / "stage2/best", "precision=fp32", *ALIKE, batches=4)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_train_as_ddp_does_in_float32(run, in_float32, strategy, precision):
    """The preference margin also starts at exactly 0, for any precision and expert capacity."""
    lines = run(strategy, 3, f"precision={precision}", *ALIKE, *STRATEGIES[strategy], batches=4)
    assert lines[0]["metrics/train/dpo_reward_margin"] == 0
    assert lines[0]["metrics/train/dpo_accuracy"] == 0
    bound = {"fp32": 1e-5, "amp_bf16": 3e-2, "amp_fp16": 1e-2}[precision]
    for line, wanted in zip(lines, in_float32, strict=True):
        assert line[TOTAL] == pytest.approx(wanted[TOTAL], rel=bound)
        if precision != "amp_fp16" or math.isfinite(line[NORM]):  # fp16 skips steps while it looks for a scale
            assert line[NORM] == pytest.approx(wanted[NORM], rel=10 * bound)


@pytest.mark.parametrize("strategy", ["fsdp", "zero-2", "zero-3"])
def test_other_strategies_are_evaluated(run, strategy):
    wanted, lines = (run(name, 2, "precision=fp32", *STRATEGIES[name], batches=5) for name in ("ddp", strategy))
    evaluated = {key: value for key, value in wanted[-1].items() if key.startswith("metrics/eval")}
    assert len(evaluated) > 30
    for key, value in evaluated.items():
        assert lines[-1][key] == pytest.approx(value, rel=1e-3, abs=1e-3), key


@pytest.mark.parametrize(
    ("strategy", "precision"),
    [*(("ddp", precision) for precision in PRECISIONS), *((name, "amp_bf16") for name in STRATEGIES if name != "ddp")],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(run, strategy, precision):
    options = (f"precision={precision}", *DETERMINISTIC, *NO_EVALUATION, *STRATEGIES[strategy])
    whole = run("whole", 3, *options, "max_duration=7ba")
    run("parts", 3, *options, "max_duration=7ba", batches=3)
    assert run("parts", 3, *options, "max_duration=7ba") == whole


def test_two_runs_of_one_command_are_equal_bit_for_bit(run):
    assert run("a", 2, *DETERMINISTIC) == run("b", 2, *DETERMINISTIC)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_program_resumes_by_the_same_command(shop, trained, tmp_path, number):
    more = ["max_duration=40ba", "save_interval=5ba", "eval_interval=1000ba", "precision=amp_bf16", *DETERMINISTIC]
    records = {}
    for name in ("whole", "parts"):
        arguments = [*stage_arguments(shop, tmp_path / name, 3, trained / "stage2/best"), *more]
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        record = tmp_path / name / "metrics.jsonl"
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        if name == "parts":
            process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            wait_for_lines(record, 12, process)
            process.send_signal(number)
            status = process.wait(60)
            assert status == (EXIT_PREEMPTED if number == signal.SIGTERM else -number), process.stderr.read()
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
        records[name] = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["batch"] for line in records["parts"]] == list(range(1, 41))
    for line, wanted in zip(records["parts"], records["whole"], strict=True):
        assert {k: v for k, v in line.items() if "samples/s" not in k} == {
            k: v for k, v in wanted.items() if "samples/s" not in k
        }


def wait_for_lines(record: Path, lines: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while not (record.exists() and len(record.read_text().splitlines()) >= lines):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("compile=true",), marks=pytest.mark.timeout(280)),
        ("parallelism.activation_checkpointing=true",),
        ("allow_tf32=true", "precision=fp32"),
        ("parallelism.strategy=fsdp", "parallelism.fsdp.cpu_offload=true"),
        ("parallelism.strategy=fsdp", "parallelism.shard_reference=true"),
        ("parallelism.strategy=deepspeed", "parallelism.deepspeed.offload_optimizer=cpu"),
        ("loss.contrastive_negatives=catalogue", "evaluation.item_score_weight=0.5", "evaluation.exclude_seen=true"),
        ("optimizer.name=lamb",),
        ("device_train_microbatch_size=auto",),
        ("data.train.num_workers=1", "data.eval.num_workers=1", "callbacks.memory_monitor=true"),
    ],
    ids=lambda options: options[-1],
)
def test_options_run(run, options):
    lines = run("options", 3, *options, batches=5)
    assert len(lines) == 5
    assert all(math.isfinite(line[TOTAL]) for line in lines)
    assert "metrics/eval/recall@10" in lines[-1]


def test_nothing_waits_for_the_gpu_in_a_step(gpu, run, monkeypatch):
    """Steps that log nothing, under the strategies that we can change (not DeepSpeed's engine)."""
    from composer import Callback

    from ugt_composer.training import build as module

    class Strict(Callback):
        def batch_start(self, state, logger):
            quiet = state.timestamp.batch.value in (2, 3, 5)
            torch.cuda.set_sync_debug_mode("error" if quiet else "default")

        def fit_end(self, state, logger):
            torch.cuda.set_sync_debug_mode("default")

    build = module.build_trainer

    def watched(config):
        trainer = build(config)
        trainer.state.callbacks.append(Strict())
        return trainer

    monkeypatch.setattr(module, "build_trainer", watched)
    quiet = ("log_interval=5ba", "save_interval=100ba", "eval_interval=100ba", "precision=amp_bf16")
    try:
        for stage in (1, 2, 3):
            for strategy in ("ddp", "fsdp"):
                run(f"{strategy}{stage}", stage, *quiet, *STRATEGIES[strategy], batches=7)
        if runs_without_waiting(gpu, torch.bfloat16, 1, 1, 8):
            for strategy in ("ddp", "fsdp"):
                dropless = (*STRATEGIES[strategy], "model.expert_capacity_factor=null")
                run(f"dropless-{strategy}", 1, *quiet, *dropless, batches=7)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def command(*arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", "from ugt_composer.cli.main import run; run()", *arguments],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_ugt_recommend(trained, tmp_path):
    history = tmp_path / "user.json"
    history.write_text(json.dumps({"user_id": "u", "items": ["item-3", "item-4", "item-6"]}))
    best = str(trained / "stage2/best")
    out = command("recommend", "--checkpoint", best, "--history", str(history), "-k", "5", "--json")
    assert len({entry["item_id"] for entry in json.loads(out)["recommendations"]}) == 5


def test_ugt_evaluate_gives_the_run_s_own_numbers(shop, trained, tmp_path):
    data = ["--data", str(shop / "eval"), "--data", str(shop / "preference_eval")]
    command("evaluate", "--checkpoint", str(trained / "stage2/latest"), *data, "--json", str(tmp_path / "report.json"))
    found = json.loads((tmp_path / "report.json").read_text())["metrics"]
    lines = (trained / "stage2/metrics.jsonl").read_text().splitlines()
    wanted = {
        key.removeprefix("metrics/eval/"): value for key, value in json.loads(lines[-1]).items() if "/eval/" in key
    }
    for name in ("recall@10", "ndcg@10", "ntp_loss", "preference_accuracy"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-5), name


@pytest.mark.parametrize("name", ["reference", "export"])
def test_ugt_writes(shop, trained, tmp_path, name):
    data = ["--data", str(shop / "preference")] if name == "reference" else []
    command(name, "--checkpoint", str(trained / "stage2/best"), *data, "--out", str(tmp_path / "out"))
    assert any((tmp_path / "out").iterdir())
