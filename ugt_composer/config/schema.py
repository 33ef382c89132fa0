"""The configuration: one tree of frozen dataclasses, the only home of defaults.

`load_config` merges YAML files and `key=value` overrides, in that order, over the defaults. A key that no dataclass
has is an error that names the nearest valid one. The result never changes afterwards.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ugt_composer.errors import UserError, nearest
from ugt_composer.storage.s3_url import is_url, split_url
from ugt_composer.vocabulary import DEFAULT_CODEBOOK_SIZES, MAX_POSITIONS, NUM_SPECIAL_IDS, NUM_TOKEN_TYPES

# Optional and Union, not `|`: OmegaConf reads these annotations on Python 3.10 too.


def _positive(owner: Any, prefix: str, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{prefix}{name} is {value}; expected a number above 0")


def _share(owner: Any, prefix: str, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{prefix}{name} is {value}; expected a share from 0 to 1")


OTHER_STRATEGIES = {
    "fsdp1": "FSDP1 needs a GPU and is superseded; expected fsdp, which is FSDP2",
    "fsdp2": "FSDP2 is called fsdp here; expected fsdp",
    **{f"zero{n}": f"expected deepspeed with parallelism.deepspeed.zero_stage={n}" for n in range(4)},
}
_TIME = re.compile(r"[1-9]\d*(ba|ep)|(100|\d{1,2}(\.\d+)?)%")


def _time(prefix: str, name: str, value: str, percent: bool) -> None:
    if not _TIME.fullmatch(value) or (value.endswith("%") and not percent):
        also = ' or a share of the run such as "5%"' if percent else ""
        raise ValueError(f'{prefix}{name} is {value!r}; expected batches or epochs such as "500ba" or "2ep"{also}')


def _s3_url(key: str, url: str) -> None:
    try:
        split_url(url)
    except ValueError as error:
        raise ValueError(f"{key} {error}") from None


@dataclass(frozen=True)
class ModelConfig:
    d_model: int = 512
    n_heads: int = 16
    n_encoder_layers: int = 12
    n_decoder_layers: int = 12
    d_ff: int = 2048
    dropout: float = 0.1
    attention_dropout: float = 0.0
    attention_activation: Literal["silu", "relu"] = "silu"
    max_seq_len: int = MAX_POSITIONS
    history_positions: Literal["from_start", "from_end"] = "from_start"
    codebook_sizes: tuple[int, int, int] = DEFAULT_CODEBOOK_SIZES
    num_token_types: int = NUM_TOKEN_TYPES
    num_experts: int = 16
    top_k_experts: int = 4
    expert_capacity_factor: float | None = 1.25
    user_pooling: Literal["first", "last", "first_and_last", "mean"] = "first"
    user_activation: Literal["tanh", "none"] = "tanh"
    tie_embeddings: bool = True
    level_softmax: Literal["codebook", "catalogue"] = "codebook"

    def __post_init__(self):
        _positive(self, "model.", "d_model", "n_heads", "n_encoder_layers", "n_decoder_layers", "d_ff", "max_seq_len")
        _positive(self, "model.", "num_experts", "top_k_experts", "expert_capacity_factor")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; expected a share from 0 to below 1")
        if self.d_model % self.n_heads:
            raise ValueError(f"model.d_model is {self.d_model}; expected a multiple of model.n_heads ({self.n_heads})")
        if self.top_k_experts > self.num_experts:
            raise ValueError(
                f"model.top_k_experts is {self.top_k_experts}; expected at most model.num_experts ({self.num_experts})"
            )
        if self.num_token_types < NUM_TOKEN_TYPES:
            raise ValueError(f"model.num_token_types is {self.num_token_types}; expected at least {NUM_TOKEN_TYPES}")
        if len(self.codebook_sizes) != 3 or min(self.codebook_sizes) <= NUM_SPECIAL_IDS:
            raise ValueError(
                f"model.codebook_sizes is {list(self.codebook_sizes)}; "
                f"expected three sizes above {NUM_SPECIAL_IDS} (the special ids)"
            )


@dataclass(frozen=True)
class LossConfig:
    l1_weight: float = 0.5
    l2_weight: float = 0.3
    l3_weight: float = 0.2
    label_smoothing: float = 0.0
    lambda_contrastive: float = 0.0
    contrastive_temperature: float = 0.07
    contrastive_similarity: Literal["cosine", "dot"] = "cosine"
    contrastive_negatives: Literal["in_batch", "catalogue"] = "in_batch"
    num_negatives: int = 127
    lambda_preference: float = 0.0
    dpo_beta: float = 0.1
    dpo_label_smoothing: float = 0.0
    dpo_loss_type: Literal["sigmoid", "ipo", "hinge", "softmax"] = "sigmoid"
    dpo_reference_free: bool = False
    reference_from: str | None = None
    reference_log_probs: Literal["model", "data"] = "model"
    lambda_moe_balance: float = 0.01

    def __post_init__(self):
        weights = (self.l1_weight, self.l2_weight, self.l3_weight)
        if min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
            raise ValueError(
                f"loss.l1_weight + loss.l2_weight + loss.l3_weight is {' + '.join(map(str, weights))} = "
                f"{sum(weights):g}; expected weights from 0 that sum to 1"
            )
        _positive(self, "loss.", "contrastive_temperature", "num_negatives", "dpo_beta")
        _share(self, "loss.", "label_smoothing")
        if not 0 <= self.dpo_label_smoothing < 0.5:
            raise ValueError(f"loss.dpo_label_smoothing is {self.dpo_label_smoothing}; expected from 0 to below 0.5")
        if self.dpo_label_smoothing > 0 and self.dpo_loss_type != "sigmoid":
            raise ValueError(
                f"loss.dpo_label_smoothing is {self.dpo_label_smoothing}, which only loss.dpo_loss_type sigmoid has; "
                f"expected 0 with {self.dpo_loss_type}"
            )
        if self.reference_log_probs == "data" and not self.needs_reference:
            why = "lambda_preference is 0" if self.lambda_preference == 0 else "dpo_reference_free is true"
            raise ValueError(
                f"loss.reference_log_probs is data, but loss.{why}, so that no reference is read; expected model"
            )
        for name in ("lambda_contrastive", "lambda_preference", "lambda_moe_balance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"loss.{name} is {getattr(self, name)}; expected 0 or more")

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `UnifiedLoss`: all but where the reference's log-probabilities come from."""
        return {key: value for key, value in asdict(self).items() if not key.startswith("reference_")}

    @property
    def needs_reference(self) -> bool:
        return self.lambda_preference > 0 and not self.dpo_reference_free

    @property
    def needs_reference_model(self) -> bool:
        return self.needs_reference and self.reference_log_probs == "model"


@dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adamw", "lamb"] = "adamw"
    lr: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self):
        _positive(self, "optimizer.", "lr", "eps")
        if self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay is {self.weight_decay}; expected 0 or more")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas is {list(self.betas)}; expected two numbers from 0 to below 1")


@dataclass(frozen=True)
class SchedulerConfig:
    name: Literal["linear", "cosine", "polynomial", "constant"] = "cosine"
    t_warmup: str = "10000ba"
    max_warmup_ratio: float = 0.1
    min_lr_ratio: float = 0.1

    def __post_init__(self):
        _time("scheduler.", "t_warmup", self.t_warmup, percent=True)
        _share(self, "scheduler.", "min_lr_ratio", "max_warmup_ratio")


@dataclass(frozen=True)
class StreamConfig:
    local: str | None = None
    remote: str | None = None
    proportion: float | None = None

    def __post_init__(self):
        _positive(self, "data.….streams[].", "proportion")


@dataclass(frozen=True)
class TrainDataConfig:
    local: str | None = None
    remote: str | None = None
    streams: list[StreamConfig] = field(default_factory=list)
    shuffle: bool = True
    shuffle_block_size: int = 1 << 18
    num_canonical_nodes: int = 4
    group_by_length: bool = True
    num_workers: int = 2
    predownload: int | None = None
    cache_limit: str | None = None

    def __post_init__(self):
        _check_sources("data.train", self.local, self.remote, self.streams)
        _positive(self, "data.train.", "shuffle_block_size", "num_canonical_nodes", "predownload")
        _check_workers("data.train", self.num_workers)
        if self.cache_limit is not None and not re.fullmatch(r"\d+(\.\d+)?\s*([kmgt]?b)?", self.cache_limit.lower()):
            raise ValueError(f'data.train.cache_limit is {self.cache_limit!r}; expected a size such as "100gb"')


@dataclass(frozen=True)
class EvalDataConfig:
    local: str | None = None
    remote: str | None = None
    streams: list[StreamConfig] = field(default_factory=list)
    num_workers: int = 0

    def __post_init__(self):
        _check_sources("data.eval", self.local, self.remote, self.streams)
        _check_workers("data.eval", self.num_workers)

    @property
    def is_given(self) -> bool:
        return bool(self.local or self.remote or self.streams)


def _check_workers(key: str, num_workers: int) -> None:
    if num_workers < 0:
        raise ValueError(f"{key}.num_workers is {num_workers}; expected 0 or more")


def _check_sources(key: str, local: str | None, remote: str | None, streams: list[StreamConfig]) -> None:
    if streams and (local or remote):
        raise ValueError(f"{key}.local and {key}.streams are both given; expected one of them")
    for index, stream in enumerate(streams):
        if not stream.local:
            raise ValueError(f"{key}.streams[{index}].local is missing; expected a folder of MDS shards (or its cache)")
    folders = [stream.local for stream in streams]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice:
        raise ValueError(f"{key}.streams names {twice} twice; expected each folder once")
    with_proportion = sum(stream.proportion is not None for stream in streams)
    if with_proportion not in (0, len(streams)):
        raise ValueError(f"{key}.streams: {with_proportion} of {len(streams)} have a proportion; expected all or none")


@dataclass(frozen=True)
class DataConfig:
    train: TrainDataConfig = field(default_factory=TrainDataConfig)
    eval: EvalDataConfig = field(default_factory=EvalDataConfig)
    catalogue: str | None = None

    def __post_init__(self):
        cached = [
            {
                local
                for local, remote in ((data.local, data.remote), *((s.local, s.remote) for s in data.streams))
                if remote
            }
            for data in (self.train, self.eval)
        ]
        for local in cached[0] & cached[1]:
            raise ValueError(f"data.train and data.eval both fetch into {local}; expected a folder of its own for each")


@dataclass(frozen=True)
class EvaluationConfig:
    k_values: tuple[int, ...] = (5, 10, 20, 50)
    beam_width: int = 50
    exclude_seen: bool = False
    item_score_weight: float = 0.0

    def __post_init__(self):
        if not self.k_values or min(self.k_values) <= 0:
            raise ValueError(f"evaluation.k_values is {list(self.k_values)}; expected numbers above 0")
        if not 0 <= self.item_score_weight < math.inf:
            raise ValueError(f"evaluation.item_score_weight is {self.item_score_weight}; expected 0 or more")
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
                f"add up the microbatches' gradients in {self.reduce_dtype}; expected reduce_every_microbatch true, or "
                "reduce_dtype float32"
            )


@dataclass(frozen=True)
class DeepspeedConfig:
    zero_stage: int = 2
    offload_optimizer: Literal["none", "cpu"] = "none"
    offload_param: Literal["none", "cpu"] = "none"
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not 0 <= self.zero_stage <= 3:
            raise ValueError(f"parallelism.deepspeed.zero_stage is {self.zero_stage}; expected 0, 1, 2 or 3")
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
    def shards_parameters(self) -> bool:
        return self.strategy == "fsdp" or (self.strategy == "deepspeed" and self.deepspeed.zero_stage == 3)

    def __post_init__(self):
        if self.shard_reference and not self.shards_parameters:
            raise ValueError(
                f"parallelism.shard_reference is true with strategy {self.strategy}, which keeps a whole model on each "
                "rank; expected strategy fsdp, or deepspeed with zero_stage 3"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    sharded: bool = False
    remote: str | None = None

    def __post_init__(self):
        if self.remote is not None:
            _s3_url("checkpoint.remote", self.remote)


@dataclass(frozen=True)
class PreemptionConfig:
    grace: float = 30.0

    def __post_init__(self):
        _positive(self, "preemption.", "grace")


@dataclass(frozen=True)
class WandbConfig:
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class MlflowConfig:
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
class CallbacksConfig:
    memory_monitor: bool = False


LOSS_SETTINGS = (
    "l1_weight",
    "l2_weight",
    "l3_weight",
    "label_smoothing",
    "contrastive_temperature",
    "contrastive_similarity",
    "contrastive_negatives",
)
# What a run may go on with although its checkpoint had another value: nothing that decides shapes or the next sample.
RESUME_DESPITE = (
    *(f"loss.{name}" for name in LOSS_SETTINGS),
    *(f"loss.lambda_{name}" for name in ("contrastive", "preference", "moe_balance")),
    *(f"loss.dpo_{name}" for name in ("beta", "label_smoothing", "loss_type")),
    "loss.reference_from",
    *(f"optimizer.{name}" for name in ("lr", "weight_decay", "betas", "eps")),
    "scheduler",
    "max_grad_norm",
    "init_from",
    "init_item_vectors",
    *(f"model.{name}" for name in ("dropout", "attention_dropout", "top_k_experts", "expert_capacity_factor")),
    "data.catalogue",
)


def is_within(key: str, names: Sequence[str]) -> bool:
    """Whether a key, as "optimizer.lr", or a section that it is in is among those named."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


@dataclass(frozen=True)
class Config:
    run_name: str = "ugt"
    seed: int = 42
    save_folder: str = "checkpoints/run"
    init_from: str | None = None
    init_item_vectors: str | None = None
    max_duration: str = "5ep"
    global_train_batch_size: int = 2048
    device_train_microbatch_size: int | str = 512
    device_eval_batch_size: int = 256
    precision: Literal["amp_bf16", "amp_fp16", "fp32", "auto"] = "auto"
    max_grad_norm: float = 1.0
    eval_interval: str = "500ba"
    save_interval: str = "1000ba"
    save_num_checkpoints_to_keep: int = 3
    save_best_on: str | None = None
    autoresume: bool = True
    resume_despite: tuple[str, ...] = ()
    log_interval: str = "100ba"
    dist_timeout: float = 600.0
    dist_start_timeout: float = 3600.0
    compile: bool = False
    allow_tf32: bool = False
    deterministic: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    parallelism: ParallelismConfig = field(default_factory=ParallelismConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    preemption: PreemptionConfig = field(default_factory=PreemptionConfig)
    loggers: LoggersConfig = field(default_factory=LoggersConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)

    def __post_init__(self):
        _positive(self, "", "global_train_batch_size", "device_eval_batch_size", "max_grad_norm")
        _positive(self, "", "save_num_checkpoints_to_keep", "dist_timeout", "dist_start_timeout")
        for key in self.resume_despite:
            if not is_within(key, RESUME_DESPITE):
                raise ValueError(f"resume_despite names {key!r}; {nearest(key, list(RESUME_DESPITE))}")
        for name in ("max_duration", "eval_interval", "save_interval", "log_interval"):
            _time("", name, getattr(self, name), percent=False)
        if not self.log_interval.endswith("ba"):
            raise ValueError(f'log_interval is {self.log_interval!r}; expected batches such as "100ba"')
        if not 0 <= self.seed < 2**32 - 1:
            raise ValueError(f"seed is {self.seed}; expected 0 to {2**32 - 2}")
        microbatch = self.device_train_microbatch_size
        if microbatch != "auto" and (isinstance(microbatch, str) or microbatch <= 0):
            raise ValueError(f'device_train_microbatch_size is {microbatch!r}; expected a number above 0 or "auto"')
        if self.checkpoint.sharded and self.parallelism.strategy == "ddp":
            raise ValueError(
                "checkpoint.sharded is true with parallelism.strategy ddp, which shards nothing; expected fsdp or "
                "deepspeed"
            )
        if self.precision == "amp_fp16" and self.parallelism.strategy == "fsdp" and self.parallelism.fsdp.cpu_offload:
            raise ValueError(
                "precision is amp_fp16 with parallelism.fsdp.cpu_offload true: the loss scaler looks for overflows in "
                "the gradients, which are in host memory then, where NCCL reduces nothing; expected amp_bf16, or "
                "cpu_offload false"
            )
        if self.optimizer.name == "lamb" and self.parallelism.strategy != "ddp":
            raise ValueError(
                f"optimizer.name is lamb with parallelism.strategy {self.parallelism.strategy}: LAMB scales by the "
                "norms of whole parameters, which a rank does not hold; expected adamw, or strategy ddp"
            )
        if is_url(self.save_folder):
            raise ValueError(
                f"save_folder is {self.save_folder}; expected a folder of this machine: checkpoint.remote names the "
                "store that it is copied to"
            )
        for key, place in (("init_from", self.init_from), ("loss.reference_from", self.loss.reference_from)):
            if place is not None and is_url(place):
                _s3_url(key, place)
        for key, needs_it in (
            ("model.level_softmax is catalogue", self.model.level_softmax == "catalogue"),
            ("loss.contrastive_negatives is catalogue", self.loss.contrastive_negatives == "catalogue"),
            (f"evaluation.item_score_weight is {self.evaluation.item_score_weight}", self.evaluation.item_score_weight),
            ("init_item_vectors is set", self.init_item_vectors is not None),
        ):
            if needs_it and self.data.catalogue is None:
                raise ValueError(f"data.catalogue is missing; {key}, which needs to know all items: name the catalogue")
        if self.evaluation.item_score_weight and not self.loss.lambda_contrastive and self.init_from is None:
            raise ValueError(
                f"evaluation.item_score_weight is {self.evaluation.item_score_weight} with loss.lambda_contrastive 0: "
                "nothing trains the user-item score; expected lambda_contrastive above 0, or item_score_weight 0"
            )
        if self.init_item_vectors is not None and self.init_from is not None:
            raise ValueError(
                f"init_item_vectors is {self.init_item_vectors} with init_from {self.init_from}, which has item "
                "embeddings already; expected one of them, the other null"
            )
        if self.loss.needs_reference and not (self.loss.reference_from or self.init_from):
            raise ValueError(
                "loss.reference_from is missing; loss.lambda_preference > 0 compares with a reference model: name the "
                "folder of a trained one, or set loss.dpo_reference_free=true"
            )


def load_config(*paths: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads YAML files and `key=value` overrides, the later over the earlier, over the defaults.

    Raises:
        UserError: naming the file or override and the key, what was found and what was expected.
    """
    merged = OmegaConf.structured(Config)
    for source, tree in (*map(_read_yaml, paths), *map(_read_override, overrides)):
        for problem in (*_misplaced_keys(tree, Config), *_other_strategies(tree)):
            raise UserError(f"{source}: {problem}")
        try:
            merged = OmegaConf.unsafe_merge(merged, OmegaConf.create(tree))  # into `merged`, which is not copied
        except OmegaConfBaseException as error:
            raise _from_omegaconf(source, error) from None
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise _from_omegaconf(_names(paths), error) from None
    except ValueError as error:
        raise UserError(f"{_names(paths)}: {error}") from None
    assert isinstance(config, Config)
    return config


def config_yaml(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal config."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _names(paths: Sequence[str | Path]) -> str:
    return " + ".join(map(str, paths)) or "config"


def _read_yaml(path: str | Path) -> tuple[str, dict]:
    try:
        tree = OmegaConf.load(path)
        if not OmegaConf.is_dict(tree):
            raise UserError(f"{path}: found a list; expected keys and values")
        return str(path), OmegaConf.to_container(tree)  # type: ignore[return-value]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a YAML such as yamls/stage1.yaml") from None
    except (IsADirectoryError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({error})") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from None


def _read_override(text: str) -> tuple[str, dict]:
    key, separator, _ = text.partition("=")
    if not separator or not re.fullmatch(r"[\w.\[\]]+", key):
        raise UserError(f"{text}: expected key=value such as optimizer.lr=1e-4")
    try:
        return f"override {text}", OmegaConf.to_container(OmegaConf.from_dotlist([text]))  # type: ignore[return-value]
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"override {text}: {str(error).splitlines()[0]}") from None


def _from_omegaconf(source: str, error: OmegaConfBaseException) -> UserError:
    key = f"{error.full_key}: " if error.full_key else ""
    return UserError(f"{source}: {key}{str(error.msg or error).splitlines()[0]}")


def _other_strategies(tree: dict) -> Iterator[str]:
    """Yields why a strategy that exists elsewhere is none here."""
    section = tree.get("parallelism")
    asked = section.get("strategy") if isinstance(section, dict) else None
    if asked in OTHER_STRATEGIES:
        yield f"parallelism.strategy is {asked}; {OTHER_STRATEGIES[asked]}"


def _misplaced_keys(tree: dict, schema: type, prefix: str = "") -> Iterator[str]:
    """Yields what is wrong with the keys of a plain tree, held against the dataclass `schema`."""
    hints = get_type_hints(schema)
    names = [f.name for f in fields(schema)]
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key not in names:
            yield f"{name} is unknown; {nearest(name, [prefix + n for n in names])}"
            continue
        section = next((t for t in (hints[key], *get_args(hints[key])) if is_dataclass(t)), None)
        if section is None:
            continue
        optional = type(None) in get_args(hints[key])
        if get_origin(hints[key]) is list:
            if not isinstance(value, list):
                yield f"{name} is {value!r}; expected a list such as [{{local: mds/train}}]"
                continue
            for index, item in enumerate(value):
                if not isinstance(item, dict):
                    yield f"{name}[{index}] is {item!r}; expected the keys {', '.join(f.name for f in fields(section))}"
                else:
                    yield from _misplaced_keys(item, section, f"{name}[{index}].")  # type: ignore[arg-type]
        elif isinstance(value, dict):
            yield from _misplaced_keys(value, section, f"{name}.")  # type: ignore[arg-type]
        elif not (optional and value is None):
            valid = ", ".join(f"{name}.{f.name}" for f in fields(section))
            yield f"{name} is {value!r}; expected a section with some of {valid}"
