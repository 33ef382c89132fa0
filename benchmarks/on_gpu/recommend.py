"""Recommendation end to end: encoder, the decoder's step at BOS, beam search over a catalogue."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.on_gpu.report import Report
from benchmarks.on_gpu.steps import (
    HISTORY,
    SMALL_HISTORY,
    gib,
    make_batch,
    peak_memory,
    per_second,
    random_items,
    stage_config,
    timed,
)
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.generation.beam_search import Recommendations, beam_search
from ugt_composer.model.build import build_model
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.precision import precision_context

SIZES, SMALL_SIZES = (12_101, 1_000_000), (100, 1000)
LARGE, SMALL_LARGE = 10_000_000, 2000
BEAMS, SMALL_BEAMS = 50, 5
USERS, SMALL_USERS = 256, 8


def measure(report: Report, variant: str, small: bool) -> None:
    """variant: empty, or 10 million items, whose trie alone takes a machine's CPU up to 20 s to build."""
    beams, history = (SMALL_BEAMS, SMALL_HISTORY) if small else (BEAMS, HISTORY)
    users = SMALL_USERS if small else USERS
    report.table(
        "",
        f"The default model with random weights; histories of {HISTORY} tokens, the best {beams} of random items, "
        f"{beams} beams; items of the history are not excluded. The batch is on the device. Peak memory is "
        "in addition to weights and catalogue.",
        ("what", "ms", "users/s", "ms of these for encoder and BOS step", "peak GiB"),
    )
    sizes = SMALL_SIZES if small else SIZES
    if variant:
        sizes = (SMALL_LARGE if small else LARGE,)
    tries = {items: random_trie(report, items, small) for items in sizes}
    for softmax in ("codebook", "catalogue"):
        config = stage_config(1, small, f"model.level_softmax={softmax}")
        model = build_model(config.model, seed=0).cuda().eval()
        for items, trie in tries.items():
            for rows in (users, 1):
                batch = make_batch(config, history, rows=rows)
                for precision in ("amp_bf16", "fp32") if rows > 1 and not variant else ("amp_bf16",):
                    what = f"{items:,} items, softmax over the {softmax}, {rows} users, {precision}"
                    report.attempt(what, lambda: row(model, trie, batch, precision, beams))  # noqa: B023


def random_trie(report: Report, items: int, small: bool) -> ItemTrie:
    report.doing(f"building the trie of {items:,} items")
    triples = random_items(stage_config(1, small), items)
    started = time.perf_counter()
    trie = ItemTrie.from_triples(triples)
    report.text(f"Building the trie of {items:,} items took {time.perf_counter() - started:.1f} s on the CPU.")
    return trie.to("cuda")


def row(model: UGT, trie: ItemTrie, batch: dict[str, Any], precision: str, beams: int) -> Sequence[object]:
    recommend = recommender(model, trie, batch, precision, beams)
    before = torch.cuda.memory_allocated()
    with peak_memory() as peak:
        timing = timed(recommend, seconds=1.0)
        allocated = peak().allocated
    encode = recommender(model, None, batch, precision, beams)
    rate = per_second(len(batch["row_ids"]), timing.ms)
    encoding = timed(encode, seconds=0.5).ms
    return f"{timing.ms:.1f}", f"{rate:,.0f}", f"{encoding:.1f}", gib(allocated - before)


def recommender(
    model: UGT, trie: ItemTrie | None, batch: dict[str, Any], precision: str, beams: int
) -> Callable[[], Recommendations | None]:
    """A function that recommends for the rows of `batch`; without a trie it stops before the beam search."""

    @torch.inference_mode()
    def recommend() -> Recommendations | None:
        with precision_context(precision):
            hidden = model.start(batch)
            if trie is None:
                return None
            heads, over_catalogue = model.level_logits, model.is_over_catalogue
            return beam_search(heads, hidden, trie, beams, beams, over_catalogue=over_catalogue)

    return recommend
