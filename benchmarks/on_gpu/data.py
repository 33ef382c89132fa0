"""Training steps with the data loader of a run: how long a step waits for its batch."""

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from composer.devices import DeviceGPU

from benchmarks.on_gpu.goals import WAITED
from benchmarks.on_gpu.report import Report
from benchmarks.on_gpu.steps import (
    HISTORY,
    SMALL_HISTORY,
    TARGET,
    Stage,
    build_stage,
    make_batch,
    per_second,
    stage_config,
    timed,
)
from benchmarks.random_rows import random_row
from ugt_composer.config.schema import Config, StreamConfig
from ugt_composer.conversion.shards import ShardWriter, write_index
from ugt_composer.data.streaming_patches import RowDataset, training_streams
from ugt_composer.training.loaders import RowLoader
from ugt_composer.training.microbatch import GlobalCounts

STAGE = 2  # the fastest, so that it needs the most rows per second
BATCHES = 24
DISTINCT_ROWS = 500
WARM_UP, LEAST = 2, 3  # steps
SECONDS = 4  # of measured steps, about


def measure(report: Report, variant: str, small: bool) -> None:
    config = stage_config(STAGE, small)
    workers = config.data.train.num_workers
    report.table(
        "",
        f"Steps of stage {STAGE} at its shipped sizes, with batches of random rows that the loader of a run reads from "
        f"MDS shards: {workers} workers, pinned memory, shuffled, grouped by length; counted and moved to the device "
        "as in a run. Waiting: wall-clock time in which the CPU waits for the next batch or moves it, while the GPU "
        "may still be busy. The loader alone: an epoch without steps.",
        (
            "what",
            "steps",
            "ms per step",
            WAITED,
            "rows/s",
            "rows/s with the batch on the device",
            "rows/s of the loader alone",
        ),
    )
    history = SMALL_HISTORY if small else HISTORY
    stage = build_stage(config)
    for what, even in ((f"stage {STAGE}, history {HISTORY}", False), (f"stage {STAGE}, history 1 to 511", True)):
        report.attempt(what, lambda: row(stage, history, even))  # noqa: B023


def row(stage: Stage, history: int, even: bool) -> Sequence[object]:
    config = stage.config
    bare_ms = timed(partial(stage.step, make_batch(config, history, even_lengths=even)), seconds=1.0).ms
    with tempfile.TemporaryDirectory() as folder:
        write_rows(config, Path(folder), history, even)
        loader = loader_of(config, Path(folder))
        rate = rows_per_second(loader)
        steps, seconds, waited = loaded_steps(stage, loader)
    rows = config.global_train_batch_size
    return (
        steps,
        f"{1000 * seconds / steps:.1f}",
        f"{waited / seconds:.1%}",
        f"{steps * rows / seconds:,.0f}",
        f"{per_second(rows, bare_ms):,.0f}",
        f"{rate:,.0f}",
    )


def write_rows(config: Config, folder: Path, history: int, even: bool) -> None:
    """Shards of BATCHES global batches of random rows."""
    lengths = np.linspace(1, history - 1, DISTINCT_ROWS).round().astype(int) if even else [history] * DISTINCT_ROWS
    rejected = int(config.loss.lambda_preference > 0)
    rows = [
        random_row(number, config.model.codebook_sizes, int(length), TARGET, rejected).data
        for number, length in enumerate(lengths)
    ]
    writer = ShardWriter(folder, None, ["xxh64"], 1 << 26)
    for number in range(BATCHES * config.global_train_batch_size):
        writer.add_row(rows[number % len(rows)])
    writer.close()
    write_index(folder, writer.shards)


def loader_of(config: Config, folder: Path) -> RowLoader:
    """As `build_train_loader` makes it, without its checks of a converted folder's manifest."""
    data, batch_size = config.data.train, config.global_train_batch_size
    dataset = RowDataset(
        streams=training_streams([StreamConfig(local=str(folder))]),
        batch_size=batch_size,
        shuffle=data.shuffle,
        shuffle_seed=config.seed,
        shuffle_block_size=data.shuffle_block_size,
        num_canonical_nodes=data.num_canonical_nodes,
    )
    return RowLoader(
        dataset,
        key="data.train",
        min_rejected=int(config.loss.lambda_preference > 0),
        longest_first=data.group_by_length,
        with_lengths=True,
        num_workers=data.num_workers,
        timeout=config.dist_timeout,
        batch_size=batch_size,
        pin_memory=True,
        persistent_workers=data.num_workers > 0,
    )


def rows_per_second(loader: RowLoader) -> float:
    """Of an epoch without steps, after its first batch."""
    batches = iter(loader)
    next(batches)
    started = time.perf_counter()
    rows = sum(len(batch["row_ids"]) for batch in batches)
    return rows / (time.perf_counter() - started)


def loaded_steps(stage: Stage, loader: RowLoader) -> tuple[int, float, float]:
    """Steps of an epoch, or of its beginning. Returns the number of those after the warm-up, their seconds, and the
    seconds of these that were spent waiting for batches."""
    counts, device = GlobalCounts(lambda: stage.config.dist_timeout), DeviceGPU()
    batches = iter(loader)
    started = waited = 0.0
    for step in range(BATCHES):
        if step == WARM_UP:
            torch.cuda.synchronize()
            started, waited = time.perf_counter(), 0.0
        if step >= WARM_UP + LEAST and time.perf_counter() - started > SECONDS:
            break
        asked = time.perf_counter()
        batch = counts.add(next(batches), device)
        waited += time.perf_counter() - asked
        stage.step(batch)
    else:
        step += 1
    torch.cuda.synchronize()
    return step - WARM_UP, time.perf_counter() - started, waited
