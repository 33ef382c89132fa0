"""The jobs of the rehearsal: training stages by name, with their changes of the shipped YAMLs, and commands."""

from collections.abc import Iterable
from typing import NamedTuple

DEEPSPEED, ZERO = "parallelism.strategy=deepspeed", "parallelism.deepspeed.zero_stage="
FSDP = "parallelism.strategy=fsdp"
STRATEGIES = {
    "ddp": ("parallelism.strategy=ddp",),
    "fsdp": (FSDP,),
    **{f"zero-{stage}": (DEEPSPEED, f"{ZERO}{stage}") for stage in (0, 1, 2, 3)},
}
PRECISIONS = ("fp32", "amp_bf16", "amp_fp16")
STAGES = (1, 2, 3)
COMMANDS = ("evaluate", "recommend", "reference", "export", "inspect")

CHECKPOINTING = "parallelism.activation_checkpointing=true"
OFFLOADED = "parallelism.deepspeed.offload_optimizer=cpu"
GROUP = ("loss.preference_objective=group", "model.level_softmax=catalogue")
CATALOGUE_NEGATIVES = "loss.contrastive_negatives=catalogue"


class Job(NamedTuple):
    """A stage to train, evaluate, save and resume."""

    stage: int
    overrides: tuple[str, ...]


def name_of(precision: str, strategy: str, stage: int) -> str:
    return f"{precision}-{strategy}-{stage}"


VARIANTS = {
    # model
    "dropless": Job(1, ("model.expert_capacity_factor=null", "device_train_microbatch_size=32")),
    "dropout": Job(1, ("model.attention_dropout=0.1", "model.dropout=0.1")),
    "relu": Job(1, ("model.attention_activation=relu",)),
    "mean-pooling": Job(
        2,
        (
            "model.user_pooling=mean",
            "model.history_positions=from_end",
            "model.tie_embeddings=false",
            "loss.num_negatives=7",
            "init_from=null",
        ),
    ),
    "checkpointing": Job(1, (CHECKPOINTING,)),
    "checkpointing-fsdp": Job(3, (FSDP, CHECKPOINTING)),
    "checkpointing-zero-3": Job(1, (DEEPSPEED, f"{ZERO}3", CHECKPOINTING)),
    # losses and evaluation
    "label-smoothing": Job(1, ("loss.label_smoothing=0.1",)),
    "no-catalogue": Job(1, ("data.catalogue=null", "evaluation.exclude_seen=true")),
    "catalogue": Job(
        2,
        (
            "model.level_softmax=catalogue",
            "model.pair_buckets=100",
            "model.repeat_bias=true",
            "model.decoder_start=user",
            CATALOGUE_NEGATIVES,
            "loss.lambda_distillation=1.0",
            "init_from=null",
        ),
    ),
    "actions-and-times": Job(
        2, ("model.num_actions=3", "model.time_buckets=8", "model.relative_time_bias=true", "init_from=null")
    ),
    "catalogue-dot": Job(
        2,
        (
            CATALOGUE_NEGATIVES,
            "loss.contrastive_similarity=dot",
            "loss.contrastive_temperature=1.0",
            "evaluation.item_score_weight=0.5",
            "evaluation.exclude_seen=true",
        ),
    ),
    **{f"dpo-{kind}": Job(3, (f"loss.dpo_loss_type={kind}",)) for kind in ("ipo", "hinge", "softmax")},
    "dpo-smooth-without-reference": Job(
        3, ("loss.dpo_label_smoothing=0.1", "loss.dpo_reference_free=true", "loss.reference_from=null")
    ),
    "group": Job(3, GROUP),
    "group-checkpointing-zero-3": Job(3, (*GROUP, DEEPSPEED, f"{ZERO}3", CHECKPOINTING)),
    # strategies
    "sharded-reference-fsdp": Job(3, (FSDP, "parallelism.shard_reference=true")),
    "sharded-reference-zero-3": Job(3, (DEEPSPEED, f"{ZERO}3", "parallelism.shard_reference=true")),
    "keep-gathered": Job(1, (FSDP, "parallelism.fsdp.reshard_after_forward=false")),
    "reduce-every-microbatch": Job(3, (FSDP, "parallelism.fsdp.reduce_every_microbatch=true")),
    "offload-fsdp": Job(3, (FSDP, "parallelism.fsdp.cpu_offload=true")),
    "offload-zero-2": Job(1, (DEEPSPEED, OFFLOADED)),
    "offload-zero-3": Job(1, (DEEPSPEED, f"{ZERO}3", OFFLOADED, "parallelism.deepspeed.offload_param=cpu")),
    "sharded-checkpoint-fsdp": Job(1, (FSDP, "checkpoint.sharded=true")),
    "sharded-checkpoint-zero-2": Job(1, (DEEPSPEED, "checkpoint.sharded=true")),
    "sharded-checkpoint-zero-3": Job(1, (DEEPSPEED, f"{ZERO}3", "checkpoint.sharded=true")),
    # optimizer, device, loading
    "lamb": Job(1, ("optimizer.name=lamb",)),
    "tf32": Job(3, ("precision=fp32", "allow_tf32=true")),
    "auto-microbatch": Job(1, ("device_train_microbatch_size=auto",)),
    "workers": Job(1, ("data.train.num_workers=1", "data.eval.num_workers=1")),
    "average": Job(2, ("ema_decay=0.9", "save_best_on=loss")),
    "average-offload-fsdp": Job(1, (FSDP, "parallelism.fsdp.cpu_offload=true", "ema_decay=0.9")),
    "memory-monitor": Job(1, ("callbacks.memory_monitor=true",)),
}
DETERMINISTIC = {
    f"deterministic-{name}": Job(3, (*options, "deterministic=true")) for name, options in STRATEGIES.items()
}
MATRIX = {
    name_of(precision, strategy, stage): Job(stage, (*options, f"precision={precision}"))
    for precision in PRECISIONS
    for strategy, options in STRATEGIES.items()
    for stage in STAGES
}
JOBS = {**MATRIX, **DETERMINISTIC, **VARIANTS}
# `make test` runs these, `make test-slow` the others.
_FAST = (
    "deterministic-ddp",
    name_of("fp32", "fsdp", 1),
    name_of("amp_fp16", "ddp", 3),
    *(name_of("amp_bf16", strategy, 3) for strategy in STRATEGIES),
)


def in_one_process(names: Iterable[str]) -> tuple[str, ...]:
    """Orders jobs so that none sees the global state that others change: PyTorch checks only before the first matrix
    product whether cuBLAS has the workspaces for determinism; ZeRO-3 replaces `torch.nn.functional.linear`."""

    def place(name: str) -> int:
        overrides = JOBS[name].overrides
        return ("deterministic=true" not in overrides) + 2 * (f"{ZERO}3" in overrides)

    return tuple(sorted(names, key=place))


FAST = in_one_process(_FAST)
SLOW = in_one_process(name for name in JOBS if name not in _FAST)
