"""Peaks of PyTorch's allocator in steps of the shipped stages, compared with the dry run's estimates."""

import json

import pytest

from tests.rehearsal.driver import run

AS_SHIPPED, SMALL_MICROBATCH = (), ("device_train_microbatch_size=64", "parallelism.activation_checkpointing=false")
FSDP = ("parallelism.strategy=fsdp",)
ZERO = {
    stage: ("parallelism.strategy=deepspeed", f"parallelism.deepspeed.zero_stage={stage}") for stage in (0, 1, 2, 3)
}
ITEMS, MANY_ITEMS = 50_000, 1_000_000
FEW_ROWS = "device_train_microbatch_size=32"
RANKS_BY_VECTORS, CATALOGUE = "evaluation.item_score_weight=1", "loss.contrastive_negatives=catalogue"
ENGINE = "parallelism.deepspeed.config="
LONG_TARGETS = ("device_train_microbatch_size=128", "device_eval_batch_size=64")
# stage, ranks, history, target, overrides
FAST = [(1, 1, 512, 8, AS_SHIPPED), (3, 8, 512, 8, FSDP)]
SLOW = [
    *((stage, ranks, 512, 8, AS_SHIPPED) for stage, ranks in ((1, 8), (2, 1), (2, 8), (3, 1), (3, 8))),
    *((stage, ranks, 512, 8, FSDP) for stage, ranks in ((1, 8), (1, 64), (2, 8), (3, 64))),
    *((stage, 8, 512, 8, zero) for stage in (1, 2) for zero in ZERO.values()),
    (3, 8, 512, 8, ZERO[3]),
    (1, 1, 512, 8, SMALL_MICROBATCH),
    (1, 1, 512, 8, ("precision=fp32",)),
    (1, 1, 64, 128, LONG_TARGETS),
    (1, 1, 64, 128, (*LONG_TARGETS, "parallelism.activation_checkpointing=false")),
    (1, 1, 512, 8, (*SMALL_MICROBATCH, FEW_ROWS, "model.attention_dropout=0.1")),
    (2, 1, 100, 8, (FEW_ROWS, RANKS_BY_VECTORS)),
    (2, 1, 100, 8, (FEW_ROWS, RANKS_BY_VECTORS, CATALOGUE)),
    (1, 8, 100, 4, (*ZERO[1], "precision=amp_fp16")),
    (2, 1, 100, 4, (*ZERO[3], FEW_ROWS, "precision=amp_fp16")),
    (2, 8, 100, 4, (*ZERO[1], FEW_ROWS, f"{ENGINE}{{data_types: {{grad_accum_dtype: bf16}}}}")),
    (2, 64, 100, 4, (*ZERO[3], FEW_ROWS, f"{ENGINE}{{zero_optimization: {{reduce_bucket_size: 50000000}}}}")),
    (2, 8, 100, 4, (*ZERO[3], *(f"parallelism.deepspeed.offload_{part}=cpu" for part in ("optimizer", "param")))),
    (2, 8, 100, 4, (*FSDP, "parallelism.fsdp.cpu_offload=true")),
    (2, 8, 100, 4, (*FSDP, FEW_ROWS, "parallelism.fsdp.param_dtype=float32")),
    (2, 8, 100, 4, (*FSDP, FEW_ROWS, "parallelism.fsdp.param_dtype=bfloat16", "precision=fp32")),
    (
        3,
        8,
        100,
        4,
        (*FSDP, FEW_ROWS, "parallelism.fsdp.param_dtype=float32", "parallelism.fsdp.reduce_every_microbatch=true"),
    ),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("stage", "ranks", "history", "target", "overrides"),
    [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_a_step_takes_the_memory_that_the_dry_run_estimates(stage, ranks, history, target, overrides):
    precision = () if any(o.startswith("precision") for o in overrides) else ("precision=amp_bf16",)
    items = MANY_ITEMS if RANKS_BY_VECTORS in overrides else ITEMS
    arguments = (f"yamls/stage{stage}.yaml", ranks, history, target, items, *precision, *overrides)
    # The empty value keeps PyTorch's caching allocator on, which counts the peaks.
    found = json.loads(run("memory_step.py", *arguments, NULLNCCL_ALONE="1", PYTORCH_NO_CUDA_MEMORY_CACHING=""))
    assert found["expected"] == pytest.approx(found["step"], rel=0.1)
    # For an evaluation only a bound: it does not decide whether a run fits.
    assert found["between steps"] < found["evaluation"] <= found["expected evaluation"] * 1.05
