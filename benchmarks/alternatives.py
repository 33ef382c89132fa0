"""Claim: each of several ways to do one thing earns its place; docs/architecture.md has the decisions.

Sampled products against the logits of the whole codebook (256 users × 8 prefixes × 256 ids, without gradients);
vectors that are gathered against a product per user, which was removed (one prefix, 24 ids, with gradients); rows
converted in bulk against row by row; and the host time of Composer's events, which a patched engine once saved in part.
All on one core.

    python benchmarks/alternatives.py [--repetitions 5] [--rows 10000]
"""

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from composer import Callback
from composer.core import Engine, Event, State
from composer.devices import DeviceCPU
from composer.loggers import Logger
from composer.models import ComposerClassifier

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import Claim, in_turns, report, seconds  # noqa: E402
from convert.jsonl_to_mds import main as convert  # noqa: E402
from tests.shop import SIZES, write_rows  # noqa: E402
from ugt_composer.conversion import partition  # noqa: E402
from ugt_composer.model.heads import _sampled_products  # noqa: E402

USERS, D_MODEL, CODEBOOK = 256, 512, 16_384
EVENTS = (
    Event.BEFORE_FORWARD,
    Event.AFTER_FORWARD,
    Event.BEFORE_LOSS,
    Event.AFTER_LOSS,
    Event.BEFORE_BACKWARD,
    Event.AFTER_BACKWARD,
)  # of a microbatch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000, help="rows to convert")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    claims = [
        sampled_products(arguments.repetitions),
        gathered_vectors(arguments.repetitions),
        bulk_conversion(arguments.rows, arguments.repetitions),
        events(),
    ]
    return report(__file__, claims)


def milliseconds(ours: float, rival: float) -> str:
    return f"{1000 * ours:.1f} ms and {1000 * rival:.1f} ms"


def sampled_products(repetitions: int, prefixes: int = 8, ids_per_user: int = 256) -> Claim:
    weight, states = torch.randn(CODEBOOK, D_MODEL), torch.randn(USERS, prefixes, D_MODEL)
    ids = torch.randint(CODEBOOK, (USERS, ids_per_user))
    beam = torch.randint(prefixes, (USERS, ids_per_user)).sort(1).values
    owners = torch.arange(USERS).unsqueeze(1) * prefixes + beam

    def sampled() -> torch.Tensor:
        return _sampled_products(states.flatten(0, 1), weight, owners, ids)

    def whole() -> torch.Tensor:
        return F.linear(states, weight).flatten(1).gather(1, beam * CODEBOOK + ids)

    with torch.no_grad():
        torch.testing.assert_close(sampled(), whole(), rtol=1e-4, atol=1e-3)
        ratio, ours, rival = in_turns(sampled, whole, repetitions)
    note = milliseconds(ours, rival)
    return Claim("sampled products: time", "whole codebook, then gather", ratio, 0.5, at_least=False, note=note)


def gathered_vectors(repetitions: int, ids_per_user: int = 24) -> Claim:
    weight = torch.randn(CODEBOOK, D_MODEL, requires_grad=True)
    states = torch.randn(USERS, 1, D_MODEL, requires_grad=True)
    ids = torch.randint(CODEBOOK, (USERS, ids_per_user))
    owners = torch.arange(USERS).unsqueeze(1).expand_as(ids)

    def gathered() -> None:
        (F.embedding(ids, weight) * F.embedding(owners, states.flatten(0, 1))).sum(2).sum().backward()

    def product_per_user() -> None:
        (F.embedding(ids, weight) @ states.transpose(1, 2)).sum().backward()

    ratio, ours, rival = in_turns(gathered, product_per_user, repetitions)
    note = milliseconds(ours, rival)
    return Claim("gathered vectors, one prefix: time", "a product per user", ratio, 2, at_least=False, note=note)


def bulk_conversion(rows: int, repetitions: int) -> Claim:
    fewest = partition.FEWEST_BULK_ROWS
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        write_rows(source, "recommend", rows, seed=0)
        sizes = ["--codebook-sizes", *map(str, SIZES), "--max-positions", "32"]
        options = [str(source), "--kind", "recommend", "--out", f"{folder}/out", "--overwrite", *sizes]

        def converted(least: int) -> None:
            partition.FEWEST_BULK_ROWS = least
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                assert convert(options) == 0

        ratio, ours, rival = in_turns(lambda: converted(fewest), lambda: converted(sys.maxsize), repetitions)
    partition.FEWEST_BULK_ROWS = fewest
    note = f"{rows:,} short rows: {ours:.2f} s and {rival:.2f} s"
    return Claim("conversion in bulk: rows/s", "row by row", 1 / ratio, 5, at_least=True, note=note)


def events(callbacks: int = 8, microbatches: int = 300) -> Claim:
    """The time of a microbatch's events with callbacks that listen to none of them: all that skipping could save."""
    model = ComposerClassifier(torch.nn.Linear(1, 2), num_classes=2)
    state = State(
        model=model,
        rank_zero_seed=0,
        run_name="events",
        device=DeviceCPU(),
        dataloader=[0],
        dataloader_label="train",
        max_duration="1ep",
        callbacks=[Callback() for _ in range(callbacks)],
    )
    engine = Engine(state, Logger(state))

    def run() -> None:
        for _ in range(microbatches):
            for event in EVENTS:
                engine.run_event(event)

    run()
    each = 1000 * seconds(run) / microbatches
    engine.close()
    what = f"Composer's events of a microbatch, {callbacks} callbacks: ms"
    return Claim(what, "1 ms of host time", each, 1, at_least=False, note=f"{each:.2f} ms")


if __name__ == "__main__":
    sys.exit(main())
