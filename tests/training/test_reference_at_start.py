"""The first batch of stage 3 from its own reference: policy and reference are the same model, so all margins are 0."""

import json
from pathlib import Path

import pytest

from tests.parity import Job, launch, work
from tests.shop import metrics_of, stage_arguments
from ugt_composer.cli.main import main as ugt
from ugt_composer.data.integrity import MANIFEST_NAME
from ugt_composer.errors import UserError
from ugt_composer.training.build import build_trainer
from ugt_composer.training.dry_run import describe

ZERO = "parallelism.deepspeed.zero_stage"
STRATEGIES: dict[str, tuple[str, ...]] = {
    "ddp": (),
    "ddp-bf16": ("precision=amp_bf16",),
    "fsdp": ("parallelism.strategy=fsdp",),
    "fsdp-sharded": ("parallelism.strategy=fsdp", "parallelism.shard_reference=true"),
    **{f"zero-{stage}": ("parallelism.strategy=deepspeed", f"{ZERO}={stage}") for stage in range(4)},
}
GROUP = ("loss.preference_objective=group", "model.level_softmax=catalogue")
OF_GROUPS = {f"group-{name}": (*STRATEGIES[name], *GROUP) for name in ("ddp-bf16", "fsdp-sharded", "zero-3")}
CAPACITIES = ("0.2", "1.25", "null")
STORED = ("stored-fp32", "stored-amp_bf16")
ALL = [(capacity, name) for capacity in CAPACITIES for name in (*STRATEGIES, *OF_GROUPS, *STORED)]
SOME = {  # by number of ranks
    1: [
        *((CAPACITIES[0], name) for name in ("zero-3", *STORED, "group-zero-3")),
        (CAPACITIES[1], "ddp-bf16"),
    ],
    2: [(CAPACITIES[0], name) for name in ("ddp-bf16", "fsdp-sharded", "group-fsdp-sharded")],
}
NO_EVALUATION = ("data.eval.streams=[]", "save_best_on=null")


@pytest.fixture(scope="module")
def stored(shop, stages, tmp_path_factory) -> Path:
    """FOLDER/PRECISION: the shop's preference rows with the log-probabilities of stage 2's model."""
    folder = tmp_path_factory.mktemp("stored")
    for precision in ("fp32", "amp_bf16"):
        options = ["--data", str(shop / "preference"), "--out", str(folder / precision), "--precision", precision]
        assert ugt(["reference", "--checkpoint", str(stages / "stage2/best"), "--batch-size", "7", *options]) == 0
    return folder


def stored_overrides(shop: Path, folder: Path) -> tuple[str, ...]:
    streams = f"[{{local: {folder}, proportion: 0.5}},{{local: {shop / 'train'}, proportion: 0.5}}]"
    return (f"data.train.streams={streams}", "loss.reference_log_probs=data", "loss.lambda_anchor=0", *NO_EVALUATION)


def run(shop: Path, stages: Path, stored: Path, out: Path, ranks: int, cases: list[tuple[str, str]]) -> None:
    """Runs the first batch of each (capacity, name) into OUT/CAPACITY/NAME."""
    jobs: list[Job] = []
    for capacity, name in cases:
        if name in STORED:
            precision = name.removeprefix("stored-")
            options = (f"precision={precision}", *stored_overrides(shop, stored / precision))
        else:
            options = ("loss.lambda_anchor=0.3", *(STRATEGIES | OF_GROUPS)[name])
        yaml, *rest = stage_arguments(shop, out / capacity / name, 3, stages / "stage2/best")
        few = (*NO_EVALUATION, "max_duration=2ba", "device_train_microbatch_size=8", "save_interval=9ba")
        overrides = [*rest, *few, f"model.expert_capacity_factor={capacity}", *options]
        jobs.append({"yaml": [yaml], "overrides": overrides, "load": None, "stop": 1})
    if ranks == 1:
        work(jobs)
    else:
        launch(ranks, jobs, out)


def check_margins(out: Path, cases: list[tuple[str, str]]) -> None:
    for capacity, name in cases:
        (line,) = metrics_of(out / capacity / name)
        if name in STORED:  # the same up to rounding, because batches are others
            assert abs(line["metrics/train/dpo_reward_margin"]) < (1e-6 if name == STORED[0] else 2e-3), (
                capacity,
                name,
            )
        elif name in OF_GROUPS:
            assert line["metrics/train/group_kl"] == 0.0, (capacity, name)
            assert line["loss/train/anchor_loss"] == 0.0, (capacity, name)
        else:
            assert line["metrics/train/dpo_reward_margin"] == 0.0, (capacity, name)
            assert line["metrics/train/dpo_accuracy"] == 0.0, (capacity, name)  # a tie counts 0
            assert line["loss/train/anchor_loss"] == 0.0, (capacity, name)


@pytest.mark.parametrize("ranks", SOME)
def test_margins_are_zero_for_any_capacity_precision_and_strategy(shop, stages, stored, tmp_path, ranks):
    run(shop, stages, stored, tmp_path, ranks, SOME[ranks])
    check_margins(tmp_path, SOME[ranks])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", SOME)
def test_margins_are_zero_in_all_combinations(shop, stages, stored, tmp_path, ranks):
    run(shop, stages, stored, tmp_path, ranks, ALL)
    check_margins(tmp_path, ALL)


@pytest.mark.parametrize(("written_in", "run_in"), [("fp32", "amp_bf16"), ("amp_bf16", "fp32")])
def test_stored_log_probs_of_another_precision_are_refused(
    shop, stages, stage_config, stored, tmp_path, written_in, run_in
):
    overrides = (*stored_overrides(shop, stored / written_in), f"precision={run_in}")
    config = stage_config(tmp_path / "run", 3, stages / "stage2/best", *overrides)
    for start in (describe, build_trainer):
        with pytest.raises(UserError) as error:
            start(config)
        assert f"computed in precision {written_in}, but this run has precision {run_in}" in str(error.value)
        assert f"ugt reference --checkpoint {stages / 'stage2/best'}" in str(error.value)
        assert f"--precision {run_in} --out DIR" in str(error.value)


def test_folders_that_do_not_name_a_precision_are_used_with_a_warning(
    shop, stages, stage_config, stored, tmp_path, caplog
):
    overrides = (*stored_overrides(shop, stored / "fp32"), "precision=fp32")
    config = stage_config(tmp_path / "run", 3, stages / "stage2/best", *overrides)
    describe(config)
    assert "does not say in which precision" not in caplog.text
    path = stored / "fp32" / MANIFEST_NAME
    before = path.read_text()
    facts = json.loads(before)
    del facts["reference_precision"], facts["reference_strategy"]
    path.write_text(json.dumps(facts))
    try:
        describe(config)
    finally:
        path.write_text(before)
    assert "does not say in which precision its log-probabilities were computed" in caplog.text


def test_the_strategy_matters_where_it_casts_weights(shop, stages, stored, tmp_path):
    """Half precision under FSDP or DeepSpeed needs a GPU; `ugt reference` computes like it anywhere."""
    from ugt_composer.config.load import load_config
    from ugt_composer.parallelism.build import strategy_class

    yaml, *rest = stage_arguments(shop, tmp_path, 3, stages / "stage2/best")
    for overrides, precision, wanted in (
        ((), "amp_bf16", "ddp"),
        (STRATEGIES["fsdp"], "amp_bf16", "fsdp"),
        (STRATEGIES["fsdp"], "fp32", "ddp"),
        ((*STRATEGIES["fsdp"], "parallelism.fsdp.param_dtype=float32"), "amp_bf16", "ddp"),
        (STRATEGIES["zero-0"], "amp_bf16", "ddp"),
        (STRATEGIES["zero-3"], "amp_bf16", "deepspeed"),
    ):
        config = load_config(yaml, overrides=[*rest, *overrides])
        assert strategy_class(config).arithmetic(config, precision) == wanted
    for strategy in ("fsdp", "deepspeed"):
        out = tmp_path / strategy
        options = ["--data", str(shop / "preference"), "--out", str(out), "--precision", "amp_bf16"]
        assert ugt(["reference", "--checkpoint", str(stages / "stage2/best"), *options, "--strategy", strategy]) == 0
        assert json.loads((out / MANIFEST_NAME).read_text())["reference_strategy"] == strategy
