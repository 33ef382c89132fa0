"""Reads item codes in the form they are published in: JSON, item → list of numbers or tokens such as "<a_12>"."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from ugt_composer.catalogue.tensor_file import SUFFIXES
from ugt_composer.errors import UserError

TOKEN = re.compile(r"<?[A-Za-z]+_(\d+)>?")
LARGEST_CODE = 2**31 - 1


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=lambda pairs: _object(path, pairs))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a JSON file of codes") from None
    except ValueError as error:
        raise UserError(
            f"{path}: is not JSON: {error}; expected codes as JSON, or as an array in a file that ends in "
            f"{', '.join(SUFFIXES)}"
        ) from None


def _object(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        again = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise UserError(f"{path}: {again!r} occurs twice; expected each item once")
    return value


def parse_codes(path: Path, given: Any) -> tuple[pl.Series, list[tuple[int, ...]]]:
    """Returns the item ids, and the codes of each item.

    Raises:
        UserError: names the item whose codes are invalid.
    """
    if not isinstance(given, dict) or not given:
        raise UserError(
            f'{path}: expected an object such as {{"item-1": ["<a_12>", "<b_3>", "<c_200>"]}} with items in it'
        )
    codes = [_codes_of(path, item, value) for item, value in given.items()]
    return pl.Series("item", list(given), dtype=pl.String), codes


def _codes_of(path: Path, item: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        parts: list[Any] = re.findall(r"<[^<>]*>", value) or value.split()
    else:
        parts = value if isinstance(value, list) else []
    codes = tuple(_code(part) for part in parts)
    if not item or not codes or any(code is None for code in codes):
        value_text = json.dumps(value)[:60]
        raise UserError(f'{path}: item {item!r}: found {value_text}, expected a list of codes such as 12 or "<a_12>"')
    return codes  # type: ignore[return-value]  # None is excluded above


def _code(part: Any) -> int | None:
    if isinstance(part, str):
        token = TOKEN.fullmatch(part.strip())
        text = token.group(1) if token else part.strip()
        part = int(text) if text.isdecimal() and len(text) <= 10 else None
    if isinstance(part, float) and part.is_integer():
        part = int(part)
    return part if type(part) is int and 0 <= part <= LARGEST_CODE else None
