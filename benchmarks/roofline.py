"""What an H100 allows for each goal of `gpu.py`: operations over their ceiling, bytes over the memory bandwidth.

Needs no GPU: PyTorch counts operations and bytes on tensors without numbers, of the shipped stages with the kernels,
and of a T5 model with as many active parameters. The section of RESULTS.md that it writes says how. Beside each limit
is what an earlier run of `gpu.py` measured, from RESULTS-gpu.md.

    python benchmarks/roofline.py
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5ForConditionalGeneration

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import markdown, write_section  # noqa: E402
from benchmarks.full_size import MEMORY_BYTES, rows_a_second  # noqa: E402
from benchmarks.on_gpu.goals import ALL, LOADED, Goal, bound, figure, read_tables  # noqa: E402
from benchmarks.on_gpu.steps import HISTORY, TARGET, forward_flops, model_flops, stage_config  # noqa: E402
from benchmarks.on_gpu.t5 import BEAMS, our_active_parameters, t5_active_parameters, with_more_layers  # noqa: E402
from benchmarks.random_rows import random_row  # noqa: E402
from ugt_composer import kernels  # noqa: E402
from ugt_composer.config.schema import Config  # noqa: E402
from ugt_composer.data.collate import collate  # noqa: E402
from ugt_composer.losses.unified import UnifiedLoss  # noqa: E402
from ugt_composer.model.build import freeze_untrained  # noqa: E402
from ugt_composer.model.dropout import Dropout  # noqa: E402
from ugt_composer.model.reference import Reference  # noqa: E402
from ugt_composer.model.ugt import UGT  # noqa: E402
from ugt_composer.training.composer_model import ComposerUGT  # noqa: E402
from ugt_composer.vocabulary import LEVELS  # noqa: E402

CEILING = 790e12  # bf16 operations per second; an H200 reached 787 to 796
PROCESSORS, TANH_PER_CLOCK, CLOCK = 132, 16, 1.83e9  # the clock of the data sheet's 989 TFLOP/s
TANH = PROCESSORS * TANH_PER_CLOCK * CLOCK  # per second
HALF = 2  # bytes of a bfloat16
TOKENS, WIDTH, HEADS = 64 * 512, 512, 16  # of the measured attention
PIECES_PASSES = 14  # times that the path without kernels reads or writes each weight of attention
T5_ROWS = 64  # of a microbatch
RESULTS_GPU = Path(__file__).with_name("RESULTS-gpu.md")
# Sections of RESULTS-gpu.md whose runs before a date show what the code no longer does, and what changed.
CHANGED = {
    "attention": ("2026-11-28", "the kernel of the queries' gradients divides by n elsewhere"),
    "stages": ("2026-11-28", "only valid tokens in the encoder, no whole logits in the heads"),
}
# In the names of operations whose inputs and outputs have to be in memory even if all others are fused.
IN_MEMORY = ("mm", "embedding", "attention", "norm", "index_select")
TEXT = (
    "Not measured, but what an H100's data sheet allows (989 TFLOP/s, 3.35 TB/s), except for the ceiling of products: "
    f"{CEILING / 1e12:.0f} TFLOP/s, which a bf16 product of 8192³ reached on an H200, whose processors are the same. "
    "*Limit*: the longest of three times. Computed operations at the ceiling; bytes at the memory bandwidth, with all "
    "but products, attention, norms and row moves fused into these; a tanh for each weight of attention in the forward "
    f"and two in the backward pass, of which a processor computes {TANH_PER_CLOCK} per clock ({TANH / 1e12:.2f} · 10¹² "
    f"per second at {CLOCK / 1e9:g} GHz). *Eager*: computed operations, then the bytes of every operation, as if "
    "nothing were fused or overlapped. T5 is compared by operations alone, both at the ceiling. FlopCounterMode counts "
    "operations; bytes are those of inputs and outputs, at shipped sizes and microbatches, with the kernels, histories "
    f"of {HISTORY} and targets of {TARGET} tokens."
)


class Work(NamedTuple):
    """Of one row.

    Attributes:
        model: operations that the model defines, in forward and backward pass.
        computed: operations that are executed, with recomputation and empty slots of experts.
        by_itself, fused: bytes, see above.
    """

    model: float
    computed: float
    by_itself: float
    fused: float

    @property
    def seconds(self) -> float:
        """The limit."""
        return max(self.computed / CEILING, self.fused / MEMORY_BYTES)

    @property
    def limited_by(self) -> str:
        return "products" if self.computed / CEILING > self.fused / MEMORY_BYTES else "memory"

    @property
    def unfused_seconds(self) -> float:
        """If nothing is fused and nothing overlaps."""
        return self.computed / CEILING + self.by_itself / MEMORY_BYTES


class Bytes(TorchDispatchMode):
    """The bytes that operations except views read and write: of all, and of those that remain if all others are
    fused."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.needed = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.__name__
        if (
            function.namespace in ("aten", "ugt")
            and not function.is_view
            and not {"empty", "view"} & set(name.replace(".", "_").split("_"))
        ):
            tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, Tensor)]
            size = sum(one.numel() * one.element_size() for one in tensors)
            self.all += size
            if function.namespace == "ugt" or any(word in name for word in IN_MEMORY):
                self.needed += size
        return result


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Layers use the kernels, which compute nothing for tensors without numbers, and PyTorch's dropout."""

    def dropout(layer: Dropout, x: Tensor) -> Tensor:
        return torch.native_dropout(x, layer.p, True)[0] if layer.training and layer.p > 0 else x

    with (
        mock.patch.object(kernels, "are_usable", return_value=True),
        mock.patch.object(Dropout, "forward", dropout),
        torch.autocast("cpu", torch.bfloat16),
    ):
        yield


def cpu_attention_gradients(grad: torch.Size, q: torch.Size, k: torch.Size, *_: Any, **__: Any) -> int:
    """Five products, for FlopCounterMode, which has no formula for attention on a CPU."""
    return 5 * 2 * q[0] * q[1] * q[2] * k[2] * q[3]


def cpu_attention(q: torch.Size, k: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * 2 * q[0] * q[1] * q[2] * k[2] * q[3]


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: cpu_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: cpu_attention_gradients,
}


def counted(run: Callable[[], Tensor]) -> tuple[int, Bytes]:
    """Operations and bytes of a loss and its gradients."""
    torch.clear_autocast_cache()  # has weights without gradients from an earlier count
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as flops, Bytes() as moved:
        run().backward()
    return flops.get_total_flops(), moved


def stage_work(stage: int) -> Work:
    """Of a row of a shipped stage and microbatch."""
    config = stage_config(stage, small=False)
    rows, rejected = int(config.device_train_microbatch_size), int(config.loss.lambda_preference > 0)
    batch = collate([random_row(n, config.model.codebook_sizes, HISTORY, TARGET, rejected) for n in range(rows)])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, as_on_a_gpu():
        model = composer_model(config)
        fakes = {name: mode.from_tensor(tensor) for name, tensor in batch.items()}
        with torch.no_grad():
            of_model = model_flops(model, fakes, [HISTORY] * rows)
        checkpointing = config.parallelism.activation_checkpointing
        model.model.encoder.activation_checkpointing = model.model.decoder.activation_checkpointing = checkpointing
        computed, moved = counted(lambda: model.loss(model(fakes), fakes)["total"])
    return Work(of_model / rows, computed / rows, moved.all / rows, moved.needed / rows)


def composer_model(config: Config) -> ComposerUGT:
    model = UGT(**asdict(config.model))
    loss = UnifiedLoss(**config.loss.arguments, repr_dim=config.model.d_model, seed=config.seed)
    reference = Reference(UGT(**asdict(config.model))) if config.loss.needs_reference_model else None
    freeze_untrained(model, config.loss)
    evaluation = config.evaluation
    return ComposerUGT(
        model, loss, reference, None, evaluation.k_values, evaluation.beam_width, False, half_on_cpu=True
    ).train()


def t5_work(config: Config) -> tuple[Work, int, int]:
    """Of a row of the same items, of a T5 with as many active parameters; and these of ours and of T5's."""
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16):
        ours = our_active_parameters(UGT(**asdict(config.model)))
        settings = with_more_layers(config, ours)
        model = T5ForConditionalGeneration(settings).train()
        ids, labels = (torch.zeros(T5_ROWS, LEVELS * n, dtype=torch.long) for n in (HISTORY, TARGET))

        def run() -> Tensor:
            return model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, use_cache=False).loss

        with torch.no_grad():
            of_model = 3 * forward_flops(run)
        computed, moved = counted(run)
    work = Work(of_model / T5_ROWS, computed / T5_ROWS, moved.all / T5_ROWS, moved.needed / T5_ROWS)
    return work, ours, t5_active_parameters(settings)


def generation_flops(config: Config) -> tuple[float, float]:
    """Operations of the best items of one user: ours and T5's, whose `generate` repeats the history for each beam."""
    batch = collate([random_row(0, config.model.codebook_sizes, HISTORY, TARGET)])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad(), as_on_a_gpu():
        model = UGT(**asdict(config.model)).eval()
        fakes = {name: mode.from_tensor(tensor) for name, tensor in batch.items()}

        def ours() -> None:
            hidden = model.start(fakes)
            for level, width in enumerate((1, BEAMS, BEAMS)):
                prefix = torch.zeros(1, width, level, dtype=torch.long)
                model.level_logits(level, hidden[:, None].expand(-1, width, -1), prefix)

        t5 = T5ForConditionalGeneration(with_more_layers(config, our_active_parameters(model))).eval()

        def theirs() -> None:
            states = t5.encoder(torch.zeros(1, LEVELS * HISTORY, dtype=torch.long))[0]
            tokens = torch.zeros(BEAMS, LEVELS, dtype=torch.long)
            t5(encoder_outputs=(states.expand(BEAMS, -1, -1),), decoder_input_ids=tokens, use_cache=False)

        return forward_flops(ours, [HISTORY]), forward_flops(theirs)


@dataclass(frozen=True)
class Attention:
    """Seconds of forward and backward pass over TOKENS tokens in rows of one length, by what limits them."""

    products: float
    memory: float
    tanh: float
    pieces: float

    @classmethod
    def of(cls, length: int, heads: int = HEADS) -> "Attention":
        per_weight = TOKENS * length * heads
        products = 18 * TOKENS * length * WIDTH / CEILING  # nine, of which the model needs six
        # Forward: reads q, k, v and writes the output; both kernels of the backward pass read these and a gradient.
        memory = 15 * TOKENS * WIDTH * HALF / MEMORY_BYTES
        pieces = max(PIECES_PASSES * per_weight * HALF / MEMORY_BYTES, products * 14 / 18)
        return cls(products, memory, 3 * per_weight / TANH, pieces)

    @property
    def seconds(self) -> float:
        return max(self.products, self.memory, self.tanh)

    @property
    def limited_by(self) -> str:
        return max(("products", self.products), ("memory", self.memory), ("tanh", self.tanh), key=lambda one: one[1])[0]


def attention_of_ceiling(length: int, heads: int = HEADS) -> float:
    return 12 * TOKENS * length * WIDTH / CEILING / Attention.of(length, heads).seconds


class Limit(NamedTuple):
    """Of a goal's figure; `by` names what sets it."""

    value: float
    by: str
    eager: float | None = None


def limits(
    work: Mapping[int, Work], rival: Work, generation: tuple[float, float], loaded: float
) -> dict[tuple[str, str], Limit]:
    """Limits by a goal's section and case.

    Args:
        work: of a row, by stage.
        rival: T5's work of a row.
        generation: operations of one user's best items, ours and T5's.
        loaded: rows per second of all loader processes.
    """
    short, long = (Attention.of(length) for length in (512, 4096))
    known = {
        ("attention", "length 512, 32 dimensions"): Limit(short.pieces / short.seconds, short.limited_by),
        ("attention", "length 4,096, 32 dimensions"): Limit(100 * attention_of_ceiling(4096), long.limited_by),
        ("t5", "as many active parameters"): Limit(rival.model / work[1].model, "operations"),
        ("t5", f"{BEAMS} beams, only existing items"): Limit(generation[1] / generation[0], "operations"),
        ("data", LOADED[0]): Limit(100 * max(0.0, 1 - loaded * work[2].seconds), "loader"),
    }
    for stage, of_row in work.items():
        full = 100 * of_row.model / CEILING
        known["stages", f"stage {stage}, history {HISTORY}"] = Limit(
            full / of_row.seconds, of_row.limited_by, full / of_row.unfused_seconds
        )
    return known


def goal_cells(goal: Goal, limit: Limit | None, measured: float | None, date: str) -> list[str]:
    value = by = eager = ""
    if limit is not None:
        value, by = figure(limit.value, goal.unit), limit.by
        eager = "" if limit.eager is None else figure(limit.eager, goal.unit)
    seen = "unmeasured"
    if measured is not None:
        changed, what = CHANGED.get(goal.section, ("", ""))
        seen = f"{figure(measured, goal.unit)} on {date}{f'; unmeasured since: {what}' if date < changed else ''}"
    return [goal.name, goal.what, bound(goal), value, by, eager, seen]


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    config = stage_config(2, small=False)
    work = {stage: stage_work(stage) for stage in (1, 2, 3)}
    rival, *active = t5_work(config)
    generation = generation_flops(config)
    rate, workers = rows_a_second(config, HISTORY, TARGET), config.data.train.num_workers
    known, tables = limits(work, rival, generation, workers * rate), read_tables(RESULTS_GPU)
    heads = ("what", "case", "goal", "limit", "by", "eager", "reached on an H200")
    goals = [
        goal_cells(goal, known.get((goal.section, goal.what)), goal.read(tables), tables.dates.get(goal.section, ""))
        for goal in ALL
    ]
    work_heads = ("a row of", "model GFLOP", "computed GFLOP", "MB, eager", "MB, fused", "µs, limit", "µs, eager")
    rows = [work_cells(f"stage {stage}", of_row) for stage, of_row in work.items()]
    rows.append(work_cells("T5, the same items, as many active parameters", rival))
    notes = [
        f"- Active parameters per token: ours {active[0] / 1e6:.0f} million, T5's {active[1] / 1e6:.0f} million.",
        f"- The best items of a user: ours {generation[0] / 1e9:,.0f} GFLOP, T5's {generation[1] / 1e9:,.0f}, whose "
        "`generate` repeats the encoded history for each beam.",
        f"- At its limit stage 2 trains {1 / work[2].seconds:,.0f} rows/s. {workers} loader processes read "
        f"{workers} × {rate:,.0f} (measured here, one core).",
        f"- Attention of {WIDTH // HEADS} dimensions a head is limited by tanh, that of 64 by products, to "
        f"{attention_of_ceiling(4096, HEADS // 2):.0%} of the ceiling: the kernels compute nine, of which the model "
        "needs six.",
    ]
    table = Table(*heads)
    for row in goals:
        table.add_row(*row)
    Console().print(table)
    lines = [TEXT, "", *markdown(heads, goals), "", *markdown(work_heads, rows), "", *notes]
    write_section(__file__, lines)
    return 0


def work_cells(what: str, of_row: Work) -> list[str]:
    operations = [f"{value / 1e9:.1f}" for value in (of_row.model, of_row.computed)]
    moved = [f"{value / 1e6:,.0f}" for value in (of_row.by_itself, of_row.fused)]
    return [what, *operations, *moved, *(f"{1e6 * value:.0f}" for value in (of_row.seconds, of_row.unfused_seconds))]


if __name__ == "__main__":
    sys.exit(main())
