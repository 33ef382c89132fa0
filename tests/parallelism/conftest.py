"""Runs of every strategy, made in one start of the launcher for all tests."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from convert.jsonl_to_mds import main as convert
from tests.parity import (
    BASE,
    NO_EVALUATION,
    OTHERS,
    STRATEGIES,
    Job,
    base_jobs,
    launch,
    make_data,
    other_jobs,
    resume_jobs,
    stage_job,
    work,
)
from tests.shop import ROOT, SIZES, add_actions_and_times, write_rows
from ugt_composer.vocabulary import IGNORE_INDEX, ITEM, SEP

STEPS, VARIANT_STEPS = 8, 4  # `make parity` has 32
NAMES = list(STRATEGIES)
STAGES, SLOW_STAGES = (1, 3), (2,)  # the third has all losses, the first parameters that are not trained
# Each strategy's checkpoint is resumed under the next one; `make parity` runs all pairs.
PAIRS = [(saved, NAMES[(place + 1) % len(NAMES)]) for place, saved in enumerate(NAMES)]
ITSELF, SLOW_ITSELF = (BASE, "FSDP2", "ZeRO-3"), ("DDP", "ZeRO-1", "ZeRO-2")
COMMON = (
    "data.eval.local=null",
    "data.train.num_workers=0",
    "global_train_batch_size=32",
    "device_train_microbatch_size=32",
    "model.d_model=32",
    "model.d_ff=32",
    "model.n_encoder_layers=1",
    "model.n_decoder_layers=1",
    "model.dropout=0",
    "model.expert_capacity_factor=null",
    "optimizer.lr=1e-3",
    "max_grad_norm=0.5",
    f"max_duration={STEPS}ba",
    "eval_interval=10000ba",
    "save_best_if=null",
    f"save_interval={STEPS // 2}ba",
    "log_interval=1ba",
    "loggers.progress_bar=false",
)
FSDP, ZERO_2, ZERO_3 = STRATEGIES["FSDP2"], STRATEGIES["ZeRO-2"], STRATEGIES["ZeRO-3"]
# Options that do not change the numbers: compared with stage 3 of one process.
VARIANTS: dict[str, tuple[str, ...]] = {
    "zero-0": ("parallelism.strategy=deepspeed", "parallelism.deepspeed.zero_stage=0"),
    "zero-2-offload-and-own-keys": (
        *ZERO_2,
        "parallelism.deepspeed.offload_optimizer=cpu",
        "parallelism.deepspeed.config.zero_optimization.reduce_bucket_size=1000",
    ),
    "zero-3-offload-and-sharded-reference": (
        *ZERO_3,
        "parallelism.deepspeed.offload_optimizer=cpu",
        "parallelism.deepspeed.offload_param=cpu",
        "parallelism.shard_reference=true",
    ),
    "fsdp-offload-checkpointing-sharded-reference": (
        *FSDP,
        "parallelism.fsdp.cpu_offload=true",
        "parallelism.activation_checkpointing=true",
        "parallelism.shard_reference=true",
    ),
}
SLOW_VARIANTS: dict[str, tuple[str, ...]] = {
    "zero-3-activation-checkpointing": (*ZERO_3, "parallelism.activation_checkpointing=true"),
    "fsdp-keep-gathered": (*FSDP, "parallelism.fsdp.reshard_after_forward=false"),
    "ddp-activation-checkpointing": ("parallelism.activation_checkpointing=true",),
}
THIN, SLOW_THIN = 2, 10  # rows per batch: one per rank; and with a smaller last batch
SHARDED, SLOW_SHARDED = ("FSDP2", "ZeRO-3"), ("ZeRO-2",)
OF_CATALOGUE = ("DDP", "FSDP2", "ZeRO-3")
AVERAGED = ("DDP", "FSDP2")


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """A folder with stage{1,3}/NAME, stage2/one-process, stage3/resumed/SAVED/NAME, stage3/variant/NAME, …,
    thin/ROWS/NAME, and extensions/ with the extensions that PyTorch compiled."""
    out = tmp_path_factory.mktemp("strategies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(out / "extensions"))
        make_runs(out)
    return out


def make_runs(out: Path) -> None:
    make_data(out, seed=5)
    make_thin_data(out / "thin")
    common = common_overrides(out)
    work(
        [
            *base_jobs(out, common),
            *clip_jobs(out, common, [BASE]),
            *catalogue_jobs(out, common, [BASE]),
            *group_jobs(out, common, [BASE]),
            *average_jobs(out, common, [BASE]),
            evaluation_job(out, common, 1),
            *thin_jobs(out / "thin", [BASE], THIN),
        ]
    )
    resumed = [*PAIRS, *((name, name) for name in ITSELF)]
    jobs = [
        *other_jobs(out, common, STEPS, resumed, STAGES),
        *(variant_job(out, common, name, VARIANTS[name]) for name in VARIANTS),
        *(job for name in SHARDED for job in sharded_jobs(out, common, name)),
        *clip_jobs(out, common, OTHERS),
        *catalogue_jobs(out, common, OF_CATALOGUE),
        *group_jobs(out, common, OF_CATALOGUE),
        *average_jobs(out, common, AVERAGED),
        evaluation_job(out, common, 2),
        *thin_jobs(out / "thin", OTHERS, THIN),
    ]
    launch(2, jobs, out)
    work(resume_jobs(out, common, STEPS, [pair for pair in resumed if pair[1] == BASE]))


def common_overrides(out: Path) -> list[str]:
    streams = f"data.eval.streams=[{{local: {out / 'mds/eval'}}},{{local: {out / 'mds/preference_eval'}}}]"
    return [*COMMON, f"data.catalogue={out / 'data/catalogue.jsonl'}", streams]


@pytest.fixture(scope="session")
def slow_runs(runs) -> Path:
    """`runs`, and the jobs of the constants named SLOW_… and stage2/evaluated/3."""
    common = common_overrides(runs)
    work(thin_jobs(runs / "thin", [BASE], SLOW_THIN))
    jobs = [
        *other_jobs(runs, common, STEPS, [(name, name) for name in SLOW_ITSELF], SLOW_STAGES),
        *(variant_job(runs, common, name, SLOW_VARIANTS[name]) for name in SLOW_VARIANTS),
        *(job for name in SLOW_SHARDED for job in sharded_jobs(runs, common, name)),
        *thin_jobs(runs / "thin", OTHERS, SLOW_THIN),
    ]
    launch(2, jobs, runs)
    launch(3, [evaluation_job(runs, common, 3)], runs)
    return runs


def variant_job(out: Path, common: list[str], name: str, options: tuple[str, ...]) -> Job:
    overrides = [*common, *options, NO_EVALUATION]
    return stage_job(out, 3, BASE, overrides, f"variant/{name}") | {"stop": VARIANT_STEPS}


def evaluation_job(out: Path, common: list[str], ranks: int) -> Job:
    """Evaluates stage 1's model on 45 + 45 rows, which batches of seven rows on several ranks do not divide evenly."""
    sizes = ["global_train_batch_size=6", "device_train_microbatch_size=2", "device_eval_batch_size=7"]
    return stage_job(out, 2, BASE, [*common, *sizes], f"evaluated/{ranks}") | {"stop": 0}


def sharded_jobs(out: Path, common: list[str], name: str) -> list[Job]:
    """Runs that are stopped half-way and resumed by the same command."""
    job = stage_job(out, 3, name, [*common, "checkpoint.sharded=true", NO_EVALUATION], f"sharded/{name}")
    return [job | {"stop": VARIANT_STEPS // 2}, job | {"stop": VARIANT_STEPS - VARIANT_STEPS // 2}]


def clip_jobs(out: Path, common: list[str], names: list[str]) -> list[Job]:
    overrides = [*common, "max_grad_norm=0.01", NO_EVALUATION]
    return [stage_job(out, 2, name, overrides, f"clip/{name}") | {"stop": 1} for name in names]


def catalogue_jobs(out: Path, common: list[str], names: Sequence[str]) -> list[Job]:
    """All items as negatives and in every softmax, in uneven microbatches, then an evaluation with both scores."""
    options = ["loss.contrastive_negatives=catalogue", "evaluation.item_score_weight=0.5", "eval_interval=3ba"]
    options += ["model.level_softmax=catalogue", "loss.lambda_moe_balance=0"]  # which depends on the microbatches
    options += ["loss.lambda_distillation=0.5", "model.pair_buckets=100", "model.repeat_bias=true"]
    overrides = [*common, *options, "device_train_microbatch_size=12"]
    return [stage_job(out, 2, name, overrides, f"catalogue/{name}") | {"stop": 3} for name in names]


def group_jobs(out: Path, common: list[str], names: Sequence[str]) -> list[Job]:
    """The on-policy objective in uneven microbatches, then an evaluation; the reference is sharded where it can be."""
    options = ["loss.preference_objective=group", "loss.lambda_preference=1.0", "loss.group_rewards=[0.1,0.3,1.0]"]
    options += ["model.level_softmax=catalogue", "loss.lambda_moe_balance=0", "loss.lambda_contrastive=0"]
    overrides = [*common, *options, "device_train_microbatch_size=12", "eval_interval=5ba"]
    sharded = ["parallelism.shard_reference=true"]
    return [
        stage_job(out, 3, name, [*overrides, *(sharded if name in SHARDED else [])], f"group/{name}") | {"stop": 5}
        for name in names
    ]


def average_jobs(out: Path, common: list[str], names: Sequence[str]) -> list[Job]:
    """An evaluation with the average of the weights, which is saved in the middle and at the end."""
    overrides = [*common, "ema_decay=0.5", "eval_interval=4ba"]
    return [stage_job(out, 2, name, overrides, f"average/{name}") | {"stop": 4} for name in names]


def thin_jobs(out: Path, names: list[str], rows: int) -> list[Job]:
    """A job ROWS/NAME for each number of rows per batch; the model reads actions and times."""
    streams = f"[{{local: {out / 'preference'}}},{{local: {out / 'recommend'}}}]"
    overrides = [
        *COMMON,
        f"data.train.streams={streams}",
        NO_EVALUATION,
        "data.catalogue=null",
        "init_from=null",
        "loss.reference_from=null",
        "loss.dpo_reference_free=true",
        f"model.codebook_sizes=[{','.join(map(str, SIZES))}]",
        "model.max_seq_len=32",
        "max_duration=1ep",
        f"global_train_batch_size={rows}",
        "model.num_actions=3",
        "model.time_buckets=8",
        "model.relative_time_bias=true",
    ]
    yaml = [str(ROOT / "yamls/stage3.yaml"), str(ROOT / "yamls/demo.yaml")]
    return [
        {
            "yaml": yaml,
            "overrides": [*overrides, *STRATEGIES[name], f"save_folder={out / str(rows) / name}"],
            "load": None,
            "stop": None,
        }
        for name in names
    ]


def make_thin_data(out: Path) -> None:
    """Five preference rows, six recommend rows, and twelve rows whose every label is ignored."""
    out.mkdir()
    write_rows(out / "preference.jsonl", "preference", 5, seed=3)
    write_rows(out / "recommend.jsonl", "recommend", 18, seed=4)
    rows = [json.loads(line) for line in (out / "recommend.jsonl").read_text().splitlines()]
    for row in rows[6:]:
        row |= {key: [SEP] for key in row if key.startswith(("decoder_l", "labels"))}
        row |= {f"labels_l{level}": [IGNORE_INDEX] for level in (1, 2, 3)}
        row |= {"decoder_positions": [0], "decoder_token_types": [ITEM], "decoder_mask": [1]}
    (out / "recommend.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind in ("preference", "recommend"):
        add_actions_and_times(out / f"{kind}.jsonl", 3, seed=5)
        options = ["--kind", kind, "--codebook-sizes", *map(str, SIZES), "--max-positions", "32"]
        assert convert([str(out / f"{kind}.jsonl"), *options, "--out", str(out / kind)]) == 0
