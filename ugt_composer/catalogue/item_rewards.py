"""A file with the reward of each item of the catalogue.

JSON Lines such as {"item_id": "B00…", "reward": 1.5}, or CSV (.csv, .tsv) with the columns item_id and reward. The
higher, the better.
"""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.errors import UserError, where_searched
from ugt_composer.jsonl.bad_row import shown

ITEM, REWARD = "item_id", "reward"
SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_item_rewards(option: str, path: str, catalogue: Catalogue) -> np.ndarray:
    """float64 (n,), the reward of each item, in the order of the catalogue; other items of the file are left out.

    Args:
        option: that names the file, for messages, such as "loss.reward_file".

    Raises:
        UserError: the file cannot be read or lacks an item.
    """
    if not Path(path).is_file():
        raise UserError(
            f"{option}: {path}: no such file{where_searched(path)}; expected JSON Lines or CSV with an {ITEM} and a "
            f"{REWARD} per item"
        )
    rewards = _read_file(option, path, catalogue)
    missing = np.flatnonzero(np.isnan(rewards))
    if len(missing):
        raise UserError(
            f"{option}: {path} has no {REWARD} for {len(missing):,} of {len(catalogue):,} items of "
            f"{catalogue.source}, such as {shown(catalogue.columns.ids[missing[0]])}; expected one for each"
        )
    return rewards


def _read_file(option: str, path: str, catalogue: Catalogue) -> np.ndarray:
    """float64 (n,), NaN for items that the file lacks."""
    rewards = np.full(len(catalogue), np.nan)
    others: set[str] = set()
    try:
        for line, item_id, value in _entries(option, path):
            place = f"{option}: {path}:{line}"
            if not isinstance(item_id, str):
                raise UserError(f"{place}: {ITEM}: found {shown(item_id)}, expected text")
            if (number := _finite(value)) is None:
                raise UserError(f"{place}: {REWARD}: found {shown(value)}, expected a finite number")
            row = catalogue.columns.row_of(item_id)
            if item_id in others if row is None else not math.isnan(rewards[row]):
                raise UserError(f"{place}: {ITEM}: found {shown(item_id)} a second time, expected each item once")
            if row is None:
                others.add(item_id)
            else:
                rewards[row] = number
    except UnicodeDecodeError:
        raise UserError(f"{option}: {path} is not text in UTF-8") from None
    except (OSError, csv.Error) as error:
        raise UserError(f"{option}: {path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return rewards


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _entries(option: str, path: str) -> Iterator[tuple[int, object, object]]:
    """(line, item id, reward) of each entry, not checked yet."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        separator = SEPARATORS.get(Path(path).suffix.lower())
        if separator is None:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield line, *_of_json(f"{option}: {path}:{line}", text)
            return
        table = csv.DictReader(file, delimiter=separator)
        names = list(table.fieldnames or [])
        for name in (ITEM, REWARD):
            if name not in names:
                raise UserError(f"{option}: {path}:1: has no column {name}; found {', '.join(names) or 'nothing'}")
        for record in table:
            yield table.line_num, record[ITEM], record[REWARD]


def _of_json(place: str, text: str) -> tuple[object, object]:
    try:
        entry = json.loads(text)
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or ITEM not in entry or REWARD not in entry:
        raise UserError(f'{place}: found {shown(text.strip())}, expected {{"{ITEM}": "…", "{REWARD}": 1.5}}')
    return entry[ITEM], entry[REWARD]
