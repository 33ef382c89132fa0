"""A step of a shipped stage on synthetic batches: model, loss, strategy; and functions that measure it.

B rows, S history tokens, T target tokens, N rejected items.
"""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from composer.utils import dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import ugt_composer.kernels.pointwise_attention  # noqa: F401  its operator is counted
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.config.load import load_config
from ugt_composer.config.schema import Config
from ugt_composer.losses.unified import UnifiedLoss
from ugt_composer.model.build import freeze_untrained
from ugt_composer.model.moe import MoEFeedForward
from ugt_composer.model.reference import Reference
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.build import build_strategy
from ugt_composer.parallelism.precision import precision_context, resolve_precision
from ugt_composer.parallelism.strategy import Strategy
from ugt_composer.training import memory_estimate
from ugt_composer.training.compiled_layers import compile_layers
from ugt_composer.training.composer_model import ComposerUGT
from ugt_composer.training.microbatch import split_batch
from ugt_composer.training.optim import create_optimizer
from ugt_composer.vocabulary import BOS, ITEM, NUM_SPECIAL_IDS, PAD

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
HISTORY, TARGET = 512, 8  # tokens; the target is BOS and seven items
SMALL_HISTORY = 16
SMALL = [
    "model.d_model=32",
    "model.n_heads=2",
    "model.n_encoder_layers=2",
    "model.n_decoder_layers=2",
    "model.d_ff=64",
    "model.num_experts=4",
    "model.top_k_experts=2",
    "model.codebook_sizes=[64,64,64]",
    "global_train_batch_size=32",
    "device_train_microbatch_size=8",
]
MICROBATCHES = 2  # of a measured step


class Timing(NamedTuple):
    first: float  # seconds of the first call, including compilation
    ms: float  # median of the later ones


class Peak(NamedTuple):
    allocated: int
    reserved: int


@dataclass
class Stage:
    """A stage that is ready to run steps."""

    config: Config
    model: UGT
    composer_model: ComposerUGT
    strategy: Strategy
    precision: str  # of the autocast around the model; DeepSpeed's engine casts by itself

    def step(self, batch: dict[str, Any]) -> None:
        """What the Trainer does with a batch, without loading and logging."""
        rows = len(batch["row_ids"])
        pieces = split_batch(batch, self.config.device_train_microbatch_size)
        for number, piece in enumerate(pieces, start=1):
            self.strategy.before_microbatch(is_last=number == len(pieces))
            with precision_context(self.precision):
                outputs = self.strategy.module(piece)
                loss = self.composer_model.loss(outputs, piece)["total"]
            del outputs
            loss = loss * (len(piece["row_ids"]) / rows)
            if self.strategy.scaler is not None:
                self.strategy.scaler.scale(loss).backward()
            else:
                loss.backward()
            del loss
        self.strategy.clip_gradients(self.config.max_grad_norm)
        self.strategy.optimizer.step()
        self.strategy.optimizer.zero_grad(set_to_none=True)
        self.composer_model.step_metrics = {}

    def set_checkpointing(self, enabled: bool) -> None:
        self.model.encoder.activation_checkpointing = self.model.decoder.activation_checkpointing = enabled

    def flops(self, batch: dict[str, Any]) -> float:
        """Model operations of a step: those of valid tokens, three times for forward and backward, and once for a
        frozen reference. Nothing is compiled for it."""
        total, size = 0.0, int(self.config.device_train_microbatch_size)
        for number, piece in enumerate(split_batch(batch, size)):
            lengths = batch["encoder_lengths"][number * size : (number + 1) * size]
            with (
                torch.no_grad(),
                torch.compiler.set_stance("force_eager"),
                precision_context(self.precision),
            ):
                total += model_flops(self.composer_model, piece, lengths)
        self.composer_model.step_metrics = {}
        return total


def model_flops(composer_model: ComposerUGT, piece: dict[str, Any], lengths: Sequence[int]) -> int:
    """Model operations of a microbatch's forward and backward pass, given the lengths of its histories."""
    reference = composer_model.reference
    frozen = 0
    with every_token_in_its_slot(composer_model, *([] if reference is None else [reference])):
        forward = forward_flops(lambda: composer_model.loss(composer_model(piece), piece), lengths)
        if reference is not None:
            frozen = forward_flops(lambda: reference(piece, composer_model.trie), lengths)
    return 3 * (forward - frozen) + frozen


def stage_config(stage: int, small: bool, *overrides: str) -> Config:
    return load_config(ROOT / f"yamls/stage{stage}.yaml", overrides=[*(SMALL if small else []), *overrides])


def build_stage(config: Config) -> Stage:
    """Builds a stage on the GPU with random weights; ignores `init_from` and the reference's weights."""
    dist.initialize_dist("gpu")
    torch.manual_seed(config.seed)
    with torch.device("cuda"):
        model = UGT(**asdict(config.model))
        loss = UnifiedLoss(**config.loss.arguments, repr_dim=config.model.d_model, seed=config.seed)
        reference = Reference(UGT(**asdict(config.model))) if config.loss.needs_reference_model else None
    freeze_untrained(model, config.loss)
    trie = ItemTrie.from_triples(random_items(config, 1000)).to("cuda")
    composer_model = ComposerUGT(
        model,
        loss,
        None,
        trie,
        config.evaluation.k_values,
        config.evaluation.beam_width,
        config.evaluation.exclude_seen,
    )
    precision = resolve_precision(config.precision)
    strategy = build_strategy(
        config, composer_model, model, lambda placed: create_optimizer(placed, **asdict(config.optimizer)), precision
    )
    if reference is not None:
        composer_model.set_reference(strategy.place_reference(reference))
    strategy.module.train()
    autocast = "fp32" if config.parallelism.strategy == "deepspeed" else precision
    stage = Stage(config, model, composer_model, strategy, autocast)
    stage.set_checkpointing(config.parallelism.activation_checkpointing)
    if config.compile:
        compile_layers(model)
    return stage


def random_items(config: Config, count: int) -> np.ndarray:
    """Distinct semantic IDs, (count, 3) int64, sorted."""
    sizes = np.array(config.model.codebook_sizes) - NUM_SPECIAL_IDS
    drawn = np.unique(np.random.default_rng(0).integers(sizes.prod(), size=count + count // 8))
    codes = np.sort(np.random.default_rng(1).permutation(drawn)[:count])
    return np.stack(np.unravel_index(codes, sizes), axis=1) + NUM_SPECIAL_IDS


def make_batch(
    config: Config, history: int, target: int = TARGET, rows: int | None = None, even_lengths: bool = False
) -> dict[str, Any]:
    """A global batch of random items, on the device.

    Args:
        history, target: S and T.
        rows: B; None: the config's global batch size.
        even_lengths: history lengths are evenly distributed over 1 to S − 1 tokens, longest first as with
            `data.train.group_by_length`, so that each microbatch is padded only to its longest row. Otherwise all
            histories have S tokens.
    """
    rows = rows or config.global_train_batch_size
    rejected = 1 if config.loss.lambda_preference > 0 else 0
    generator = torch.Generator("cuda").manual_seed(0)

    def ids(width: int) -> Tensor:
        levels = [
            torch.randint(NUM_SPECIAL_IDS, size, (rows, width), generator=generator, device="cuda")
            for size in config.model.codebook_sizes
        ]
        return torch.stack(levels, dim=-1)

    def inputs(side: str, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        positions = torch.arange(tokens.shape[1], device="cuda").expand(rows, -1)
        return {
            f"{side}_ids": tokens.masked_fill(~mask[..., None], PAD),
            f"{side}_positions": positions * mask,
            f"{side}_token_types": torch.full_like(positions, ITEM) * mask,
            f"{side}_mask": mask,
            f"{side}_times": torch.full_like(positions, -1),
        }

    lengths = torch.full((rows,), history)
    if even_lengths:
        lengths = torch.linspace(history - 1, 1, rows).round().long()
    labels = ids(target)
    decoder_inputs = torch.cat((torch.full_like(labels[:, :1], BOS), labels[:, :-1]), dim=1)
    mask_on_cpu = torch.arange(int(lengths.max())) < lengths[:, None]
    mask = mask_on_cpu.cuda()
    return {
        **inputs("encoder", ids(mask.shape[1]), mask),
        "encoder_actions": torch.zeros_like(mask, dtype=torch.long),
        **inputs("decoder", decoder_inputs, torch.ones_like(decoder_inputs[..., 0], dtype=torch.bool)),
        "labels": labels,
        "rejected_ids": ids(rejected),
        "rejected_mask": torch.ones(rows, rejected, dtype=torch.bool, device="cuda"),
        "preference_score": torch.ones(rows, device="cuda"),
        "row_ids": torch.arange(rows, device="cuda"),
        "row_mask": torch.ones(rows, dtype=torch.bool, device="cuda"),
        "encoder_tokens": mask_on_cpu.flatten().nonzero().squeeze(1).cuda(),
        "encoder_lengths": lengths.tolist(),
        "decoder_lengths": [target] * rows,
        "label_tokens": torch.arange(rows * target, device="cuda"),
        "label_counts": [target] * rows,
    }


def timed(run: Callable[[], object], seconds: float = 3.0, most: int = 30, warm_ups: int = 2) -> Timing:
    """Times consecutive calls after `warm_ups` calls: as many as fit into about `seconds`, but 3 to `most`."""
    warm = []
    for _ in range(warm_ups):
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        warm.append(time.perf_counter() - started)
    calls = max(3, min(most, int(seconds / warm[-1])))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return Timing(warm[0], statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events)))


def in_turns(ours: Callable[[], object], rival: Callable[[], object], repetitions: int) -> tuple[float, float, float]:
    """Runs both alternately, after two warm-up runs of each.

    Returns: the median of the rival's time divided by ours, our median time and the rival's in ms.
    """
    pairs = []
    for _ in range(2):
        ours(), rival()
    for _ in range(repetitions):
        a, b, c = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        a.record()
        ours()
        b.record()
        rival()
        c.record()
        torch.cuda.synchronize()
        pairs.append((a.elapsed_time(b), b.elapsed_time(c)))
    ratio = statistics.median(rival_ms / our_ms if our_ms > 0 else float("nan") for our_ms, rival_ms in pairs)
    return ratio, *(statistics.median(times) for times in zip(*pairs, strict=True))


@contextmanager
def peak_memory() -> Iterator[Callable[[], Peak]]:
    """Yields a function that returns the peak memory since the `with` began, including memory allocated before."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield lambda: Peak(torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())


def runs_within_memory(run: Callable[[], object]) -> bool:
    """Whether `run` ends without an out-of-memory error. After such an error its memory is freed."""
    fits = True
    try:
        run()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        fits = False
    if not fits:
        gc.collect()
        torch.cuda.empty_cache()
    return fits


def forward_flops(run: Callable[[], object], lengths: Sequence[int] | None = None) -> int:
    """Operations of matrix products and attention, counted by PyTorch's FlopCounterMode.

    Args:
        lengths: of the histories, padded to the longest: attention over them counts for valid tokens only. None: all
            tokens count.
    """
    formulas = None if lengths is None else valid_token_formulas(lengths)
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        run()
    return counter.get_total_flops()


def valid_token_formulas(lengths: Sequence[int]) -> dict[Any, Callable[..., int]]:
    """Formulas for FlopCounterMode of forward attention over B histories of these lengths n_b, padded to S.

    The encoder's counts Σ n_b², where the operators' own formulas say B·S² or Σ n_b·S; cross-attention of T target
    tokens counts T·Σ n_b, where PyTorch's formula says B·T·S.
    """
    rows, longest, valid = len(lengths), max(lengths), sum(lengths)
    squares = sum(length * length for length in lengths)

    def of_kernel(qkv: torch.Size, *_: Any, **__: Any) -> int:  # (N, 3·D)
        return 4 * qkv[1] // 3 * squares

    def of_pieces(q: torch.Size, *_: Any, **__: Any) -> int:  # (B·H, S, d)
        return 4 * q[0] // rows * q[2] * squares

    def of_softmax(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:  # (B, H, T or S, d)
        operations = 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])
        return operations * valid // (rows * longest) if q[2] != k[2] == longest else operations

    aten = torch.ops.aten
    softmax = (
        aten._scaled_dot_product_cudnn_attention,
        aten._scaled_dot_product_efficient_attention,
        aten._scaled_dot_product_flash_attention,
        aten._scaled_dot_product_flash_attention_for_cpu,
    )
    return {
        torch.ops.ugt.pointwise_attention: of_kernel,
        torch.ops.ugt.pointwise_product: of_pieces,
        **dict.fromkeys(softmax, of_softmax),
    }


@contextmanager
def every_token_in_its_slot(*models: torch.nn.Module) -> Iterator[None]:
    """Sets capacity factors to 1 while operations are counted, because empty slots are not work of the model."""
    layers = [module for model in models for module in model.modules() if isinstance(module, MoEFeedForward)]
    factors = [layer.capacity_factor for layer in layers]
    for layer in layers:
        layer.capacity_factor = 1.0
    try:
        yield
    finally:
        for layer, factor in zip(layers, factors, strict=True):
            layer.capacity_factor = factor


def peak_flops_per_second(size: int) -> float:
    """What one bf16 matrix product of size³ reaches on this card; 0 if the measured time is 0."""
    a, b = torch.randn(2, size, size, device="cuda", dtype=torch.bfloat16).unbind()
    return per_second(2 * size**3, timed(lambda: a @ b, seconds=1.0).ms)


def estimate(config: Config) -> str:
    """The peak memory of a step, as `train.py --dry-run` estimates it for one rank and rows of full length, in GiB."""
    rejected = 1 if config.loss.lambda_preference > 0 else 0
    return gib(memory_estimate.estimate(config, 1, (HISTORY, TARGET, rejected)).peak)


def per_second(amount: float, ms: float) -> float:
    return 1000 * amount / ms if ms > 0 else 0.0


def gib(size: float) -> str:
    return f"{size / GIB:.1f}"
