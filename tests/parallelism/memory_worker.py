"""Run in launched processes: trains a batch under each strategy and counts the bytes of all live tensors."""

import gc
import json
import sys
from pathlib import Path

import torch
from composer import Callback
from composer.utils import dist

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.live_tensors import live_storages  # noqa: E402
from ugt_composer.config.load import load_config  # noqa: E402
from ugt_composer.training.build import build_trainer  # noqa: E402


class Count(Callback):
    def __init__(self, model):
        self.model = model
        self.bytes = 0

    def after_train_batch(self, state, logger):
        if state.timestamp.batch.value == 1:
            gradients = [p.grad for p in self.model.parameters()]  # accessing a gradient creates its Python object
            gc.collect()
            self.bytes = sum(live_storages().values())
            del gradients


def main() -> None:
    torch.set_num_threads(1)
    jobs, target = Path(sys.argv[1]), Path(sys.argv[2])
    found = {}
    for job in json.loads(jobs.read_text()):
        gc.collect()
        idle = sum(live_storages().values())
        trainer = build_trainer(load_config(job["yaml"], overrides=job["overrides"]))
        count = Count(trainer.strategy.model)
        trainer.state.callbacks.append(count)
        trainer.train()
        found[job["name"]] = count.bytes - idle
        trainer.close()
        del trainer, count
        gc.collect()
    if dist.get_global_rank() == 0:
        target.write_text(json.dumps(found))


main()
