"""Estimates a full-size run on 8 × H100 from what can be counted and measured without one.

PyTorch counts the operations of one microbatch of the default model, forward and backward, without computing them;
bytes are those of every operation's inputs and outputs, without any fusion. The loader's rate and the cost of an
epoch's order are measured here. The accelerator's figures are the vendor's (NVIDIA H100 SXM data sheet: 989 TFLOP/s
dense bf16, 3.35 TB/s of memory, 900 GB/s of NVLink in both directions). None of this was verified on a GPU.

    python benchmarks/full_size.py [--history 512] [--target 8] [--rows 1000000000]
"""

import argparse
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import markdown, write_section  # noqa: E402
from benchmarks.order import index_of, measure  # noqa: E402
from benchmarks.pipeline import dataset_of  # noqa: E402
from benchmarks.random_rows import random_row  # noqa: E402
from ugt_composer.config.load import load_config  # noqa: E402
from ugt_composer.config.schema import Config  # noqa: E402
from ugt_composer.conversion.shards import ShardWriter, write_index  # noqa: E402
from ugt_composer.data.collate import PackedRow, collate  # noqa: E402
from ugt_composer.losses.unified import UnifiedLoss  # noqa: E402
from ugt_composer.model.ugt import UGT  # noqa: E402

GPUS = 8
SHARDS = 10_000  # that the rows are in
FLOPS, MEMORY_BYTES, LINK_BYTES = 989e12, 3.35e12, 450e9  # per second; of the link in one direction
REACHED = 0.6  # fraction of the peak that large products reach; assumed
STRATEGIES = {
    # Bytes per parameter that a rank sends in a step of M microbatches, without the factor (n - 1) / n for n ranks.
    "ddp": lambda microbatches: 2 * 4,
    "deepspeed, zero_stage 1": lambda microbatches: 2 * 4 + 2,  # gradients once per batch, in float32
    "deepspeed, zero_stage 2": lambda microbatches: 2 * 2 * microbatches + 2,  # all-reduced, although sharded
    # Of fewer than 10⁹ parameters, none is freed between forward and backward pass.
    "deepspeed, zero_stage 3": lambda microbatches: (2 + 2) * microbatches,
    "fsdp": lambda microbatches: (2 + 2) * microbatches + 4,  # gradients once per batch
}


class BytesMoved(TorchDispatchMode):
    """The bytes that all operations except views read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.namespace == "aten" and not function.is_view and "view" not in function.__name__:
            tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, torch.Tensor)]
            self.total += sum(one.numel() * one.element_size() for one in tensors)
        return result


def count(config: Config, rows: int, history: int, target: int) -> tuple[float, float, int]:
    """Operations and bytes of one bf16 microbatch, counted without computing it, and the number of parameters."""
    batch = collate([random_row(number, config.model.codebook_sizes, history, target) for number in range(rows)])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model = UGT(**asdict(config.model)).bfloat16()
        loss = UnifiedLoss(**config.loss.arguments, repr_dim=config.model.d_model)
        fakes = {name: mode.from_tensor(tensor) for name, tensor in batch.items()}
        with FlopCounterMode(display=False) as flops, BytesMoved() as moved:
            loss(model(fakes), fakes)["total_loss"].backward()
    return flops.get_total_flops(), moved.total, sum(p.numel() for p in model.parameters())


def rows_a_second(config: Config, history: int, target: int, rows: int = 20_000, batch_size: int = 256) -> float:
    """Rows per second that one process on one core turns from shards into batches."""
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder), None, ["xxh64"], 1 << 26)
        few = [random_row(number, config.model.codebook_sizes, history, target).data for number in range(500)]
        for number in range(rows):
            writer.add_row(few[number % len(few)])
        writer.close()
        write_index(Path(folder), writer.shards)
        dataset = dataset_of(Path(folder))
        for _ in dataset:  # verifies the shards before the measurement
            pass
        started = time.perf_counter()
        batch: list[PackedRow] = []
        for row in dataset:
            batch.append(row)
            if len(batch) == batch_size:
                collate(batch)
                batch = []
        return rows / (time.perf_counter() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=int, default=512, help="tokens")
    parser.add_argument("--target", type=int, default=8, help="tokens")
    parser.add_argument("--rows", type=int, default=10**9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(ROOT / "yamls/stage2.yaml")
    microbatch, batch = int(config.device_train_microbatch_size), config.global_train_batch_size
    flops, moved, parameters = count(config, microbatch, arguments.history, arguments.target)
    microbatches = batch // microbatch
    compute, memory = (
        microbatches * flops / (REACHED * FLOPS),
        microbatches * moved / MEMORY_BYTES,
    )
    rate = rows_a_second(config, arguments.history, arguments.target)
    lines = [
        f"Stage 2 at its default sizes, {parameters / 1e6:.0f} million parameters, {arguments.history} history and "
        f"{arguments.target} target tokens per row, {batch} rows per GPU and step in {microbatches} microbatches, on "
        f"{GPUS} × H100. None of this was verified on a GPU.",
        "",
    ]
    rows = [
        ["operations per GPU and step", f"{microbatches * flops / 1e12:.0f} TFLOP", "counted"],
        ["at the rate of large products", f"{compute:.2f} s", f"assumed: {REACHED:g} of the vendor's 989 TFLOP/s"],
        ["bytes per GPU and step without fusion", f"{microbatches * moved / 1e12:.1f} TB", "counted"],
        ["at the memory bandwidth", f"{memory:.2f} s", "the vendor's 3.35 TB/s"],
        ["a step", f"{compute:.2f} to {compute + memory:.2f} s", "from everything fused to no overlap"],
        [
            "utilisation of the peak",
            f"{microbatches * flops / FLOPS / (compute + memory):.0%} to {REACHED:.0%}",
            "expected; compile: true fuses",
        ],
        ["rows/s of a GPU", f"{batch / (compute + memory):,.0f} to {batch / compute:,.0f}", "from the above"],
        ["rows/s of a loader process", f"{rate:,.0f}", "measured here, one core"],
        [
            "loader processes needed per GPU",
            f"{max(1, -(-batch / compute // rate)):.0f}",
            f"data.train.num_workers is {config.data.train.num_workers}",
        ],
        [
            f"one epoch of {arguments.rows:,} rows",
            f"{arguments.rows / (GPUS * batch) * compute / 3600:.0f} to "
            f"{arguments.rows / (GPUS * batch) * (compute + memory) / 3600:.0f} hours",
            "from the above",
        ],
    ]
    with tempfile.TemporaryDirectory() as folder:
        figures, memory = measure(index_of(Path(folder) / "rows", SHARDS, arguments.rows // SHARDS), "start")
    rows.append(
        [
            "before the first batch of an epoch: finding where its random draws begin",
            f"{memory / 1e9:.2f} GB, {figures['seconds']:.0f} s",
            f"measured here, {SHARDS:,} shards, one core per machine; not in a resumed epoch",
        ]
    )
    for name, bytes_a_parameter in STRATEGIES.items():
        sent = bytes_a_parameter(microbatches) * parameters * (GPUS - 1) / GPUS
        rows.append(
            [
                f"sent per GPU and step, {name}",
                f"{sent / 1e9:.1f} GB, {1000 * sent / LINK_BYTES:.0f} ms",
                "the vendor's 450 GB/s; overlaps with computation",
            ]
        )
    table = Table("", "", "source")
    for row in rows:
        table.add_row(*row)
    Console().print(*lines[:1])
    Console().print(table)
    write_section(__file__, [*lines, *markdown(("", "", "source"), rows)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
