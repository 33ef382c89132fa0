import re
from dataclasses import replace

import pytest
import torch

from tests.shop import ROOT
from ugt_composer.model.build import build_model
from ugt_composer.model.moe import MoEFeedForward
from ugt_composer.parallelism.activations import Shape
from ugt_composer.training.build import build_trainer
from ugt_composer.training.dry_run import describe
from ugt_composer.training.end_summary import what_now
from ugt_composer.training.memory_estimate import GIB, Estimate
from ugt_composer.training.start_summary import about_memory, active_parameters


def test_a_start_is_told_in_six_lines(stage_config, shop, tmp_path):
    options = ("precision=fp32", "scheduler.t_warmup=3ba", "scheduler.max_warmup_ratio=1", "max_duration=10ba")
    trainer = build_trainer(stage_config(tmp_path / "run", 1, None, *options))
    trainer.close()
    data, steps, schedule, model, memory, output = trainer.start_summary
    assert data == (
        f"  data      205 rows in {shop / 'train'}; evaluation on 71 rows in {shop / 'eval'}, "
        f"{shop / 'preference_eval'}; 60 items in {shop / 'catalogue.jsonl'}"
    )
    assert steps == (
        "  steps     10 batches (1.43 epochs of 7) of 32 rows: 1 rank (ddp) × microbatches: 2 of up to 16 rows"
    )
    assert schedule == (
        "  schedule  adamw, 3 batches of warm-up to a learning rate of 0.01, then cosine; evaluates every 5ba, saves "
        "every 3ba"
    )
    total = sum(parameter.numel() for parameter in trainer.state.model.parameters())
    # Of four experts two are idle, each with 32 · 32 weights and 32 biases up and down.
    assert (
        model == f"  model     {total:,} parameters, {total - 2 * 2 * (32 * 32 + 32):,} of them active per token, fp32"
    )
    assert re.fullmatch(r"  memory    about \d+ MiB per rank, estimated.*", memory)
    assert output == f"  output    {tmp_path / 'run'}/: metrics.jsonl, checkpoints, best/ and latest/"
    dry_run = describe(stage_config(tmp_path / "dry", 1, None, *options))
    assert "rows: 32 per rank, microbatches: 2 of up to 16 rows" in dry_run
    assert re.search(rf"active per token +{active_parameters(trainer.checkpoints.strategy.model):,}\n", dry_run)


def test_idle_experts_have_no_gradient_of_a_token(stage_config, tmp_path):
    config = stage_config(tmp_path, 1, None, "model.top_k_experts=1", "model.expert_capacity_factor=null")
    model = build_model(config.model, seed=0)
    (moe,) = (module for module in model.modules() if isinstance(module, MoEFeedForward))
    x = torch.randn(1, 1, config.model.d_model)
    moe(x, torch.ones(1, 1, dtype=torch.bool))[0].sum().backward()
    experts = (moe.up, moe.up_bias, moe.down, moe.down_bias)
    idle = sum(p[expert].numel() for p in experts for expert in range(4) if not p.grad[expert].any())
    assert active_parameters(model) == sum(parameter.numel() for parameter in model.parameters()) - idle


@pytest.mark.parametrize(
    ("rows", "most", "evaluation", "ends"),
    [
        (16, 32, 1, "estimated, of the GPU's 79.0 GiB"),
        (64, 32, 1, "some of which the libraries need: at most 32 rows per microbatch fit"),
        (64, 0, 1, "some of which the libraries need: not even one row fits"),
        (16, 32, 90, "some of which the libraries need: the evaluation does not fit, see device_eval_batch_size"),
    ],
)
def test_memory_is_compared_with_the_card(stage_config, tmp_path, rows, most, evaluation, ends):
    estimate = Estimate([], 2 * GIB, evaluation * GIB, Shape(rows, 8, 3, 0), 1, 64, "fp32", most, 79 * GIB, True)
    assert about_memory(estimate).startswith(f"about {max(2, evaluation):.1f} GiB per rank")
    assert about_memory(estimate).endswith(ends)
    assert about_memory(replace(estimate, has_card=False)).endswith("per rank, estimated")


def test_the_end_names_the_best_model_and_the_next_command(stages, stage_config, monkeypatch):
    program = ["composer", "-n", "2", "train.py"]
    own = ["yamls/demo.yaml", "data/x y/data.yaml"]
    own += ["optimizer.lr=1", "save_folder=x", "model.d_ff=8", "data.train.local=x"]
    for stage in (1, 2):
        given = [f"yamls/stage{stage}.yaml", *own]
        best, command, *rest = what_now(stage_config(stages / f"stage{stage}", stage, stages / "x"), program, given)
        folder = stages / f"stage{stage}/best"
        assert re.fullmatch(rf"  best      {folder}: batch \d+, ndcg@10 \d\.\d{{4}}", best)
        reference = f" loss.reference_from={folder}" * (stage == 2)
        rows = " data.train.local=x" * (stage == 1)
        assert command == (
            f"  next      composer -n 2 train.py yamls/stage{stage + 1}.yaml yamls/demo.yaml 'data/x y/data.yaml' "
            f"model.d_ff=8{rows} init_from={folder}{reference}"
        )
        assert rest == ["            and preference rows, such as the preferences.yaml of ugt import"] * (stage == 2)
    config = stage_config(stages / "stage3", 3, stages / "stage2/best")
    _, evaluate, recommend = what_now(config, program, ["yamls/stage3.yaml", *own])
    first, second = (stream.local for stream in config.data.eval.streams)
    model = stages / "stage3/best"
    assert evaluate == f"  next      ugt evaluate --checkpoint {model} --data {first} --data {second}"
    assert recommend == f"            ugt recommend --checkpoint {model} --history FILE"


def test_a_run_ends_well_though_the_next_stage_cannot_be_loaded(stages, stage_config, tmp_path):
    (tmp_path / "stage2.yaml").write_text("model: {d_modl: 8}")
    config = stage_config(stages / "stage1", 1, stages / "x")
    _, line = what_now(config, ["ugt", "train"], [str(tmp_path / "stage1.yaml")])
    assert "stage2.yaml, which cannot be loaded" in line
    assert "did you mean model.d_model?" in line
    _, *lines = what_now(config, ["ugt", "train"], ["model.d_ff=8"])  # no file
    assert lines == [f"  next      ugt train yamls/stage2.yaml model.d_ff=8 init_from={stages / 'stage1/best'}"]


def test_the_next_command_has_the_preference_rows_of_an_import(stages, stage_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stage3.yaml").write_text((ROOT / "yamls/stage3.yaml").read_text())
    (tmp_path / "preferences.yaml").touch()
    config = stage_config(stages / "stage2", 2, stages / "x")
    _, *lines = what_now(config, ["ugt", "train"], ["stage2.yaml", "data.yaml"])
    model = stages / "stage2/best"
    keys = f"init_from={model} loss.reference_from={model}"
    assert lines == [f"  next      ugt train stage3.yaml data.yaml preferences.yaml {keys}"]
    _, *lines = what_now(config, ["ugt", "train"], ["stage2.yaml"])
    assert lines == [f"  next      ugt train stage3.yaml {keys}"]
    monkeypatch.chdir(ROOT)
    for files in (["run/config.yaml"], ["my.yaml", "data.yaml"]):
        _, command, *rest = what_now(config, ["ugt", "train"], [*files, "model.d_ff=8"])
        assert command == f"  next      ugt train yamls/stage3.yaml model.d_ff=8 {keys}"
        assert rest == [
            f"            with the keys for data and model of {' and '.join(files)}",
            "            and preference rows, such as the preferences.yaml of ugt import",
        ]
        assert what_now(config, ["ugt", "train"], files)[2:] == rest
