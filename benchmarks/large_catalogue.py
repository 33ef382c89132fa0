"""What a catalogue of a million or ten million generated items costs one process: to load it, to recommend and evaluate
with the user-item score, and to train a step with all items as negatives.

Each line is a process of its own. With `--held` the vectors of all items and their scores are held, as for small
catalogues, which ten million items need tens of gigabytes for. The model is small (width 128, two layers each of
encoder and decoder, random weights): what is measured grows with the items, and little with the layers. "Anonymous"
memory is that of the process alone; the rest of the peak is the file of arrays, which all processes of a machine share.
One core; on a machine with other programs, CPU time is what to compare.

    python benchmarks/large_catalogue.py [--items 1000000 …] [--users 256] [--rows 64] [--held]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import markdown, write_section  # noqa: E402
from ugt_composer.catalogue.catalogue import Catalogue  # noqa: E402
from ugt_composer.catalogue.trie import ItemTrie  # noqa: E402
from ugt_composer.config.schema import ModelConfig  # noqa: E402
from ugt_composer.data.codec import Row, encode_row  # noqa: E402
from ugt_composer.data.collate import PackedRow, collate  # noqa: E402
from ugt_composer.data.history import encoder_lists  # noqa: E402
from ugt_composer.generation import catalogue_vectors  # noqa: E402
from ugt_composer.inference.recommender import Recommender, batched  # noqa: E402
from ugt_composer.losses.unified import UnifiedLoss  # noqa: E402
from ugt_composer.model.build import build_model  # noqa: E402
from ugt_composer.training.composer_model import ComposerUGT  # noqa: E402
from ugt_composer.vocabulary import BOS, ITEM, NUM_SPECIAL_IDS  # noqa: E402

SIZES = (1024, 4096, 16384)
WIDTH, HISTORY, K, BEAMS, BATCH = 128, 20, 50, 50, 64
PARTS = ("load the first time", "load again", "recommend", "evaluate", "train")
HEADS = ("items", "what", "CPU time", "time", "peak memory", "of it anonymous", "")


class Times(NamedTuple):
    """In seconds."""

    cpu: float
    wall: float


def times(function: Callable[[], object]) -> Times:
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return Times(time.process_time() - cpu, time.perf_counter() - wall)


def write_catalogue(path: Path, count: int) -> None:
    """JSON Lines of `count` items with distinct semantic IDs, in random order."""
    random, free = np.random.default_rng(0), [size - NUM_SPECIAL_IDS for size in SIZES]
    codes = np.unique(random.integers(0, np.prod(free), count + count // 50 + 100))
    codes = random.permutation(codes)[:count]
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, count, 100_000):
            l1, l2, l3 = (ids + NUM_SPECIAL_IDS for ids in np.unravel_index(codes[start : start + 100_000], free))
            items = zip(range(start, start + len(l1)), l1.tolist(), l2.tolist(), l3.tolist(), strict=True)
            file.writelines(
                f'{{"item_id":"B{item:09d}","l1_id":{a},"l2_id":{b},"l3_id":{c},"name":"Generated item {item}"}}\n'
                for item, a, b, c in items
            )


def make_rows(items: np.ndarray, users: int) -> list[Row]:
    """Histories of random items, each with a random target."""
    random = np.random.default_rng(1)
    rows = []
    for user in range(users):
        *history, target = items[random.integers(len(items), size=HISTORY + 1)].tolist()
        lists = encoder_lists([tuple(item) for item in history])
        encoder = np.stack([lists[key] for key in lists]).T[:, :5]
        decoder = np.array([[BOS, BOS, BOS, 0, ITEM, *target]], np.int64)
        rows.append(Row(str(user), encoder, decoder, np.zeros((0, 3), np.int64)))
    return rows


def make_model():
    config = ModelConfig(
        d_model=WIDTH,
        n_heads=4,
        n_encoder_layers=2,
        n_decoder_layers=2,
        d_ff=2 * WIDTH,
        codebook_sizes=SIZES,
        num_experts=4,
        top_k_experts=2,
        max_seq_len=64,
        level_softmax="catalogue",
    )
    return build_model(config, seed=0)


def make_batches(rows: list[Row], size: int) -> list[Any]:
    packed = [PackedRow(number, encode_row(row, 4)) for number, row in enumerate(rows)]
    return [collate(part) for part in batched(iter(packed), size)]


def recommend(catalogue: Catalogue, users: int) -> tuple[Times, str]:
    rows = make_rows(catalogue.triples, users)
    recommender = Recommender(make_model(), ItemTrie.from_catalogue(catalogue), item_score_weight=1.0)
    parts = list(batched(iter(rows), BATCH))
    taken = times(lambda: [recommender.recommend(part, K, BEAMS, exclude_seen=True) for part in parts])
    return taken, f"{users / taken.cpu:.1f} users per second of CPU time, top {K} of {BEAMS} beams"


def evaluate(catalogue: Catalogue, users: int) -> tuple[Times, str]:
    batches = make_batches(make_rows(catalogue.triples, users), BATCH)
    loss = UnifiedLoss(lambda_contrastive=0.1, repr_dim=WIDTH)
    model = ComposerUGT(
        make_model(),
        loss,
        None,
        ItemTrie.from_catalogue(catalogue),
        (5, 10, 20, 50),
        BEAMS,
        True,
        item_score_weight=1.0,
    ).eval()
    metrics = model.get_metrics(is_train=False)

    @torch.no_grad()
    def run() -> None:
        for batch in batches:
            outputs = model.eval_forward(batch)
            for metric in metrics.values():
                model.update_metric(batch, outputs, metric)
        assert all(bool(metric.compute().isfinite()) for name, metric in metrics.items() if "@" in name)

    taken = times(run)
    return taken, f"{users / taken.cpu:.1f} users per second of CPU time, with all metrics"


def train(catalogue: Catalogue, rows: int) -> tuple[Times, str]:
    (batch,) = make_batches(make_rows(catalogue.triples, rows), rows)
    loss = UnifiedLoss(lambda_contrastive=0.1, contrastive_negatives="catalogue", repr_dim=WIDTH)
    network = make_model().train()
    model = ComposerUGT(network, loss, None, ItemTrie.from_catalogue(catalogue), (10,), BEAMS, True).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        model.loss(model(batch), batch)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return times(step), f"stage 2, {rows} rows, all items as negatives: one step"


def measured(part: str, path: Path, users: int, rows: int) -> dict[str, Any]:
    """Runs a part in this process: its seconds and the peaks of its memory in bytes."""
    torch.set_num_threads(1)
    anonymous = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            anonymous[0] = max(anonymous[0], anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    taken = times(lambda: Catalogue.load(path))
    catalogue, note = Catalogue.load(path), ""
    what: dict[str, Callable[[], tuple[Times, str]]] = {
        "recommend": lambda: recommend(catalogue, users),
        "evaluate": lambda: evaluate(catalogue, users),
        "train": lambda: train(catalogue, rows),
    }
    if part in what:
        taken, note = what[part]()
    else:
        note = f"{len(catalogue):,} items, {path.stat().st_size / 1e6:,.0f} MB of JSON Lines"
    done.set()
    watcher.join()
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "cpu": taken.cpu,
        "wall": taken.wall,
        "peak": peak,
        "anonymous": max(anonymous[0], anonymous_bytes()),
        "note": note,
    }


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--held", action="store_true")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--catalogue", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.held:
        catalogue_vectors.HELD_BYTES = 1 << 62
    if arguments.part is not None:
        print(json.dumps(measured(arguments.part, arguments.catalogue, arguments.users, arguments.rows)))
        return 0
    lines = []
    for items in arguments.items:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "catalogue.jsonl"
            write_catalogue(path, items)
            for part in PARTS:
                command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--catalogue", str(path)]
                result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                found = json.loads(result.splitlines()[-1])
                gigabytes = (f"{found[name] / 1e9:.2f} GB" for name in ("peak", "anonymous"))
                name = f"{part}, vectors held" if arguments.held and part in PARTS[2:] else part
                lines.append(
                    [
                        f"{items:,}",
                        name,
                        *(f"{found[clock]:.1f} s" for clock in ("cpu", "wall")),
                        *gigabytes,
                        found["note"],
                    ]
                )
                print(*lines[-1], sep=" | ", flush=True)
    table = Table(*HEADS)
    for line in lines:
        table.add_row(*line)
    Console().print(table)
    if not arguments.held:
        cores = f"{date.today()}, one run on one of 2 shared cores, which other programs used as well."
        write_section(__file__, [cores, "", *markdown(HEADS, lines)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
