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
import torch._dynamo

from tests.gpu.conftest import ACTIONS, PRECISIONS, STRATEGIES, train
from tests.shop import ROOT, stage_arguments
from ugt_composer.checkpoint.portable import load_portable, read_facts
from ugt_composer.config.load import load_config
from ugt_composer.errors import EXIT_PREEMPTED
from ugt_composer.model.grouped_product import runs_without_waiting

TOTAL, NORM = "loss/train/total", "metrics/train/grad_norm"
NO_EVALUATION = ("data.eval.streams=[]", "save_best_on=null")
DETERMINISTIC = ("deterministic=true", "model.dropout=0.2")
QUIET = ("log_interval=5ba", "save_interval=100ba", "eval_interval=100ba", "precision=amp_bf16")
ACTIONS_AND_TIMES = (f"model.num_actions={ACTIONS}", "model.time_buckets=8", "model.relative_time_bias=true")
CATALOGUE = (
    "model.level_softmax=catalogue",
    "model.pair_buckets=100",
    "model.repeat_bias=true",
    "model.decoder_start=user",
)
DISTILLATION = ("loss.contrastive_negatives=catalogue", "loss.lambda_distillation=1.0")
GROUP = ("model.level_softmax=catalogue", "loss.preference_objective=group", "loss.group_rewards=[0.1,0.3,1.0]")
# Stages with more than the shipped YAMLs switch on, and how they differ from these.
JOBS = {
    "actions-and-times": (2, ACTIONS_AND_TIMES),
    "catalogue": (2, (*CATALOGUE, *DISTILLATION, "init_from=null")),
    "group": (3, GROUP),
    "average": (2, ("ema_decay=0.9",)),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_stage_learns_and_is_evaluated(run, precision):
    for stage in (1, 2, 3):
        lines = run(f"stage{stage}", stage, f"precision={precision}")
        # Stage 3's batches mix two kinds of rows in changing proportions, so that its total loss is noisy.
        name = TOTAL if stage < 3 else "loss/train/dpo_loss"
        assert lines[-1][name] < lines[0][name]
        assert all(line[NORM] > 0 for line in lines)
        evaluated = evaluations(lines)
        assert len(evaluated) >= 2
        assert evaluated[-1]["recall@10"] > 10 / 60 / 2
        assert evaluated[-1]["hit_rate_l1@10"] > 0.3


def evaluations(lines: list[dict]) -> list[dict[str, float]]:
    prefix = "metrics/eval/"
    values = [{key.removeprefix(prefix): line[key] for key in line if key.startswith(prefix)} for line in lines]
    return [evaluation for evaluation in values if evaluation]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("job", ["actions-and-times", "catalogue"])
def test_each_stage_of_a_job_learns_and_is_evaluated(shop, tmp_path, job, precision):
    of_catalogue = (CATALOGUE, *((*CATALOGUE, *DISTILLATION),) * 2)
    overrides = {"actions-and-times": (ACTIONS_AND_TIMES,) * 3, "catalogue": of_catalogue}[job]
    previous = tmp_path
    for stage, more in enumerate(overrides, start=1):
        out = tmp_path / f"stage{stage}"
        lines = train(shop, out, stage, previous, f"precision={precision}", *more)
        first, *_, last = evaluations(lines)
        assert last["loss"] < first["loss"]
        assert last["recall@10"] > 10 / 60
        assert ("distillation_loss" in last) == (job == "catalogue" and stage > 1)
        previous = out / "best"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_group_job_raises_its_reward(run, precision):
    lines = run("group", 3, f"precision={precision}", *GROUP, "loss.lambda_preference=1.0", "optimizer.lr=1e-3")
    assert lines[0]["metrics/train/group_kl"] == 0  # the policy is the reference
    first, *_, last = evaluations(lines)
    assert last["group_reward"] > first["group_reward"] > 0
    assert last["group_kl"] > first["group_kl"] > 0
    assert last["recall@10"] > 10 / 60


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_job_with_the_shipped_condition_keeps_the_ranking(run, tmp_path, precision):
    """`save_best_if` and the anchor as stage 3's YAML has them: the start is evaluated, and `best/` fulfils it."""
    shipped = load_config(ROOT / "yamls/stage3.yaml")
    options = (f"precision={precision}", f"save_best_if={shipped.save_best_if}", "optimizer.lr=1e-3")
    lines = run("shipped", 3, *options)
    assert lines[0]["batch"] == 0
    assert lines[1]["loss/train/anchor_loss"] == 0  # the policy is the reference
    assert lines[-1]["loss/train/anchor_loss"] > 0
    values = {line["batch"]: line["metrics/eval/ndcg@10"] for line in lines if "metrics/eval/ndcg@10" in line}
    best = int(read_facts(tmp_path / "shipped/best")["batch"])
    assert best > 0
    assert values[best] >= 0.97 * values[0]


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


@pytest.mark.parametrize("precision", ["amp_bf16", "amp_fp16"])
@pytest.mark.parametrize("job", JOBS)
def test_a_resumed_job_equals_an_uninterrupted_one_bit_for_bit(run, tmp_path, job, precision):
    """Also its evaluations, and the weights that it leaves, which may be an average."""
    stage, overrides = JOBS[job]
    options = (f"precision={precision}", *DETERMINISTIC, "eval_interval=2ba", "max_duration=6ba", *overrides)
    whole = run("whole", stage, *options)
    run("parts", stage, *options, batches=4)
    assert run("parts", stage, *options) == whole
    weights = [load_portable(tmp_path / name / "latest")[0].state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.timeout(200)
def test_a_compiled_run_trains_each_stage_and_resumes_as_an_eager_one(shop, tmp_path):
    """With evaluations and checkpoints. A compiler that gave a layer up after too many variants would fail it."""
    short = ("max_duration=4ba", "eval_interval=2ba", "save_interval=2ba", "precision=amp_bf16", "optimizer.lr=1e-4")
    previous = tmp_path
    for stage in (1, 2, 3):
        eager = train(shop, tmp_path / f"eager{stage}", stage, previous, *short)
        start = (shop, tmp_path / f"compiled{stage}", stage, previous, *short, "compile=true")
        if stage != 2:  # which uses what stage 1 compiled
            torch._dynamo.reset()
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            if stage == 3:
                train(*start, batches=2)
            compiled = train(*start)
        assert [line["batch"] for line in compiled] == [1, 2, 3, 4]
        for line, wanted in zip(compiled, eager, strict=True):
            assert line[TOTAL] == pytest.approx(wanted[TOTAL], rel=3e-2)
            assert line[NORM] == pytest.approx(wanted[NORM], rel=0.3)
        for found, wanted in zip(evaluations(compiled), evaluations(eager), strict=True):
            assert found["loss"] == pytest.approx(wanted["loss"], rel=3e-2)
        previous = tmp_path / f"compiled{stage}/best"


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


@pytest.fixture
def waits_are_errors(monkeypatch):
    """Within it, waits of the CPU for the GPU are errors in batches 3, 4 and 6 of a run."""
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
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("waits_are_errors")
def test_nothing_waits_for_the_gpu_in_a_step(gpu, run):
    """Steps that log nothing, under the strategies that we can change (not DeepSpeed's engine)."""
    for stage in (1, 2, 3):
        for strategy in ("ddp", "fsdp"):
            run(f"{strategy}{stage}", stage, *QUIET, *STRATEGIES[strategy], batches=7)
    if runs_without_waiting(torch.empty(1, device=gpu), torch.bfloat16, 1, 1, 8):
        for strategy in ("ddp", "fsdp"):
            dropless = (*STRATEGIES[strategy], "model.expert_capacity_factor=null")
            run(f"dropless-{strategy}", 1, *QUIET, *dropless, batches=7)


@pytest.mark.usefixtures("waits_are_errors")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("job", JOBS)
def test_a_job_never_waits_for_the_gpu_in_a_step(run, job, strategy):
    stage, overrides = JOBS[job]
    run(job, stage, *QUIET, *STRATEGIES[strategy], *overrides, batches=7)


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
