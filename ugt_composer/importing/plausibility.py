"""Whether the values of interactions are plausible: ids that stand for unknown users, columns of something else."""

from pathlib import Path

import numpy as np
import polars as pl

from ugt_composer.importing.column_names import USUAL_NAMES, usual_columns
from ugt_composer.importing.interactions import Interactions

MANY_ROWS = 20  # from which on values that are all alike, or all different, are remarkable
FEW_NUMBERS, MOSTLY_SAME = 100, 0.3  # different times; fraction of the rows that have the user's time before
PLACEHOLDERS = ("0", "-1", "unknown", "anonymous", "guest", "other", "default", "none", "null", "nan", "na")
DOMINANT = 0.1  # fraction of all rows
DOMINANT_ROWS, DOMINANT_TIMES, PLACEHOLDER_TIMES = 100, 10, 3  # rows; multiples of the median


def about_values(path: Path, log: Interactions) -> tuple[str, ...]:
    """Warnings about columns whose values show that they are something else, and about ids that are placeholders."""
    warnings = []
    if len(log.items) == len(log) >= MANY_ROWS and "item" in log.columns:
        warnings.append(
            f"{path}: column {log.columns['item']!r} has another item in each of the {len(log):,} rows, as a number of "
            f"the row would; name the column of the items with --item-column{_others('item', log)}"
        )
    if log.time is not None and len(log) >= MANY_ROWS and log.time.min() == log.time.max():
        warnings.append(
            f"{path}: column {log.columns['timestamp']!r} has the same time in all {len(log):,} rows, so each user's "
            "interactions keep the order of the file; name another column with --timestamp-column"
            f"{_others('timestamp', log)}"
        )
    warnings += _same_numbers_warning(path, log)
    dominant = [
        text
        for role, names, number in (("user", log.users, log.user), ("item", log.items, log.item))
        for text in _dominant_warning(names, number, str(path), role)
    ]
    return (*warnings, *dominant)


def _same_numbers_warning(path: Path, log: Interactions) -> list[str]:
    """A warning if the times are so few numbers that they may be ratings, or too coarse to order interactions."""
    if log.time is None or log.time_form is None or log.time_form.dates or log.time_form.unit is not None:
        return []
    numbers = np.unique(log.time)
    same = int(((np.diff(log.user) == 0) & (np.diff(log.time) == 0)).sum())
    if len(log) < MANY_ROWS or not 1 < len(numbers) <= FEW_NUMBERS or same < MOSTLY_SAME * len(log):
        return []
    return [
        f"{path}: column {log.columns['timestamp']!r} has only {len(numbers)} different times, {numbers[0]:g} to "
        f"{numbers[-1]:g}, and {same:,} of {len(log):,} interactions have the same time as their user's one before, so "
        "they keep the order of the file; if these are no times, such as ratings, name the right column with "
        f"--timestamp-column{_others('timestamp', log)}, or for a file without a header all columns in their order "
        "with --columns"
    ]


def _others(role: str, log: Interactions) -> str:
    others = usual_columns(USUAL_NAMES[role], log.unused)
    return f" (there is also {', '.join(map(repr, others))})" if others else ""


def _dominant_warning(names: pl.Series, number: np.ndarray, place: str, role: str) -> tuple[str, ...]:
    """A warning if one of the ids `names` has far more of the rows than others have, as a placeholder would.

    Args:
        number: int (N,), the number of each row's id in `names`.
    """
    counts = np.bincount(number, minlength=len(names))
    top, median = int(counts.argmax()), float(np.median(counts))
    is_placeholder = names[top].lower() in PLACEHOLDERS
    least = PLACEHOLDER_TIMES * median if is_placeholder else max(DOMINANT_ROWS, DOMINANT_TIMES * median)
    # A popular item is nothing unusual.
    if counts[top] <= max(DOMINANT * len(number), least) or (role == "item" and not is_placeholder):
        return ()
    return (
        f"{place}: {role} {names[top]!r} has {counts[top]:,} of {len(number):,} rows "
        f"({counts[top] / len(number):.0%}; half of the {role}s have {median:g} or fewer); if it stands for "
        f"an unknown {role}, remove these rows",
    )
