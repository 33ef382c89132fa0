"""A training step reads nothing from the device unless a log line or a checkpoint is due.

On a GPU PyTorch raises an error at each read. On a CPU, which never waits, the tests count what would wait on a GPU:
reads of a tensor's values by Python, and operations whose result's size depends on values.
"""

import contextlib
import traceback
from pathlib import Path

import pytest
import torch
from composer import Callback
from torch.utils._python_dispatch import TorchDispatchMode

import ugt_composer.data
from ugt_composer.job import cpu_all_reduce
from ugt_composer.model import moe
from ugt_composer.training import loaders, microbatch
from ugt_composer.training.build import build_trainer

READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
SIZED_BY_VALUES = ("nonzero", "masked_select", "unique", "_unique2", "unique_dim", "_local_scalar_dense", "equal")
# Tensors that are on the CPU: those of CPU-side all-reduces, a batch before it is moved, buffers of the data loading,
# an optimizer's step count.
ON_HOST = (
    cpu_all_reduce.__file__,
    loaders.__file__,
    microbatch.__file__,
    str(Path(ugt_composer.data.__file__).parent),
    "torch/optim",
)


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put_", "index_put") and any(
            one is not None and one.dtype == torch.bool for one in args[1]
        )
        if name in SIZED_BY_VALUES or by_mask:
            self.note(name)
        return function(*args, **(kwargs or {}))

    def note(self, name):
        frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
        if not any(place in frame.filename for frame in frames[-6:] for place in ON_HOST):
            ours = [f for f in frames if "ugt_composer" in f.filename or "composer" in f.filename]
            place = (ours or frames)[-1]
            self.found.append(f"{name} in {Path(place.filename).name}:{place.lineno}")


class Watch(Callback):
    """Counts reads from the start of a batch to the start of the next one, for batches in which nothing is due."""

    def __init__(self, monkeypatch, batches):
        self.monkeypatch, self.batches = monkeypatch, batches
        self.counted, self.watched = Counted(), 0
        self.stack = contextlib.ExitStack()

    def batch_start(self, state, logger):
        self.stack.close()
        if state.timestamp.batch.value + 1 not in self.batches:
            return
        self.watched += 1
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("error")
            self.stack.callback(torch.cuda.set_sync_debug_mode, "default")
            return
        patches = self.stack.enter_context(self.monkeypatch.context())
        for name in READS:
            patches.setattr(torch.Tensor, name, self.noting(name, getattr(torch.Tensor, name)))
        self.stack.enter_context(self.counted)

    def noting(self, name, read):
        def noted(tensor, *args, **kwargs):
            self.counted.note(name)
            return read(tensor, *args, **kwargs)

        return noted


GROUP = ("loss.preference_objective=group", "model.level_softmax=catalogue")


@pytest.mark.parametrize(("stage", "options"), [(1, ("ema_decay=0.9",)), (2, ()), (3, ()), (3, GROUP)])
def test_a_step_reads_nothing_from_the_device(stages, stage_config, tmp_path, monkeypatch, stage, options):
    monkeypatch.setattr(moe, "READABLE_WITHOUT_SYNC", ())
    more = ("log_interval=5ba", "save_interval=100ba", "eval_interval=100ba", "max_duration=9ba")
    config = stage_config(tmp_path, stage, stages / f"stage{stage - 1}/best" if stage > 1 else None, *more, *options)
    trainer = build_trainer(config)
    watch = Watch(monkeypatch, {2, 3, 4, 6, 7, 8})
    trainer.state.callbacks.append(watch)
    trainer.train()
    trainer.close()
    assert watch.watched == 6
    assert not watch.counted.found, "\n".join(sorted(set(watch.counted.found)))


def test_a_read_from_the_device_is_detected(stages, stage_config, tmp_path, monkeypatch):
    more = ("log_interval=1ba", "max_duration=3ba", "data.eval.streams=[]", "save_best_on=null")
    trainer = build_trainer(stage_config(tmp_path, 1, None, *more))
    watch = Watch(monkeypatch, {2})
    trainer.state.callbacks.append(watch)
    if torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="synchronizing"):
            trainer.train()
    else:
        trainer.train()
        assert any("training_losses.py" in found for found in watch.counted.found)
    trainer.close()
