"""Where a step spends its time: the ten slowest operations of stage 2 at the default width, including the optimizer.

Measured by torch.profiler on the default model with fewer layers and rows, so that a CPU is enough. On a GPU it is the
GPU's time.

    python benchmarks/hot_spots.py [--rows 8] [--history 256] [--layers 2] [--steps 3]
"""

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import markdown, write_section  # noqa: E402
from benchmarks.random_rows import random_row  # noqa: E402
from ugt_composer.config.load import load_config  # noqa: E402
from ugt_composer.data.collate import collate  # noqa: E402
from ugt_composer.losses.unified import UnifiedLoss  # noqa: E402
from ugt_composer.model.build import build_model  # noqa: E402
from ugt_composer.training.optim import create_optimizer  # noqa: E402

TARGET = 8
LARGEST = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--history", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2, help="layers in each of encoder and decoder")
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(ROOT / "yamls/stage2.yaml")
    sizes = replace(config.model, n_encoder_layers=arguments.layers, n_decoder_layers=arguments.layers)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(sizes, config.seed).to(device)
    loss = UnifiedLoss(**config.loss.arguments, repr_dim=sizes.d_model).to(device)
    optimizer = create_optimizer(model, **asdict(config.optimizer))
    rows = [random_row(number, sizes.codebook_sizes, arguments.history, TARGET) for number in range(arguments.rows)]
    collated = collate(rows)
    batch = {name: collated[name].to(device) for name in collated}

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(model(batch), batch)["total_loss"].backward()
        optimizer.step()

    step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        for _ in range(arguments.steps):
            step()
    times = {
        event.key: (event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total, event.count)
        for event in profiler.key_averages()
    }
    total = sum(time for time, _ in times.values())
    largest = sorted(times.items(), key=lambda item: -item[1][0])[:LARGEST]
    table_rows = [
        [name, f"{time / total:.1%}", f"{time / 1000 / arguments.steps:.1f}", f"{count // arguments.steps}"]
        for name, (time, count) in largest
    ]
    heads = ("operation", "share of the step", "ms per step", "calls per step")
    summary = (
        f"Stage 2, width {sizes.d_model}, {arguments.layers} + {arguments.layers} layers, {arguments.rows} rows of "
        f"{arguments.history} history and {TARGET} target tokens, on one {'GPU' if device.type == 'cuda' else 'core'}: "
        f"{total / 1000 / arguments.steps:.0f} ms per step."
    )
    table = Table(*heads)
    for row in table_rows:
        table.add_row(*row)
    Console().print(summary)
    Console().print(table)
    write_section(__file__, [summary, "", *markdown(heads, table_rows)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
