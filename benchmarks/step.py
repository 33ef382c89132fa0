"""Claim: a batch takes hardly longer in the Trainer, with callbacks, loggers and metrics, than in a bare PyTorch loop.

After each batch of the Trainer the bare loop trains one: the same model and loss, optimizer, clipping and microbatches,
on batches of the same data set, loaded by the same loader. The same comparison with a tiny model shows the Trainer's
overhead, which does not depend on the size of the model.

    python benchmarks/step.py [--batches 30] [--rows 64] [--microbatch 32]
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Event, Logger, State

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import Claim, report  # noqa: E402
from tests.parity import make_data  # noqa: E402
from ugt_composer.config.load import load_config  # noqa: E402
from ugt_composer.data.batch import Batch  # noqa: E402
from ugt_composer.training.build import build_trainer  # noqa: E402
from ugt_composer.training.loaders import build_train_loader  # noqa: E402
from ugt_composer.training.microbatch import split_batch  # noqa: E402
from ugt_composer.training.optim import create_optimizer  # noqa: E402

WARM_UP = 5
SIZES = {
    "default widths": ["model.d_model=512", "model.n_heads=8", "model.n_encoder_layers=4", "model.n_decoder_layers=2"],
    "a tiny model": ["model.d_model=16", "model.n_encoder_layers=1", "model.n_decoder_layers=1", "model.n_heads=2"],
}


class BareLoop(Callback):
    """Trains a copy of the model after each batch of the Trainer; both are timed including the batch's loading."""

    def __init__(self, model: torch.nn.Module, config: Any):
        self.model = copy.deepcopy(model)
        self.config = config
        self.optimizer = create_optimizer(self.model, **asdict(config.optimizer))
        self.batches = endless(config)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.ours: list[float] = []
        self.bare: list[float] = []
        self.started: float | None = None
        self.events = [0.0]

    def before_dataloader(self, state: State, logger: Logger) -> None:
        now = time.perf_counter()
        if self.started is not None:
            self.ours.append(now - self.started)
            self.events.append(0.0)
            self.train_batch()
            self.bare.append(time.perf_counter() - now)
        self.started = time.perf_counter()

    def train_batch(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        batch = next(self.batches)
        rows = len(batch["row_ids"])
        for piece in split_batch(batch, self.config.device_train_microbatch_size):
            loss = self.model.loss(self.model(piece), piece)["total"]
            (loss * (len(piece["row_ids"]) / rows)).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.optimizer.step()


def endless(config: Any) -> Iterator[Batch]:
    while True:
        yield from build_train_loader(config)[0].dataloader


def measure(out: Path, size: list[str], arguments: argparse.Namespace) -> tuple[BareLoop, int]:
    overrides = [
        *size,
        f"data.train.local={out / 'mds/train'}",
        f"data.catalogue={out / 'data/catalogue.jsonl'}",
        "data.eval.local=null",
        "data.eval.streams=[]",
        "init_from=null",
        f"save_folder={out / 'run'}",
        "autoresume=false",
        f"global_train_batch_size={arguments.rows}",
        f"device_train_microbatch_size={arguments.microbatch}",
        f"max_duration={arguments.batches + WARM_UP}ba",
        "save_interval=1000000ba",
        "loggers.progress_bar=false",
        "data.train.num_workers=0",
    ]
    config = load_config(ROOT / "yamls/stage2.yaml", ROOT / "yamls/demo.yaml", overrides=overrides)
    trainer = build_trainer(config)
    rival = BareLoop(trainer.state.model, config)
    trainer.state.callbacks.append(rival)
    run_event = trainer.engine.run_event

    def timed(event: Event) -> Any:
        start = time.perf_counter()
        passes = run_event(event)
        # The bare loop runs in the first of these; in the second the Trainer clips gradients, like the bare loop.
        if event not in (Event.BEFORE_DATALOADER, Event.AFTER_TRAIN_BATCH):
            rival.events[-1] += time.perf_counter() - start
        return passes

    trainer.engine.run_event = timed  # type: ignore[method-assign]
    trainer.train()
    trainer.close()
    return rival, sum(parameter.numel() for parameter in rival.model.parameters())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--microbatch", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    claims = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        make_data(out, seed=0, users=1500)
        for name, size in SIZES.items():
            rival, parameters = measure(out, size, arguments)
            pairs = list(zip(rival.ours, rival.bare, strict=True))[WARM_UP:]
            ratio = statistics.median(ours / bare for ours, bare in pairs)
            more = 1000 * statistics.median(ours - bare for ours, bare in pairs)
            ours, bare = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
            what = f"a batch of the Trainer, {name}"
            note = f"{parameters:,} parameters: {ours:.1f} ms and {bare:.1f} ms"
            if parameters > 10_000_000:
                claims.append(Claim(f"{what}: time", "a bare loop", ratio, 1.05, False, note))
            events = 1000 * statistics.median(rival.events)
            limit = f"Composer's events, which its engine passes to callbacks and algorithms, take {events:.2f} ms."
            claims.append(Claim(f"{what}: additional ms", "a bare loop", more, 3.0, False, note, limit))
    return report(__file__, claims)


if __name__ == "__main__":
    sys.exit(main())
