"""Checks of the configuration: of single values, called by the sections, and of keys that span sections.

Each raises ValueError with the key, its value and what was expected; `load_config` adds the file.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from ugt_composer.config.best_condition import parse_best_condition
from ugt_composer.config.keys import BOUNDS, FIXED, FREE, ON_RESUME, OnResume
from ugt_composer.config.strategies import STRATEGIES
from ugt_composer.errors import UserError, nearest
from ugt_composer.storage.s3_url import is_url, split_url

if TYPE_CHECKING:
    from ugt_composer.config.schema import Config


def check_bounds(section: Any, prefix: str) -> None:
    """Checks every field of a dataclass against the bounds that it declares."""
    for field in fields(section):
        bounds, value = field.metadata.get(BOUNDS), getattr(section, field.name)
        if bounds is not None and not bounds.accepts(value):
            found = list(value) if isinstance(value, tuple) else repr(value) if isinstance(value, str) else value
            raise ValueError(f"{prefix}{field.name} is {found}; expected {bounds}")


def check_s3_url(name: str, url: str) -> None:
    try:
        split_url(url)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def check_whole_config(config: "Config") -> None:
    """All checks that need more than one section."""
    _check_resume_despite(config)
    _check_best_condition(config)
    _check_strategy(config)
    _check_places(config)
    _check_catalogue(config)
    _check_distillation(config)
    _check_item_scores(config)
    _check_max_history(config)
    _check_starting_point(config)
    _check_group(config)


def device_batch_size(config: "Config", world_size: int) -> int:
    """Rows of a global batch per rank. UserError if they do not divide evenly over the ranks."""
    if config.global_train_batch_size % world_size:
        raise UserError(
            f"global_train_batch_size is {config.global_train_batch_size}; expected a multiple of {world_size} ranks"
        )
    return config.global_train_batch_size // world_size


def on_resume_of_keys(schema: type) -> dict[str, OnResume]:
    """What each key of a dataclass, or else a section above it, declares, such as {"model.d_model": FIXED}."""
    return dict(_on_resume(schema, "", None))


def _on_resume(schema: type, prefix: str, of_section: OnResume | None) -> Iterator[tuple[str, OnResume]]:
    for field in fields(schema):
        on_resume = field.metadata.get(ON_RESUME) or of_section
        if isinstance(field.type, type) and is_dataclass(field.type):
            yield from _on_resume(field.type, f"{prefix}{field.name}.", on_resume)
        elif on_resume is None:
            raise TypeError(f"{prefix}{field.name} does not declare whether it may change when a run resumes")
        else:
            yield f"{prefix}{field.name}", on_resume


def is_within(name: str, names: tuple[str, ...]) -> bool:
    """Whether a key, such as "optimizer.lr", or a section that contains it, is among `names`."""
    return any(name == other or name.startswith(f"{other}.") for other in names)


def _check_resume_despite(config: "Config") -> None:
    """resume_despite may name keys that may change on request, and sections in which all keys may."""
    keys = on_resume_of_keys(type(config))
    on_request = [name for name, on_resume in keys.items() if on_resume not in (FREE, FIXED)]
    for name in config.resume_despite:
        covered = [key for key in keys if is_within(key, (name,))]
        if not covered:
            raise ValueError(f"resume_despite names {name!r}; {nearest(name, on_request)}")
        if rest := {keys[key] for key in covered if key not in on_request}:
            rule = "which must not change when a run resumes" if FIXED in rest else "which may always change"
            raise ValueError(f"resume_despite names {name!r}, {rule}; {nearest(name, on_request)}")


def _check_best_condition(config: "Config") -> None:
    if config.save_best_if is None:
        return
    try:
        parse_best_condition(config.save_best_if)
    except ValueError as error:
        raise ValueError(f"save_best_if {error}") from None


def _check_strategy(config: "Config") -> None:
    parallelism = config.parallelism
    if config.checkpoint.sharded and not parallelism.facts.shards:
        raise ValueError(
            f"checkpoint.sharded is true with parallelism.strategy {parallelism.strategy}, which does not shard; "
            "expected fsdp or deepspeed"
        )
    if config.ema_decay is not None and not parallelism.facts.averages_weights:
        supported = [name for name, facts in STRATEGIES.items() if facts.averages_weights]
        raise ValueError(
            f"ema_decay is {config.ema_decay} with parallelism.strategy {parallelism.strategy}, which keeps "
            f"the float32 weights in its own form; expected {' or '.join(supported)}, or ema_decay null"
        )
    if config.ema_decay is not None and config.checkpoint.sharded:
        raise ValueError(
            f"ema_decay is {config.ema_decay} with checkpoint.sharded true: shards hold no average of the weights; "
            "expected false, or ema_decay null"
        )
    if config.precision == "amp_fp16" and parallelism.strategy == "fsdp" and parallelism.fsdp.cpu_offload:
        raise ValueError(
            "precision is amp_fp16 with parallelism.fsdp.cpu_offload true: the loss scaler looks for overflows in "
            "the gradients with NCCL, which does not support host memory; expected amp_bf16, or cpu_offload false"
        )
    if config.compile and parallelism.strategy == "deepspeed" and parallelism.deepspeed.zero_stage == 3:
        raise ValueError(
            "compile is true with parallelism.deepspeed.zero_stage 3: its hooks gather the weights of each module "
            "within a layer, which would be compiled in dozens of pieces; expected compile false, or strategy fsdp"
        )
    if config.optimizer.name == "lamb" and parallelism.facts.shards:
        raise ValueError(
            f"optimizer.name is lamb with parallelism.strategy {parallelism.strategy}: LAMB needs the norms of whole "
            "parameters, which no rank has; expected adamw, or strategy ddp"
        )


def _check_places(config: "Config") -> None:
    if is_url(config.save_folder):
        raise ValueError(
            f"save_folder is {config.save_folder}; expected a folder on this machine; checkpoint.remote names "
            "the store that it is copied to"
        )
    for name, place in (("init_from", config.init_from), ("loss.reference_from", config.loss.reference_from)):
        if place is not None and is_url(place):
            check_s3_url(name, place)


def _check_catalogue(config: "Config") -> None:
    for reason, needs_it in (
        ("model.level_softmax is catalogue", config.model.level_softmax == "catalogue"),
        ("loss.contrastive_negatives is catalogue", config.loss.contrastive_negatives == "catalogue"),
        (f"evaluation.item_score_weight is {config.evaluation.item_score_weight}", config.evaluation.item_score_weight),
        ("init_item_vectors is set", config.init_item_vectors is not None),
    ):
        if needs_it and config.data.catalogue is None:
            raise ValueError(f"data.catalogue is missing; {reason}, which needs all items: set data.catalogue")


def _check_distillation(config: "Config") -> None:
    if config.loss.lambda_distillation > 0 and config.model.level_softmax != "catalogue":
        raise ValueError(
            f"loss.lambda_distillation is {config.loss.lambda_distillation} with model.level_softmax "
            f"{config.model.level_softmax}; the levels can only learn a distribution over the catalogue if theirs are "
            "over the catalogue: expected model.level_softmax catalogue, or lambda_distillation 0"
        )


def _check_item_scores(config: "Config") -> None:
    if config.evaluation.item_score_weight and not config.loss.lambda_contrastive and config.init_from is None:
        raise ValueError(
            f"evaluation.item_score_weight is {config.evaluation.item_score_weight} with loss.lambda_contrastive 0: "
            "nothing trains the user-item score; expected lambda_contrastive above 0, or item_score_weight 0"
        )


def _check_max_history(config: "Config") -> None:
    most, wanted = config.model.max_seq_len - 1, config.evaluation.max_history
    if wanted is not None and wanted > most:
        raise ValueError(
            f"evaluation.max_history is {wanted}; expected at most {most}, because model.max_seq_len is "
            f"{config.model.max_seq_len} and the first position is the user's token"
        )


def _check_group(config: "Config") -> None:
    if config.loss.uses_group and config.model.level_softmax != "catalogue":
        raise ValueError(
            f"model.level_softmax is {config.model.level_softmax} with loss.preference_objective group: items are "
            "drawn from the catalogue, over which p has to sum to 1; expected catalogue"
        )


def _check_starting_point(config: "Config") -> None:
    if config.init_item_vectors is not None and config.init_from is not None:
        raise ValueError(
            f"init_item_vectors is {config.init_item_vectors} with init_from {config.init_from}, which has item "
            "embeddings already; expected one of the two to be null"
        )
    if config.loss.needs_reference and not (config.loss.reference_from or config.init_from):
        cause, instead = "lambda_preference", "dpo_reference_free=true"
        if not config.loss.preference_needs_reference:
            cause, instead = "lambda_anchor", "lambda_anchor=0"
        elif config.loss.uses_group:
            instead = "group_kl=0"
        raise ValueError(
            f"loss.reference_from is missing; loss.{cause} > 0 needs a reference model: set it to the folder of a "
            f"trained one, or set loss.{instead}"
        )
