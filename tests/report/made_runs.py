"""Save folders as runs write them, made without training: a model with random weights, and invented metrics."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.extension import catalogue_copy
from ugt_composer.checkpoint.portable import FINGERPRINT, LONGEST_HISTORY, save_portable
from ugt_composer.checkpoint.save_folder import CONFIG, EVENTS, METRICS
from ugt_composer.config.load import config_yaml
from ugt_composer.config.schema import Config
from ugt_composer.model.build import build_model

BATCHES = 40
STARTED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BEST_AT, BEST_VALUE = 30, 0.31


def made_run(config: Config, folder: Path, seed: int = 0) -> Path:
    """A run that was preempted at batch 20, killed after batch 34, and finished."""
    folder.mkdir(parents=True)
    config = replace(config, save_folder=str(folder))
    (folder / CONFIG).write_text(config_yaml(config))
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in _lines(config, seed)))
    (folder / EVENTS).write_text("".join(json.dumps(event) + "\n" for event in _events()))
    catalogue = Catalogue.load(str(config.data.catalogue))
    facts = {FINGERPRINT: catalogue.fingerprint, LONGEST_HISTORY: "30", "batch": str(BEST_AT)}
    facts["best ndcg@10"] = str(BEST_VALUE)
    weights = build_model(config.model, seed).state_dict()
    save_portable(folder / "best", weights, config, facts, catalogue_copy(catalogue))
    return folder


def _lines(config: Config, seed: int) -> list[dict]:
    lines = []
    for batch in range(1, BATCHES + 1):
        loss = 3 * math.exp(-batch / 15) + 0.5 + 0.05 * math.sin(3 * batch + seed)
        line = {
            "batch": batch,
            "epoch": batch // 10,
            "metrics/train/grad_norm": 0.3 + 1 / batch,
            "metrics/train/learning rate": 1e-3 * (1 - batch / BATCHES),
            "metrics/train/samples/s": 500 + 20 * math.cos(batch),
            "metrics/train/ntp_l1_acc": 1 - loss / 4,
            "loss/train/total": loss + 0.1,
            "loss/train/ntp_loss": loss,
            "loss/train/dpo_loss": 0.0,
        }
        if batch % 10 == 0:
            line |= {"metrics/eval/loss": loss + 0.3, "metrics/eval/ntp_loss": loss + 0.2}
            line |= {f"metrics/eval/{name}@10": 0.4 - loss / 10 for name in ("ndcg", "recall", "coverage")}
        lines.append(line)
    return lines


def _events() -> list[dict]:
    def event(minute: float, name: str, batch: int, **facts) -> dict:
        time = (STARTED + timedelta(minutes=minute)).isoformat(timespec="milliseconds")
        return {"time": time, "event": name, "batch": batch, "rows": 32 * batch, **facts}

    start = {"version": "0.1.0", "ranks": 1}
    return [
        event(0, "start", 0, **start),
        event(10, "checkpoint", 10, seconds=1.5),
        event(20, "checkpoint", 20, seconds=1.25),
        event(20.1, "preempted", 20, saved_batch=20),
        event(50, "resume", 20, **start),
        event(60, "best", 30, metric="ndcg@10", value=BEST_VALUE),
        event(60.1, "checkpoint", 30, seconds=1.5),
        event(64, "best", 34, metric="ndcg@10", value=0.2),
        event(80, "resume", 30, **start),
        event(90, "checkpoint", 40, seconds=1.5),
        event(90.1, "end", 40),
    ]
