"""Estimates the peak memory of a run on a device, and whether it fits a card."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from ugt_composer.config.checks import device_batch_size
from ugt_composer.config.schema import Config
from ugt_composer.data.manifest import Manifest
from ugt_composer.model.build import freeze_untrained
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.activations import ALL_HALF, AUTOCAST, FLOAT32, Activations, Dtypes, Shape
from ugt_composer.parallelism.build import strategy_class
from ugt_composer.parallelism.memory import DEVICE, FLOAT, MemoryItem, ModelSizes, sizes_of
from ugt_composer.parallelism.precision import resolve_precision
from ugt_composer.parallelism.strategy import Strategy
from ugt_composer.vocabulary import MAX_HISTORY

GIB = 2**30
CATALOGUE_BYTES = 96  # of the trie, per item: twelve 64-bit numbers, if no two items share a prefix of two ids
USUAL_TARGET = 8  # tokens, assumed if the data is not on this machine
USUAL_CARD = int(79.1 * GIB)  # of an 80 GB card, as reported by PyTorch
RESERVE = 4 * GIB  # for CUDA's context, cuBLAS and NCCL's buffers
# Memory lost in gaps between PyTorch's blocks under activation checkpointing, as a fraction of the activations: up to
# 12 % were measured, without checkpointing 1 %.
GAPS = 1 / 8
# While gradients are reduced, part of the activations is freed. Of the smaller of both, so much is added to the larger
# one; in five measurements of ZeRO-1 and ZeRO-2, it was 5 to 35 %.
OVERLAP = 0.35


@dataclass(frozen=True)
class Estimate:
    """
    Attributes:
        items: memory that does not depend on the number of rows, during the whole run or during a step.
        activations: bytes of a microbatch's activations.
        evaluation: bytes of an evaluation batch, in addition to weights and optimizer state.
        shape: of the microbatch.
        evaluation_rows: rows of an evaluation batch.
        device_batch: rows per rank of a batch.
        precision: amp_bf16, amp_fp16 or fp32.
        most_rows: the most rows of a microbatch with which a step fits `card`; 0: not even one row fits.
        card: bytes of memory of the device.
        has_card: whether this machine has such a device.
    """

    items: list[MemoryItem]
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
        """Bytes that do not depend on the rows, without what exists while gradients are reduced."""
        return _on_device(self.items)

    @property
    def peak(self) -> int:
        """Peak memory of a step on the device, in bytes."""
        return self.on_device + _overlapping(self.activations, _on_device(self.items, reduces=True))

    @property
    def evaluation_peak(self) -> int:
        return self.on_device + self.evaluation

    @property
    def fits(self) -> bool:
        return self.shape.rows <= self.most_rows and self.evaluation_peak <= self.card - RESERVE


def longest_rows(config: Config, manifests: Sequence[Manifest]) -> tuple[int, int, int]:
    """The most tokens of a history and of a target, and the most rejected items of a row. If the data is not on this
    machine: the most that the conversion stores, USUAL_TARGET, and one if there is a preference loss."""
    if manifests:
        history, target, rejected = (max(lengths) for lengths in zip(*(m.longest for m in manifests), strict=True))
        return max(1, history), max(1, target), max(rejected, int(config.loss.lambda_preference > 0))
    return min(MAX_HISTORY, config.model.max_seq_len), USUAL_TARGET, int(config.loss.lambda_preference > 0)


def estimate(
    config: Config,
    world_size: int,
    longest: tuple[int, int, int],
    items: int = 0,
    model: UGT | None = None,
    precision: str | None = None,
) -> Estimate:
    """The memory that each of `world_size` ranks needs.

    Args:
        longest: tokens of the history and of the target, and rejected items, of each row of a microbatch.
        items: number of items in the catalogue.
        model: the config's model on any device; None: it is created here.
        precision: of the run; None: that of the config, on a GPU.

    Raises:
        UserError: the batch does not divide over the ranks, this machine does not support the precision, or DeepSpeed
            refuses its configuration.
    """
    has_card = torch.cuda.is_available()
    card = torch.cuda.get_device_properties(0).total_memory if has_card else USUAL_CARD
    if precision is None:
        precision = "amp_bf16" if config.precision == "auto" and not has_card else resolve_precision(config.precision)
    if model is None:
        with torch.device("meta"):
            model = UGT(**asdict(config.model))
    freeze_untrained(model, config.loss)
    layers = [*model.encoder.layers, *model.decoder.layers]
    sizes, strategy = sizes_of(model, layers), strategy_class(config)
    largest = max(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers)
    dtypes = _dtypes(config, strategy, precision)
    keeps_casts = dtypes == AUTOCAST and strategy.weight_bytes(config, precision) == FLOAT
    activations = Activations(
        config.model,
        config.loss,
        dtypes,
        (sizes.parameters, largest) if keeps_casts else (0, 0),
        config.parallelism.activation_checkpointing,
        world_size,
        items,
        config.evaluation.item_score_weight > 0,
    )
    memory = strategy.memory(config, sizes, world_size, precision)
    if config.loss.needs_reference_model:
        memory.append(_reference(config, strategy, precision, sizes, world_size))
    if items:
        memory.append(MemoryItem("catalogue", CATALOGUE_BYTES * items))
    device_batch, room = device_batch_size(config, world_size), card - RESERVE - _on_device(memory)
    of_reduction = _on_device(memory, reduces=True)

    gaps = GAPS if config.parallelism.activation_checkpointing else 0

    def fits(rows: int) -> bool:
        return _overlapping(activations.of_training(Shape(rows, *longest)) * (1 + gaps), of_reduction) <= room

    most = _largest(fits, device_batch)
    micro = config.device_train_microbatch_size
    rows = _halved(device_batch, most) if isinstance(micro, str) else min(micro, device_batch)
    evaluation = Shape(config.device_eval_batch_size, *longest)
    return Estimate(
        memory,
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


def _on_device(items: Sequence[MemoryItem], reduces: bool = False) -> int:
    return sum(item.bytes for item in items if item.where == DEVICE and item.reduces == reduces)


def _overlapping(activations: float, of_reduction: int) -> int:
    """Bytes of activations and of what reduces gradients, at the moment at which they are most."""
    smaller, larger = sorted((activations, of_reduction))
    return int(larger + OVERLAP * smaller)


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, 0 if 1 does not. Every number below one that fits has to fit too."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _halved(rows: int, most: int) -> int:
    """The microbatch size that "auto" arrives at: it starts with a rank's whole batch and halves it until it fits."""
    while rows > max(1, most):
        rows //= 2
    return rows


def _dtypes(config: Config, strategy: type[Strategy], precision: str) -> Dtypes:
    if precision != "fp32" and not strategy.casts_model(config):
        return AUTOCAST
    return FLOAT32 if strategy.weight_bytes(config, precision) == FLOAT else ALL_HALF


def _reference(config: Config, strategy: type[Strategy], precision: str, sizes: ModelSizes, ranks: int) -> MemoryItem:
    """The reference model of the preference loss. It computes in the policy's dtypes; FSDP's shards are float32."""
    parallelism = config.parallelism
    number, parameters = strategy.weight_bytes(config, precision), sizes.parameters
    if parallelism.shard_reference:
        number = number if strategy.casts_model(config) else FLOAT
        parameters = strategy.largest_shard(sizes, ranks)
    return MemoryItem("reference", number * parameters)
