"""YAML files that an import writes: what a training run has to know of its data."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ugt_composer.config.shipped import DATA_YAML, PREFERENCES_YAML
from ugt_composer.importing.bundle import CATALOGUE
from ugt_composer.importing.preferences import FILES as PREFERENCE_FILES

TRAIN, VALIDATION = "train", "validation"
TRAIN_PAIRS, VALIDATION_PAIRS = (Path(name).stem for name in PREFERENCE_FILES)
CANONICAL_NODES = 4  # of the shipped stages; a data set has at least as many rows
TIME_BUCKETS = 32  # one for each power of two of seconds


def write_run_yamls(folder: Path, out: Path, shards: Path, report: Mapping[str, Any], max_positions: int) -> None:
    """Writes `data.yaml`, for all stages, and `preferences.yaml`, for stage 3, if there are preference rows.

    Args:
        folder: the folder that becomes `out` when it is complete.
        out: as the user named it, for the paths in the files.
        shards: the folder that has, or will have, a folder of shards for each part.
        report: of the import.
        max_positions: number of positions that the rows may have.
    """
    rows = {Path(name).stem: count for name, count in report["rows"].items() if count}
    texts = {DATA_YAML: _data(out, shards, report, rows, max_positions)}
    if TRAIN_PAIRS in rows:
        texts[PREFERENCES_YAML] = _preferences(out, shards, VALIDATION_PAIRS in rows)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def about_signals(report: Mapping[str, Any]) -> str | None:
    """The keys with which a model reads the actions and times that the rows have; None if they have none."""
    facts = report["histories"]
    keys = {
        "actions": f"model.num_actions={len(facts.get('actions', ()))}",
        "times": f"model.time_buckets={TIME_BUCKETS}",
    }
    present = [name for name in keys if name in facts]
    if not present:
        return None
    return f"The rows have {' and '.join(present)}, which a model reads with {' '.join(keys[name] for name in present)}"


def _data(out: Path, shards: Path, report: Mapping[str, Any], rows: Mapping[str, int], max_positions: int) -> str:
    train: dict[str, Any] = {"local": str(shards / TRAIN), "streams": []}
    if rows[TRAIN] < CANONICAL_NODES:
        train["num_canonical_nodes"] = 1  # an order of so few rows has no more parts
    keys = {
        "model": {"codebook_sizes": list(report["codebook_sizes"]), "max_seq_len": max_positions},
        "data": {
            "catalogue": str(out / CATALOGUE),
            "train": train,
            "eval": {"local": str(shards / VALIDATION) if VALIDATION in rows else None, "streams": []},
        },
    }
    text = f"# What all stages have to know of this data: ugt train yamls/stage1.yaml {out / DATA_YAML}\n"
    text += _yaml(keys)
    about = about_signals(report)
    return text if about is None else f"{text}# {about}\n"


def _preferences(out: Path, shards: Path, has_validation: bool) -> str:
    validation = [VALIDATION, VALIDATION_PAIRS] if has_validation else [VALIDATION]
    streams = [{"local": str(shards / name), "proportion": 0.5} for name in (TRAIN_PAIRS, TRAIN)]
    keys = {
        "data": {
            "train": {"local": None, "streams": streams},
            "eval": {"local": None, "streams": [{"local": str(shards / name)} for name in validation]},
        }
    }
    text = "# Preference and recommend rows, half and half, for stage 3; after data.yaml:\n"
    text += f"#   ugt train yamls/stage3.yaml {out / DATA_YAML} {out / PREFERENCES_YAML}\n"
    return text + _yaml(keys)


def _yaml(keys: dict[str, Any]) -> str:
    return yaml.safe_dump(keys, sort_keys=False, default_flow_style=None, allow_unicode=True, width=sys.maxsize)
