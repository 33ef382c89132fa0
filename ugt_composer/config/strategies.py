"""Properties of the strategies for the checks of the configuration; their code is in `ugt_composer/parallelism/`."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class StrategyFacts:
    """
    Attributes:
        shards: splits weights, gradients or optimizer state over the ranks: `checkpoint.sharded` is supported, and
            LAMB, which needs the norms of whole parameters, is not.
        shards_parameters: whether no rank has a whole model, given `parallelism.deepspeed.zero_stage`.
        retries_microbatches: the gradients of a microbatch can be computed again after it ran out of memory.
        half_precision_on_cpu: supports amp_bf16 without a GPU.
        averages_weights: supports `ema_decay`.
    """

    shards: bool
    shards_parameters: Callable[[int], bool]
    retries_microbatches: bool
    half_precision_on_cpu: bool
    averages_weights: bool


STRATEGIES = {
    "ddp": StrategyFacts(
        shards=False,
        shards_parameters=lambda _: False,
        retries_microbatches=True,
        half_precision_on_cpu=True,
        averages_weights=True,
    ),
    "fsdp": StrategyFacts(
        shards=True,
        shards_parameters=lambda _: True,
        retries_microbatches=False,
        half_precision_on_cpu=False,
        averages_weights=True,
    ),
    "deepspeed": StrategyFacts(
        shards=True,
        shards_parameters=lambda zero_stage: zero_stage == 3,
        retries_microbatches=False,
        half_precision_on_cpu=False,
        averages_weights=False,
    ),
}
# Names that other programs use, and what to write here.
OTHER_NAMES = {
    "fsdp1": "FSDP1 needs a GPU and is superseded; expected fsdp, which is FSDP2",
    "fsdp2": "FSDP2 is called fsdp here; expected fsdp",
    **{f"zero{n}": f"expected deepspeed with parallelism.deepspeed.zero_stage={n}" for n in range(4)},
}
