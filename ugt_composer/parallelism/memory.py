"""What a rank holds for weights, gradients and optimizer state under each strategy, in bytes, without activations.

Rajbhandari et al. (2020), ZeRO, section 3, for AdamW: two moments of four bytes a parameter; and what the libraries
keep beside that.
"""

from typing import NamedTuple

from ugt_composer.parallelism.deepspeed_config import BUCKET

FLOAT, HALF = 4, 2
DEVICE, HOST = "device", "host"
LAYERS_AT_ONCE = 2  # that FSDP has whole at the same time: the one at work and the one that comes
LIVE = 10**9  # parameters that DeepSpeed leaves whole, by default; with smaller limits it left as many here
SMALL = 100_000  # DeepSpeed's default for stage3_param_persistence_threshold


class Held(NamedTuple):
    name: str
    bytes: int
    where: str = DEVICE


def memory_per_rank(
    strategy: str,
    zero_stage: int,
    world_size: int,
    number: int,
    parameters: int,
    trainable: int,
    largest_layer: int,
    small: int = 0,
    offload_optimizer: bool = False,
    offload_param: bool = False,
    accumulates: bool = False,
    stays_whole: bool = False,
    gradient: int = FLOAT,
    bucket: int = BUCKET,
) -> list[Held]:
    """
    Args:
        strategy: ddp, fsdp or deepspeed; `zero_stage` counts for the last only.
        number: bytes of a weight where it computes: of FSDP's gathered ones, of those that DeepSpeed's engine casts.
        parameters, trainable: of the model.
        largest_layer: parameters of the largest unit that is gathered at once.
        small: parameters in tensors of fewer than SMALL elements, which stage 3 keeps whole.
        offload_optimizer, offload_param: whether these live in host memory; FSDP's cpu_offload is both.
        accumulates: whether FSDP adds up whole gradients over several microbatches and reduces them once a batch. They
            take as much of the device on any number of ranks and with offloading too: in float32 4 bytes a trainable
            parameter, which is as much as all shards of one of 4 ranks.
        stays_whole: FSDP's layers are whole from their forward pass to their backward pass (`reshard_after_forward`
            false), and so are all of them in between.
        gradient: bytes of a gradient as FSDP reduces it and as ZeRO adds it up.
        bucket: parameters whose gradients ZeRO sends at once.
    """
    own = -(-trainable // world_size)
    optimizer_where, param_where = (HOST if offload else DEVICE for offload in (offload_optimizer, offload_param))
    if strategy == "fsdp":
        at_once = parameters if stays_whole else min(LAYERS_AT_ONCE * largest_layer, parameters)
        gathered = at_once * number
        return [
            Held("weights", FLOAT * -(-parameters // world_size), param_where),
            Held("gradients", FLOAT * own, param_where),
            Held("optimizer", 2 * FLOAT * own, optimizer_where),
            Held("gathered", gathered),
            *([Held("whole gradients", gradient * trainable)] if accumulates else []),
            Held("reduced at once", gradient * min(largest_layer, trainable)),
        ]
    if strategy == "ddp" or zero_stage == 0:
        return [
            Held("weights", FLOAT * parameters),
            Held("gradients", FLOAT * trainable),
            Held("optimizer", 2 * FLOAT * trainable),
            *([Held("buckets", FLOAT * trainable)] if strategy == "ddp" and world_size > 1 else []),
        ]
    sharded = [
        Held("master weights", FLOAT * own, optimizer_where),
        Held("optimizer", 2 * FLOAT * own, optimizer_where),
        Held("buckets", number * min(bucket, parameters)),
    ]
    if zero_stage == 3:
        gathered = min(LIVE, parameters) * number
        weights = Held("weights", number * (-(-parameters // world_size) + small), param_where)
        return [weights, Held("gradients", gradient * own), *sharded, Held("gathered", gathered)]
    return [
        Held("weights", number * parameters),
        Held("gradients", gradient * (trainable if zero_stage == 1 else own)),
        *sharded,
    ]
