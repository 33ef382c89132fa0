"""Rows and values for alignment.py: rows that select `best/`, and others, which report what it is worth.

Pairs of the two are those of different users. Recommend rows that report are the test rows, the validation rows that do
not select, and the other next items of users who are not trained on. They have other targets than the rows that select,
but some of them the same users.
"""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ugt_composer.data.history import decoder_lists, encoder_lists

SHORTEST = 2  # items of a history


class Values(NamedTuple):
    """
    ndcg: ndcg@10 of each recommend row.
    pairs: fraction of the pairs whose chosen item has the higher log-probability.
    """

    ndcg: list[float]
    pairs: float


def write_parts(data: Path, selecting: tuple[int, int], reporting: tuple[int, int]) -> None:
    """Writes select.jsonl, select_preference.jsonl, report.jsonl and report_preference.jsonl into the folder.

    Args:
        data: has validation.jsonl, validation_preference.jsonl and, after an import, test.jsonl.
        selecting, reporting: the largest numbers of recommend and of preference rows.
    """
    chance = random.Random(0)
    pairs, validation = _read(data / "validation_preference.jsonl"), _read(data / "validation.jsonl")
    users = sorted({row["user_id"] for row in pairs})
    chance.shuffle(users)
    selects = set(users[: len(users) // 2])
    chance.shuffle(pairs)
    chance.shuffle(validation)
    others = validation[selecting[0] :]
    if (data / "test.jsonl").exists():
        test, held_out_users = _read(data / "test.jsonl"), set(users)
        others += [*test, *(row for last in test if last["user_id"] in held_out_users for row in _earlier(last))]
    chance.shuffle(others)
    _write(data / "select.jsonl", validation[: selecting[0]])
    _write(data / "report.jsonl", others[: reporting[0]])
    _write(data / "select_preference.jsonl", [row for row in pairs if row["user_id"] in selects][: selecting[1]])
    _write(data / "report_preference.jsonl", [row for row in pairs if row["user_id"] not in selects][: reporting[1]])


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _earlier(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each item of a test row's history that follows at least SHORTEST others.

    The first token is the user's. The last item is left out: it is the target of the user's validation row.
    """
    items = list(zip(*(row[f"encoder_l{level}_ids"][1:] for level in (1, 2, 3)), strict=True))
    for place in range(SHORTEST, len(items) - 1):
        yield {"user_id": row["user_id"]} | encoder_lists(items[:place]) | decoder_lists([items[place]])


def measure(checkpoint: Path, out: Path, part: str) -> Values:
    """Evaluates a model on the shards `out`/mds/PART and PART_preference, without seen items. The values are stored
    beside the model."""
    stored = checkpoint.parent / f"{checkpoint.name}-{part}.json"
    if not stored.exists():
        folders = [str(out / "mds" / name) for name in (part, f"{part}_preference")]
        stored.write_text(json.dumps(_measure(checkpoint, out / "data/catalogue.jsonl", folders)))
    return Values(*json.loads(stored.read_text()))


def _measure(checkpoint: Path, catalogue_path: Path, folders: list[str]) -> Values:
    import torch

    from ugt_composer.cli.loading import load_trained
    from ugt_composer.inference.evaluation import evaluation_config
    from ugt_composer.parallelism.device import prepare_device
    from ugt_composer.training.build import build_composer_model
    from ugt_composer.training.loaders import build_eval_loader

    model, config, _, catalogue = load_trained(str(checkpoint), str(catalogue_path))
    config = evaluation_config(config, folders, 256, exclude_seen=True)
    config = replace(config, loss=replace(config.loss, lambda_preference=0.0, lambda_anchor=0.0))  # no reference
    loader, _ = build_eval_loader(config)
    assert loader is not None
    device = prepare_device(config)
    composer_model = build_composer_model(config, model, catalogue, device).to(device).eval()
    ndcg, pairs = [], np.zeros(2)
    with torch.no_grad():
        for batch in loader.dataloader:
            values = composer_model.eval_forward({name: tensor.to(device) for name, tensor in batch.items()})
            ranked = values["evaluation"].ranked
            ndcg += ranked.row_values["ndcg"][ranked.counted, 10 - 1].tolist()
            pairs += values["evaluation"].pairs.cpu().numpy()
    return Values(ndcg, float(pairs[0] / pairs[1]))


def change(before: list[float], after: list[float]) -> tuple[float, float]:
    """The relative change of a mean over the same rows, and its standard error over resampled rows."""
    first, second = np.asarray(before), np.asarray(after)
    rows = np.random.default_rng(0).integers(0, len(first), (1000, len(first)))
    return second.mean() / first.mean() - 1, float(np.std(second[rows].mean(1) / first[rows].mean(1)))
