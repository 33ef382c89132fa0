"""Whether the values of interactions are plausible: ids that stand for unknown users, columns of something else."""

import numpy as np

from ugt_composer.importing.column_names import USUAL_NAMES, usual_columns
from ugt_composer.importing.interactions import Interactions
from ugt_composer.importing.log import Census, Log
from ugt_composer.storage.remote_files import InputPath

MANY_ROWS = 20  # from which on values that are all alike, or all different, are remarkable
FEW_NUMBERS, MOSTLY_SAME = 100, 0.3  # different times; fraction of the rows that have the user's time before
PLACEHOLDERS = ("0", "-1", "unknown", "anonymous", "guest", "other", "default", "none", "null", "nan", "na")
DOMINANT = 0.1  # fraction of all rows
DOMINANT_ROWS, DOMINANT_TIMES, PLACEHOLDER_TIMES = 100, 10, 3  # rows; multiples of the median


def about_values(path: InputPath, log: Log, counts: Census) -> tuple[str, ...]:
    """Warnings about columns whose values show that they are something else, and about ids that are placeholders."""
    warnings = []
    if len(log.items) == counts.rows >= MANY_ROWS and "item" in log.columns:
        warnings.append(
            f"{path}: column {log.columns['item']!r} has another item in each of the {counts.rows:,} rows, as a number "
            f"of the row would; name the column of the items with --item-column{_others('item', log)}"
        )
    if "timestamp" in log.columns and counts.rows >= MANY_ROWS and counts.one_time:
        warnings.append(
            f"{path}: column {log.columns['timestamp']!r} has the same time in all {counts.rows:,} rows, so each "
            "user's interactions keep the order of the file; name another column with --timestamp-column"
            f"{_others('timestamp', log)}"
        )
    warnings += _same_numbers_warning(path, log, counts)
    busiest, rows = counts.busiest
    popular = int(counts.item_rows.argmax())
    popular_rows, median_item = int(counts.item_rows[popular]), float(np.median(counts.item_rows))
    dominant = (
        *_dominant_warning(busiest, rows, counts.median_user_rows, counts.rows, f"{path}", "user"),
        *_dominant_warning(log.items[popular], popular_rows, median_item, counts.rows, f"{path}", "item"),
    )
    return (*warnings, *dominant)


def _same_numbers_warning(path: InputPath, log: Log, counts: Census) -> list[str]:
    """A warning if the times are so few numbers that they may be ratings, or too coarse to order interactions."""
    if "timestamp" not in log.columns or log.time_form is None or log.time_form.dates or log.time_form.unit is not None:
        return []
    found = log.partitions.map(_different_times)
    numbers = np.unique(np.concatenate([times for times, _ in found]))
    same = sum(number for _, number in found)
    if counts.rows < MANY_ROWS or not 1 < len(numbers) <= FEW_NUMBERS or same < MOSTLY_SAME * counts.rows:
        return []
    return [
        f"{path}: column {log.columns['timestamp']!r} has only {len(numbers)} different times, {numbers[0]:g} to "
        f"{numbers[-1]:g}, and {same:,} of {counts.rows:,} interactions have the same time as their user's one before, "
        "so they keep the order of the file; if these are no times, such as ratings, name the right column with "
        f"--timestamp-column{_others('timestamp', log)}, or for a file without a header all columns in their order "
        "with --columns"
    ]


def _different_times(log: Interactions) -> tuple[np.ndarray, int]:
    """The first FEW_NUMBERS + 1 different times, and how many interactions have that of their user's one before."""
    assert log.time is not None
    same = int(((np.diff(log.user) == 0) & (np.diff(log.time) == 0)).sum())
    return np.unique(log.time)[: FEW_NUMBERS + 1], same


def _others(role: str, log: Log) -> str:
    others = usual_columns(USUAL_NAMES[role], log.unused)
    return f" (there is also {', '.join(map(repr, others))})" if others else ""


def _dominant_warning(name: str, rows: int, median: float, all_rows: int, place: str, role: str) -> tuple[str, ...]:
    """A warning if the id with the most rows has far more of them than others have, as a placeholder would."""
    is_placeholder = name.lower() in PLACEHOLDERS
    least = PLACEHOLDER_TIMES * median if is_placeholder else max(DOMINANT_ROWS, DOMINANT_TIMES * median)
    # A popular item is nothing unusual.
    if rows <= max(DOMINANT * all_rows, least) or (role == "item" and not is_placeholder):
        return ()
    return (
        f"{place}: {role} {name!r} has {rows:,} of {all_rows:,} rows "
        f"({rows / all_rows:.0%}; half of the {role}s have {median:g} or fewer); if it stands for "
        f"an unknown {role}, remove these rows",
    )
