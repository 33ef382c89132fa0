"""Recommendation end to end: encoder, the decoder's step at BOS, beam search over a catalogue."""

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

ITEMS, SMALL_ITEMS = 1_000_000, 1000
BEAMS, SMALL_BEAMS = 50, 5


def measure(report: Report, variant: str, small: bool) -> None:
    items, beams = (SMALL_ITEMS, SMALL_BEAMS) if small else (ITEMS, BEAMS)
    report.table(
        "",
        f"The default model with random weights; histories of {HISTORY} tokens, the best {beams} of {items:,} random "
        f"items, {beams} beams; items of the history are not excluded. The batch is on the device. Peak memory is "
        "in addition to weights and catalogue.",
        ("what", "ms", "rows/s", "ms of these for encoder and BOS step", "peak GiB"),
    )
    history = SMALL_HISTORY if small else HISTORY
    for softmax in ("codebook", "catalogue"):
        config = stage_config(1, small, f"model.level_softmax={softmax}")
        model = build_model(config.model, seed=0).cuda().eval()
        trie = ItemTrie.from_triples(random_items(config, items)).to("cuda")
        for rows in (8, 1) if small else (256, 1):
            batch = make_batch(config, history, rows=rows)
            for precision in ("amp_bf16", "fp32"):
                what = f"softmax over the {softmax}, {rows} rows, {precision}"
                report.attempt(what, lambda: row(model, trie, batch, precision, beams))  # noqa: B023


def row(model: UGT, trie: ItemTrie, batch: dict[str, Any], precision: str, beams: int) -> Sequence[object]:
    recommend = recommender(model, trie, batch, precision, beams)
    before = torch.cuda.memory_allocated()
    with peak_memory() as peak:
        timing = timed(recommend, seconds=2.0)
        allocated = peak().allocated
    encode = recommender(model, None, batch, precision, beams)
    rate = per_second(len(batch["row_ids"]), timing.ms)
    encoding = timed(encode, seconds=1.0).ms
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
