"""What a run takes of a device's memory at its highest point, and whether a card has that much."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ugt_composer.config.checks import device_batch_size
from ugt_composer.config.schema import Config
from ugt_composer.data.manifest import Manifest
from ugt_composer.model.build import freeze_untrained
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.activations import ALL_HALF, AUTOCAST, FLOAT32, Activations, Dtypes, Shape
from ugt_composer.parallelism.build import deepspeed_settings
from ugt_composer.parallelism.deepspeed import check_zero_config
from ugt_composer.parallelism.deepspeed_config import select
from ugt_composer.parallelism.memory import DEVICE, FLOAT, HALF, SMALL, Held, memory_per_rank
from ugt_composer.parallelism.precision import resolve_precision
from ugt_composer.vocabulary import MAX_HISTORY

GIB = 2**30
USUAL_TARGET = 8  # tokens, where the data is not here to say
USUAL_CARD = int(79.1 * GIB)  # what PyTorch sees of an 80 GB card
RESERVE = 4 * GIB  # for CUDA's context, cuBLAS and NCCL's buffers
# Of activations, what lies unused between PyTorch's blocks where layers are computed again: up to 12 % were measured.
# Without checkpointing it was 1 %.
GAPS = 1 / 8


@dataclass(frozen=True)
class Estimate:
    """
    Attributes:
        held: throughout the run, and by a step whatever its rows.
        activations: of a microbatch.
        evaluation: what an evaluation batch takes beside weights and optimizer state.
        shape: of the microbatch.
        evaluation_rows: of an evaluation batch.
        device_batch: rows of a rank's part of a batch.
        precision: amp_bf16, amp_fp16 or fp32.
        most_rows: that a microbatch may have so that the step fits `card`; 0: not even one fits.
        card: bytes of the device.
        has_card: whether such a device is here.
    """

    held: list[Held]
    activations: int
    evaluation: int
    shape: Shape
    evaluation_rows: int
    device_batch: int
    precision: str
    most_rows: int
    card: int
    has_card: bool

    @property
    def on_device(self) -> int:
        return sum(item.bytes for item in self.held if item.where == DEVICE)

    @property
    def peak(self) -> int:
        """The highest point of a step."""
        return self.on_device + self.activations

    @property
    def evaluation_peak(self) -> int:
        return self.on_device + self.evaluation

    @property
    def fits(self) -> bool:
        return self.shape.rows <= self.most_rows and self.evaluation_peak <= self.card - RESERVE


def longest_rows(config: Config, manifests: Sequence[Manifest]) -> tuple[int, int, int]:
    """The most tokens of a history and of a target, and rejected items of a row: those of the data, as far as it is
    here, else what the conversion stores at most, USUAL_TARGET, and one where there is a preference loss."""
    if manifests:
        history, target, rejected = (max(lengths) for lengths in zip(*(m.longest for m in manifests), strict=True))
        return max(1, history), max(1, target), max(rejected, int(config.loss.lambda_preference > 0))
    return min(MAX_HISTORY, config.model.max_seq_len), USUAL_TARGET, int(config.loss.lambda_preference > 0)


def estimate(
    config: Config, world_size: int, longest: tuple[int, int, int], items: int = 0, model: UGT | None = None
) -> Estimate:
    """What one of `world_size` ranks takes.

    Args:
        longest: tokens of a history and of a target, and rejected items; each row of a microbatch has as many.
        items: of the catalogue.
        model: of the config, on any device; None: it is made.

    Raises:
        UserError: the batch does not divide over the ranks, the precision is none of this machine, or DeepSpeed refuses
            its configuration.
    """
    has_card = torch.cuda.is_available()
    card = torch.cuda.get_device_properties(0).total_memory if has_card else USUAL_CARD
    precision = "amp_bf16" if config.precision == "auto" and not has_card else resolve_precision(config.precision)
    if model is None:
        with torch.device("meta"):
            model = UGT(**asdict(config.model))
    layers = [sum(p.numel() for p in layer.parameters()) for layer in (*model.encoder.layers, *model.decoder.layers)]
    parameters = sum(p.numel() for p in model.parameters())
    dtypes, number = _dtypes(config, precision), _number(config, precision)
    activations = Activations(
        config.model,
        config.loss,
        dtypes,
        (parameters, max(layers)) if dtypes == AUTOCAST and number == FLOAT else (0, 0),
        config.parallelism.activation_checkpointing,
        world_size,
        items,
        config.evaluation.item_score_weight > 0,
    )
    held = _held(config, model, layers, world_size, precision)
    on_device = sum(item.bytes for item in held if item.where == DEVICE)
    device_batch, room = device_batch_size(config, world_size), card - RESERVE - on_device

    gaps = GAPS if config.parallelism.activation_checkpointing else 0

    def fits(rows: int) -> bool:
        return activations.of_training(Shape(rows, *longest)) * (1 + gaps) <= room

    most = _largest(fits, device_batch)
    micro = config.device_train_microbatch_size
    rows = _halved(device_batch, most) if isinstance(micro, str) else min(micro, device_batch)
    evaluation = Shape(config.device_eval_batch_size, *longest)
    return Estimate(
        held,
        activations.of_training(Shape(rows, *longest)),
        activations.of_evaluation(evaluation),
        Shape(rows, *longest),
        evaluation.rows,
        device_batch,
        precision,
        most,
        card,
        has_card,
    )


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits; 0 where 1 does not. Whatever is below a number that fits, fits."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _halved(rows: int, most: int) -> int:
    """The microbatch that auto ends at: it begins with a rank's whole batch, and halves it until it fits."""
    while rows > max(1, most):
        rows //= 2
    return rows


def _dtypes(config: Config, precision: str) -> Dtypes:
    if precision != "fp32" and not _is_in_engine(config):
        return AUTOCAST
    return FLOAT32 if _number(config, precision) == FLOAT else ALL_HALF


def _number(config: Config, precision: str) -> int:
    """Bytes of a weight where it computes."""
    parallelism, half = config.parallelism, precision != "fp32"
    if parallelism.strategy == "fsdp" and parallelism.fsdp.param_dtype is not None:
        half = parallelism.fsdp.param_dtype != "float32"
    return HALF if half and (parallelism.strategy == "fsdp" or _is_in_engine(config)) else FLOAT


def _is_in_engine(config: Config) -> bool:
    """Whether DeepSpeed's engine casts the model, in place of autocast."""
    return config.parallelism.strategy == "deepspeed" and config.parallelism.deepspeed.zero_stage > 0


def _held(config: Config, model: UGT, layers: list[int], world_size: int, precision: str) -> list[Held]:
    """layers: parameters of each."""
    parallelism, number = config.parallelism, _number(config, precision)
    deepspeed, fsdp = parallelism.deepspeed, parallelism.fsdp
    parameters = sum(p.numel() for p in model.parameters())
    freeze_untrained(model, config.loss.lambda_contrastive)
    offloads = (deepspeed.offload_optimizer != "none", deepspeed.offload_param != "none")
    of_strategy: dict[str, Any] = {}
    if parallelism.strategy == "fsdp":
        offloads = (fsdp.cpu_offload,) * 2
        of_strategy = {"gradient": HALF if fsdp.reduce_dtype in ("bfloat16", "float16") else FLOAT}
    elif parallelism.strategy == "deepspeed":
        settings = deepspeed_settings(config, precision, world_size, parameters)
        if deepspeed.config:
            check_zero_config(settings)
        of_strategy = _of_engine(settings, number)
    held = memory_per_rank(
        parallelism.strategy,
        deepspeed.zero_stage,
        world_size,
        number,
        parameters,
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        max(*layers, parameters - sum(layers)),
        sum(p.numel() for p in model.parameters() if p.numel() < SMALL),
        *offloads,
        accumulates=_has_microbatches(config, world_size) and not fsdp.reduce_every_microbatch,
        stays_whole=not fsdp.reshard_after_forward,
        **of_strategy,
    )
    if config.loss.needs_reference_model:
        # As the policy computes; FSDP's shards are float32.
        of_reference = FLOAT if parallelism.strategy == "fsdp" and parallelism.shard_reference else number
        share = world_size if parallelism.shard_reference else 1
        held.append(Held("reference", of_reference * -(-parameters // share)))
    return held


def _of_engine(settings: dict[str, Any], number: int) -> dict[str, int]:
    """What DeepSpeed's configuration says of gradients and buckets, as `memory_per_rank` takes it."""
    # Sent in float32, gradients in half precision are copied, which takes about as much as to add them up in float32.
    dtypes = select(settings, "data_types.grad_accum_dtype"), select(settings, "communication_data_type")
    in_float32 = any(dtype in ("fp32", "float32", "float") for dtype in dtypes)
    return {"gradient": FLOAT if in_float32 else number, "bucket": settings["zero_optimization"]["reduce_bucket_size"]}


def _has_microbatches(config: Config, world_size: int) -> bool:
    """Whether a rank's part of a batch is more than one microbatch; with auto it may be."""
    micro = config.device_train_microbatch_size
    return isinstance(micro, str) or device_batch_size(config, world_size) > micro
