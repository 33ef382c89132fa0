"""The keys of the configuration: one tree of frozen dataclasses, the only place where defaults and bounds are stated.

A section checks its own keys in its `__post_init__`; `config/checks.py` has the checks that span sections. A field also
declares whether its key may change when a run resumes (`config/keys.py`).
"""

import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ugt_composer.config.checks import check_bounds, check_s3_url, check_whole_config
from ugt_composer.config.keys import (
    DURATION,
    DURATION_OR_PERCENT,
    FIXED,
    FRACTION,
    FREE,
    NOT_NEGATIVE,
    ON_REQUEST,
    ON_REQUEST_UNLESS_ZERO,
    POSITIVE,
    Bounds,
    key,
)
from ugt_composer.config.strategies import STRATEGIES, StrategyFacts
from ugt_composer.seeds import LARGEST_SEED
from ugt_composer.vocabulary import (
    DEFAULT_CODEBOOK_SIZES,
    LARGEST_ACTION,
    MAX_POSITIONS,
    NUM_SPECIAL_IDS,
    NUM_TOKEN_TYPES,
)

LARGEST_K = 10_000  # the metrics keep a matrix of k × k numbers
MOST_TIME_BUCKETS = 1024  # with more, neighbouring ones differ by less than 2 %
K_VALUES = Bounds(above=0, most=LARGEST_K, wanted=f"numbers above 0, at most {LARGEST_K:,}")
MICROBATCH = Bounds(above=0, wanted='a number above 0 or "auto"')
EMA_DECAY = Bounds(above=0, below=1, wanted="a number between 0 and 1 such as 0.999, or null")
BELOW_1 = Bounds(least=0, below=1)
TIME_BUCKETS = Bounds(
    least=2,
    most=MOST_TIME_BUCKETS,
    also=0,
    wanted=f"2 to {MOST_TIME_BUCKETS:,}, or 0 for a model that does not read times",
)
DROPOUT = Bounds(least=0, below=1, wanted="a fraction from 0 to below 1")


@dataclass(frozen=True)
class ModelConfig:
    d_model: int = key(512, FIXED, POSITIVE)
    n_heads: int = key(16, FIXED, POSITIVE, defines_weights=True)
    n_encoder_layers: int = key(12, FIXED, POSITIVE)
    n_decoder_layers: int = key(12, FIXED, POSITIVE)
    d_ff: int = key(2048, FIXED, POSITIVE)
    dropout: float = key(0.1, ON_REQUEST, DROPOUT)
    attention_dropout: float = key(0.0, ON_REQUEST, DROPOUT)
    attention_activation: Literal["silu", "relu"] = key("silu", FIXED, defines_weights=True)
    max_seq_len: int = key(MAX_POSITIONS, FIXED, POSITIVE)
    history_positions: Literal["from_start", "from_end"] = key("from_start", FIXED, defines_weights=True)
    codebook_sizes: tuple[int, int, int] = key(
        DEFAULT_CODEBOOK_SIZES,
        FIXED,
        Bounds(above=NUM_SPECIAL_IDS, count=3, wanted=f"three sizes above {NUM_SPECIAL_IDS} (the special ids)"),
    )
    num_token_types: int = key(NUM_TOKEN_TYPES, FIXED, Bounds(least=NUM_TOKEN_TYPES))
    num_experts: int = key(16, FIXED, POSITIVE)
    top_k_experts: int = key(4, ON_REQUEST, POSITIVE, defines_weights=True)
    expert_capacity_factor: float | None = key(1.25, ON_REQUEST, POSITIVE)
    user_pooling: Literal["first", "last", "first_and_last", "mean"] = key("first", FIXED, defines_weights=True)
    user_activation: Literal["tanh", "none"] = key("tanh", FIXED, defines_weights=True)
    decoder_start: Literal["bos", "user"] = key("bos", FIXED)
    tie_embeddings: bool = key(True, FIXED)
    level_softmax: Literal["codebook", "catalogue"] = key("codebook", FIXED)
    pair_buckets: int = key(0, FIXED, Bounds(least=0, wanted="0 for none, or a number such as 65536"))
    repeat_bias: bool = key(False, FIXED)
    num_actions: int = key(0, FIXED, Bounds(least=0, most=LARGEST_ACTION))
    time_buckets: int = key(0, FIXED, TIME_BUCKETS)
    relative_time_bias: bool = key(False, FIXED)

    def __post_init__(self):
        check_bounds(self, "model.")
        if self.d_model % self.n_heads:
            raise ValueError(f"model.d_model is {self.d_model}; expected a multiple of model.n_heads ({self.n_heads})")
        if self.top_k_experts > self.num_experts:
            raise ValueError(
                f"model.top_k_experts is {self.top_k_experts}; expected at most model.num_experts ({self.num_experts})"
            )
        if self.pair_buckets and self.level_softmax != "catalogue":
            raise ValueError(
                f"model.pair_buckets is {self.pair_buckets} with model.level_softmax {self.level_softmax}: vectors of "
                "pairs are for the ids that the catalogue has below a prefix; expected level_softmax catalogue, or "
                "pair_buckets 0"
            )
        if self.repeat_bias and self.level_softmax != "catalogue":
            raise ValueError(
                f"model.repeat_bias is true with model.level_softmax {self.level_softmax}: the bias is for the items "
                "of the catalogue; expected level_softmax catalogue, or repeat_bias false"
            )
        if self.relative_time_bias and self.time_buckets == 0:
            raise ValueError(
                "model.relative_time_bias is true with model.time_buckets 0; expected a number of buckets such as 32"
            )


ANCHOR_RATIO = 4.0  # of a null lambda_anchor to lambda_preference; see benchmarks/movielens/alignment.py


@dataclass(frozen=True)
class LossConfig:
    l1_weight: float = key(0.5, ON_REQUEST)
    l2_weight: float = key(0.3, ON_REQUEST)
    l3_weight: float = key(0.2, ON_REQUEST)
    label_smoothing: float = key(0.0, ON_REQUEST, BELOW_1)
    lambda_contrastive: float = key(0.0, ON_REQUEST_UNLESS_ZERO, NOT_NEGATIVE)
    contrastive_temperature: float = key(0.07, ON_REQUEST, POSITIVE)
    contrastive_similarity: Literal["cosine", "dot"] = key("cosine", ON_REQUEST)
    contrastive_negatives: Literal["in_batch", "catalogue"] = key("in_batch", ON_REQUEST)
    num_negatives: int = key(127, FIXED, POSITIVE, unit="items")
    lambda_distillation: float = key(0.0, ON_REQUEST, NOT_NEGATIVE)
    lambda_preference: float = key(0.0, ON_REQUEST_UNLESS_ZERO, NOT_NEGATIVE)
    preference_objective: Literal["dpo", "group"] = key("dpo", FIXED)
    dpo_beta: float = key(0.1, ON_REQUEST, POSITIVE)
    dpo_label_smoothing: float = key(0.0, ON_REQUEST, Bounds(least=0, below=0.5))
    dpo_loss_type: Literal["sigmoid", "ipo", "hinge", "softmax"] = key("sigmoid", ON_REQUEST)
    dpo_reference_free: bool = key(False, FIXED)
    group_size: int = key(16, ON_REQUEST, Bounds(least=2, wanted="at least 2 items to compare"), unit="items")
    group_rewards: tuple[float, float, float] = key((0.0, 0.0, 1.0), ON_REQUEST)
    group_scale_rewards: bool = key(True, ON_REQUEST)
    group_kl: float = key(0.04, ON_REQUEST, NOT_NEGATIVE)
    reward_file: str | None = key(None, ON_REQUEST)
    reference_from: str | None = key(None, ON_REQUEST)
    reference_log_probs: Literal["model", "data"] = key("model", FIXED)
    lambda_anchor: float | None = key(0.0, ON_REQUEST_UNLESS_ZERO, NOT_NEGATIVE)
    lambda_moe_balance: float = key(0.01, ON_REQUEST, NOT_NEGATIVE)

    def __post_init__(self):
        check_bounds(self, "loss.")
        weights = (self.l1_weight, self.l2_weight, self.l3_weight)
        if min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
            raise ValueError(
                f"loss.l1_weight + loss.l2_weight + loss.l3_weight is {' + '.join(map(str, weights))} = "
                f"{sum(weights):g}; expected weights from 0 that sum to 1"
            )
        if self.lambda_distillation > 0 and not self.has_catalogue_negatives:
            raise ValueError(
                f"loss.lambda_distillation is {self.lambda_distillation} with loss.lambda_contrastive "
                f"{self.lambda_contrastive:g} and loss.contrastive_negatives {self.contrastive_negatives}: no "
                "distribution over the catalogue is trained that the levels could learn; expected lambda_contrastive "
                "above 0 and contrastive_negatives catalogue, or lambda_distillation 0"
            )
        if self.dpo_label_smoothing > 0 and self.dpo_loss_type != "sigmoid":
            raise ValueError(
                f"loss.dpo_label_smoothing is {self.dpo_label_smoothing}, which only loss.dpo_loss_type sigmoid "
                f"supports; expected 0 with {self.dpo_loss_type}"
            )
        self._check_group()
        if self.reference_log_probs == "data" and self.anchor_weight > 0:
            raise ValueError(
                f"loss.reference_log_probs is data with loss.lambda_anchor {self.lambda_anchor}, which needs the "
                "reference's probabilities of all ids, and the rows store only those of the pairs' items; expected "
                "model, or lambda_anchor 0 or null"
            )
        if self.reference_log_probs == "data" and not self.needs_reference:
            why = "lambda_preference is 0" if self.lambda_preference == 0 else "dpo_reference_free is true"
            raise ValueError(
                f"loss.reference_log_probs is data, but loss.{why}, so no reference is used; expected model"
            )

    def _check_group(self) -> None:
        rewards = list(self.group_rewards)
        if len(rewards) != 3 or not 0 <= rewards[0] <= rewards[1] <= rewards[2] < math.inf:
            raise ValueError(
                f"loss.group_rewards is {rewards}; expected three numbers from 0, none below the one before: the "
                "rewards of an item that shares one, two or all three ids with the target"
            )
        if self.preference_objective == "dpo":
            if self.reward_file is not None:
                raise ValueError(
                    f"loss.reward_file is {self.reward_file}, which only loss.preference_objective group reads; "
                    "expected null with dpo"
                )
            return
        if rewards[-1] == 0 and self.reward_file is None:
            raise ValueError("loss.group_rewards is all 0 without loss.reward_file: nothing is rewarded")
        if self.dpo_reference_free:
            raise ValueError(
                "loss.dpo_reference_free is true with loss.preference_objective group; expected false, and "
                "loss.group_kl=0 to train without a reference"
            )
        if self.reference_log_probs == "data":
            raise ValueError(
                "loss.reference_log_probs is data with loss.preference_objective group: the items are drawn in each "
                "step, so no log-probabilities of them are stored; expected model"
            )

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `UnifiedLoss`: all keys except those about the reference, which decide what a null anchor is."""
        known = {key: value for key, value in asdict(self).items() if not key.startswith("reference_")}
        return known | {"lambda_anchor": self.anchor_weight}

    @property
    def uses_group(self) -> bool:
        return self.lambda_preference > 0 and self.preference_objective == "group"

    @property
    def needs_reference(self) -> bool:
        return self.anchor_weight > 0 or self.preference_needs_reference

    @property
    def anchor_weight(self) -> float:
        """`lambda_anchor`; null is ANCHOR_RATIO · `lambda_preference` if a reference model scores pairs, else 0."""
        if self.lambda_anchor is not None:
            return self.lambda_anchor
        has_model = self.preference_needs_reference and self.reference_log_probs == "model"
        return ANCHOR_RATIO * self.lambda_preference if has_model and self.preference_objective == "dpo" else 0.0

    @property
    def has_catalogue_negatives(self) -> bool:
        """Whether the contrastive term is computed, against all items of the catalogue."""
        return self.lambda_contrastive > 0 and self.contrastive_negatives == "catalogue"

    @property
    def preference_needs_reference(self) -> bool:
        if self.preference_objective == "group":
            return self.uses_group and self.group_kl > 0
        return self.lambda_preference > 0 and not self.dpo_reference_free

    @property
    def needs_reference_model(self) -> bool:
        return self.needs_reference and self.reference_log_probs == "model"


@dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adamw", "lamb"] = key("adamw", FIXED)
    lr: float = key(1e-4, ON_REQUEST, POSITIVE)
    weight_decay: float = key(0.01, ON_REQUEST, NOT_NEGATIVE)
    betas: tuple[float, float] = key(
        (0.9, 0.999), ON_REQUEST, Bounds(least=0, below=1, count=2, wanted="two numbers from 0 to below 1")
    )
    eps: float = key(1e-8, ON_REQUEST, POSITIVE)

    def __post_init__(self):
        check_bounds(self, "optimizer.")


@dataclass(frozen=True)
class SchedulerConfig:
    name: Literal["linear", "cosine", "polynomial", "constant"] = "cosine"
    t_warmup: str = key("10000ba", bounds=DURATION_OR_PERCENT)
    t_max: str | None = key(None, bounds=DURATION)
    max_warmup_ratio: float = key(0.1, bounds=FRACTION)
    min_lr_ratio: float = key(0.1, bounds=FRACTION)

    def __post_init__(self):
        check_bounds(self, "scheduler.")


@dataclass(frozen=True)
class StreamConfig:
    """One of several folders of shards.

    Attributes:
        local: folder of shards, or the folder that those of `remote` are fetched into.
        remote: s3://… or another URL of a folder of shards; null: they are in `local` already.
        proportion: fraction of the rows of an epoch; all streams have one, or none, which mixes them by their sizes.
    """

    local: str | None = None
    remote: str | None = None
    proportion: float | None = key(None, bounds=POSITIVE)

    def __post_init__(self):
        check_bounds(self, "data.….streams[].")


@dataclass(frozen=True)
class TrainDataConfig:
    local: str | None = key(None, FREE)
    remote: str | None = key(None, FREE)
    streams: list[StreamConfig] = key(on_resume=FREE, factory=list)
    shuffle: bool = key(True, FIXED)
    shuffle_block_size: int = key(1 << 18, FIXED, POSITIVE, unit="rows")
    num_canonical_nodes: int = key(4, FIXED, POSITIVE)
    group_by_length: bool = key(True, FREE)
    num_workers: int = key(2, FREE, NOT_NEGATIVE, unit="processes")
    predownload: int | None = key(None, FREE, POSITIVE, unit="rows")
    cache_limit: str | None = key(None, FREE)

    def __post_init__(self):
        check_bounds(self, "data.train.")
        _check_sources("data.train", self.local, self.remote, self.streams)
        if self.cache_limit is not None and not re.fullmatch(r"\d+(\.\d+)?\s*([kmgt]?b)?", self.cache_limit.lower()):
            raise ValueError(f'data.train.cache_limit is {self.cache_limit!r}; expected a size such as "100gb"')


@dataclass(frozen=True)
class EvalDataConfig:
    local: str | None = None
    remote: str | None = None
    streams: list[StreamConfig] = field(default_factory=list)
    num_workers: int = key(0, bounds=NOT_NEGATIVE, unit="processes")

    def __post_init__(self):
        check_bounds(self, "data.eval.")
        _check_sources("data.eval", self.local, self.remote, self.streams)

    @property
    def is_given(self) -> bool:
        return bool(self.local or self.remote or self.streams)


def _check_sources(key: str, local: str | None, remote: str | None, streams: list[StreamConfig]) -> None:
    if streams and (local or remote):
        single = " and ".join(
            f"{key}.{name}={value}" for name, value in (("local", local), ("remote", remote)) if value
        )
        unset = " ".join(f"{key}.{name}=null" for name, value in (("local", local), ("remote", remote)) if value)
        several = ", ".join(str(stream.local) for stream in streams)
        raise ValueError(
            f"{single} and {key}.streams ({several}) are both given; for the single folder add {key}.streams=[], for "
            f"the streams {unset}"
        )
    for index, stream in enumerate(streams):
        if not stream.local:
            raise ValueError(f"{key}.streams[{index}].local is missing; expected a folder of MDS shards (or its cache)")
    folders = [stream.local for stream in streams]
    duplicate = next((folder for folder in folders if folders.count(folder) > 1), None)
    if duplicate:
        raise ValueError(f"{key}.streams names {duplicate} twice; expected each folder once")
    with_proportion = sum(stream.proportion is not None for stream in streams)
    if with_proportion not in (0, len(streams)):
        raise ValueError(f"{key}.streams: {with_proportion} of {len(streams)} have a proportion; expected all or none")


@dataclass(frozen=True)
class DataConfig:
    train: TrainDataConfig = key(factory=TrainDataConfig)
    eval: EvalDataConfig = key(on_resume=FREE, factory=EvalDataConfig)
    catalogue: str | None = key(None, ON_REQUEST)
    max_fraction_outside_catalogue: float = key(0.05, FREE, FRACTION)

    def __post_init__(self):
        check_bounds(self, "data.")
        cached = [
            {
                local
                for local, remote in ((data.local, data.remote), *((s.local, s.remote) for s in data.streams))
                if remote
            }
            for data in (self.train, self.eval)
        ]
        for local in cached[0] & cached[1]:
            raise ValueError(f"data.train and data.eval both download to {local}; expected separate folders")


@dataclass(frozen=True)
class EvaluationConfig:
    k_values: tuple[int, ...] = key((5, 10, 20, 50), bounds=K_VALUES, unit="items")
    beam_width: int = key(50, unit="beams")
    exclude_seen: bool = False
    max_history: int | None = key(None, bounds=POSITIVE, unit="items")
    item_score_weight: float = key(0.0, bounds=NOT_NEGATIVE)
    item_neighbours: str | None = None
    neighbour_weight: float = key(0.0, bounds=BELOW_1)
    metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_bounds(self, "evaluation.")
        if not self.k_values:
            raise ValueError(f"evaluation.k_values is []; expected {K_VALUES}")
        if self.neighbour_weight > 0 and not (self.item_neighbours and self.item_score_weight):
            raise ValueError(
                f"evaluation.neighbour_weight is {self.neighbour_weight} with item_neighbours "
                f"{self.item_neighbours or 'null'} and item_score_weight {self.item_score_weight:g}: the neighbours "
                "are a fraction of the user-item score; expected a file for item_neighbours and an item_score_weight "
                "above 0, or neighbour_weight 0"
            )
        if self.beam_width < max(self.k_values):
            raise ValueError(
                f"evaluation.beam_width is {self.beam_width}; expected at least the largest of "
                f"evaluation.k_values ({max(self.k_values)})"
            )


@dataclass(frozen=True)
class FsdpConfig:
    reshard_after_forward: bool = True
    param_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    reduce_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    cpu_offload: bool = False
    reduce_every_microbatch: bool = False

    def __post_init__(self):
        if self.reduce_dtype not in (None, "float32") and not self.reduce_every_microbatch:
            raise ValueError(
                f"parallelism.fsdp.reduce_dtype is {self.reduce_dtype} with reduce_every_microbatch false, which would "
                f"accumulate the microbatches' gradients in {self.reduce_dtype}; expected reduce_every_microbatch "
                "true, or reduce_dtype float32"
            )


@dataclass(frozen=True)
class DeepspeedConfig:
    zero_stage: int = key(2, bounds=Bounds(least=0, most=3, wanted="0, 1, 2 or 3"))
    offload_optimizer: Literal["none", "cpu"] = "none"
    offload_param: Literal["none", "cpu"] = "none"
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_bounds(self, "parallelism.deepspeed.")
        for name, least in (("offload_optimizer", 1), ("offload_param", 3)):
            if getattr(self, name) != "none" and self.zero_stage < least:
                raise ValueError(
                    f"parallelism.deepspeed.{name} is {getattr(self, name)} with zero_stage {self.zero_stage}; "
                    f"expected zero_stage {least} or above"
                )


@dataclass(frozen=True)
class ParallelismConfig:
    strategy: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    activation_checkpointing: bool = False
    shard_reference: bool = False
    fsdp: FsdpConfig = field(default_factory=FsdpConfig)
    deepspeed: DeepspeedConfig = field(default_factory=DeepspeedConfig)

    @property
    def facts(self) -> StrategyFacts:
        return STRATEGIES[self.strategy]

    @property
    def shards_parameters(self) -> bool:
        return self.facts.shards_parameters(self.deepspeed.zero_stage)

    def __post_init__(self):
        if self.shard_reference and not self.shards_parameters:
            raise ValueError(
                f"parallelism.shard_reference is true with strategy {self.strategy}, which keeps a whole model on "
                "each rank; expected strategy fsdp, or deepspeed with zero_stage 3"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    sharded: bool = False
    remote: str | None = None

    def __post_init__(self):
        if self.remote is not None:
            check_s3_url("checkpoint.remote", self.remote)


@dataclass(frozen=True)
class PreemptionConfig:
    grace: float = key(30.0, bounds=POSITIVE, unit="seconds")

    def __post_init__(self):
        check_bounds(self, "preemption.")


@dataclass(frozen=True)
class WandbConfig:
    """Arguments of Composer's `WandBLogger`; the extra "wandb" installs what it needs.

    Attributes:
        project: project of the run; null: that of the environment, or W&B's default.
        entity: user or team that owns the project; null: the one that is logged in.
        group: name under which W&B groups runs, such as those of a sweep.
        tags: words by which W&B filters runs.
    """

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class MlflowConfig:
    """Arguments of Composer's `MLFlowLogger`; the extra "mlflow" installs what it needs.

    Attributes:
        experiment_name: experiment of the run; null: that of the environment, or Composer's default.
        tracking_uri: server or folder that stores the runs; null: that of the environment, or MLflow's default.
    """

    experiment_name: str | None = None
    tracking_uri: str | None = None


@dataclass(frozen=True)
class LoggersConfig:
    progress_bar: bool = True
    console: bool = False
    tensorboard: bool = False
    wandb: WandbConfig | None = None
    mlflow: MlflowConfig | None = None


@dataclass(frozen=True)
class Config:
    run_name: str = key("ugt", FREE)
    seed: int = key(42, FIXED, Bounds(least=0, most=LARGEST_SEED, wanted=f"0 to {LARGEST_SEED}"))
    save_folder: str = key("checkpoints/run", FREE)
    init_from: str | None = key(None, ON_REQUEST)
    init_item_vectors: str | None = key(None, ON_REQUEST)
    max_duration: str = key("5ep", FREE, DURATION)
    global_train_batch_size: int = key(2048, FIXED, POSITIVE, unit="rows")
    device_train_microbatch_size: int | str = key(512, FREE, MICROBATCH, unit="rows")
    device_eval_batch_size: int = key(256, FREE, POSITIVE, unit="rows")
    precision: Literal["amp_bf16", "amp_fp16", "fp32", "auto"] = key("auto", FREE)
    max_grad_norm: float = key(1.0, ON_REQUEST, POSITIVE)
    ema_decay: float | None = key(None, FIXED, EMA_DECAY)
    eval_interval: str = key("500ba", FREE, DURATION)
    save_interval: str = key("1000ba", FREE, DURATION)
    save_num_checkpoints_to_keep: int = key(3, FREE, POSITIVE, unit="checkpoints")
    save_best_on: str | None = key(None, FREE)
    save_best_if: str | None = key(None, FREE)
    save_best_patience: int | None = key(3, FREE, POSITIVE, unit="evaluations")
    autoresume: bool = key(True, FREE)
    resume_despite: tuple[str, ...] = key((), FREE)
    log_interval: str = key("100ba", FREE, DURATION)
    dist_timeout: float = key(600.0, FREE, POSITIVE, unit="seconds")
    dist_start_timeout: float = key(3600.0, FREE, POSITIVE, unit="seconds")
    compile: bool = key(False, FREE)
    allow_tf32: bool = key(False, FREE)
    deterministic: bool = key(False, FREE)
    model: ModelConfig = key(factory=ModelConfig)
    loss: LossConfig = key(factory=LossConfig)
    optimizer: OptimizerConfig = key(factory=OptimizerConfig)
    scheduler: SchedulerConfig = key(on_resume=ON_REQUEST, factory=SchedulerConfig)
    data: DataConfig = key(factory=DataConfig)
    evaluation: EvaluationConfig = key(on_resume=FREE, factory=EvaluationConfig)
    parallelism: ParallelismConfig = key(on_resume=FREE, factory=ParallelismConfig)
    checkpoint: CheckpointConfig = key(on_resume=FREE, factory=CheckpointConfig)
    preemption: PreemptionConfig = key(on_resume=FREE, factory=PreemptionConfig)
    loggers: LoggersConfig = key(on_resume=FREE, factory=LoggersConfig)
    callbacks: dict[str, Any] = key(on_resume=FREE, factory=dict)

    def __post_init__(self):
        check_bounds(self, "")
        if not self.log_interval.endswith("ba"):
            raise ValueError(f'log_interval is {self.log_interval!r}; expected batches such as "100ba"')
        microbatch = self.device_train_microbatch_size
        if isinstance(microbatch, str) and microbatch != "auto":
            raise ValueError(f"device_train_microbatch_size is {microbatch!r}; expected {MICROBATCH}")
        check_whole_config(self)
