"""What interactions are, such as clicks and impressions: spellings, counts, and the choice of those in histories."""

import re
import shlex
from dataclasses import replace

import numpy as np
import polars as pl

from ugt_composer.errors import UserError, nearest
from ugt_composer.importing.action_words import MOST_ACTIONS, is_negative, is_removal, is_view
from ugt_composer.importing.ids import MISSING, listed
from ugt_composer.importing.interactions import Interactions
from ugt_composer.importing.log import Log

ALL = "all"
MOST_LISTED = 12


def with_one_spelling(log: Log) -> tuple[Log, tuple[str, ...]]:
    """Actions that differ only in case or in blanks around them become one, in the most frequent spelling."""
    if "action" not in log.columns:
        return log, ()
    spelling: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for name in counts_of_actions(log, missing=None):
        stripped = "" if name.strip() in MISSING else _without_point_zero(name.strip())
        renamed[name] = spelling.setdefault(stripped.casefold(), stripped)
    changed = {old: new for old, new in renamed.items() if old != new}
    names = list(dict.fromkeys(name for name in renamed.values() if name))
    warnings = tuple(
        f"column {log.columns['action']!r}: {listed([old for old in changed if changed[old] == new])} "
        f"{'is' if list(changed.values()).count(new) == 1 else 'are'} read as {new!r}; only case, blanks or .0 differ"
        for new in dict.fromkeys(filter(None, changed.values()))
    )
    return replace(log, partitions=log.partitions.transform(_spelled, changed, names)), warnings


def _spelled(log: Interactions, changed: dict[str, str], names: list[str]) -> Interactions:
    assert log.action is not None
    action = log.action.replace(changed) if changed else log.action
    return replace(log, action=action.cast(pl.Enum(names), strict=False))  # missing actions become null


def counts_of_actions(log: Log, missing: str | None = "") -> dict[str, int]:
    """Action → number of interactions, the most frequent first.

    Args:
        missing: stands for interactions without an action; None: these are not counted.
    """
    if "action" not in log.columns:
        return {}
    counts = pl.concat(log.partitions.map(_counts_of_actions)).group_by("action").agg(pl.col("count").sum())
    counts = counts.drop_nulls() if missing is None else counts.with_columns(pl.col("action").fill_null(missing))
    counts = counts.group_by("action").agg(pl.col("count").sum())  # an empty text is missing too
    return dict(counts.sort("count", "action", descending=[True, False]).iter_rows())


def _counts_of_actions(log: Interactions) -> pl.DataFrame:
    assert log.action is not None
    counts = log.action.alias("action").value_counts()
    return counts.with_columns(pl.col("action").cast(pl.String), pl.col("count").cast(pl.Int64))


def names_of_actions(counts: dict[str, int], actions: tuple[str, ...], option: str) -> list[str]:
    """The actions that an option names, in the spelling of the file.

    Args:
        counts: those of `counts_of_actions`; empty if there is no column of actions.
    """
    if not counts:
        raise UserError(f"{option}: no column of actions was found; name it with --action-column")
    known = [name for name in counts if name]
    spelling = {name.casefold(): name for name in known}
    wanted = []
    for given in actions:
        for action in [given] if given.strip().casefold() in spelling else given.split(","):
            if action.strip().casefold() not in spelling:
                raise UserError(f"{option} {action}: no interaction has this action; {nearest(action, known)}")
            wanted.append(spelling[action.strip().casefold()])
    return wanted


def with_actions(log: Interactions, names: list[str]) -> np.ndarray:
    """bool (N,): whether the action of an interaction is one of `names`."""
    assert log.action is not None
    return log.action.cast(pl.String).is_in(names).fill_null(False).to_numpy()


def in_histories(
    log: Log, actions: tuple[str, ...] | None, place: str, preferences: bool = True
) -> tuple[list[str] | None, tuple[str, ...]]:
    """The names of the actions that enter the histories, None if all do; and warnings.

    Args:
        actions: --positive-actions; None if the user gave none.
        place: what a message begins with.
        preferences: whether a message names the options of preference rows.

    Raises:
        UserError: there are several actions, and the user did not say which ones; or an action is unknown.
    """
    counts = counts_of_actions(log)
    if actions is not None and not (actions == (ALL,) and counts and ALL not in counts):
        return names_of_actions(counts, actions, "--positive-actions"), ()
    if actions is not None or len(counts) < 2:
        only = next(iter(counts), "")
        warning = (
            f"{place}: column {log.columns['action']!r} has {only!r} in every row, and all of them enter the histories"
            if actions is None and (is_negative(only) or is_removal(only))
            else ""
        )
        return None, (warning,) if warning else ()
    raise UserError(_question(counts, f"{place}: column {log.columns['action']!r}", preferences))


def _question(counts: dict[str, int], place: str, preferences: bool) -> str:
    """Asks which actions form the histories."""
    shown = ", ".join(f"{name or '(empty)'} ({count:,})" for name, count in list(counts.items())[:MOST_LISTED])
    more = f" and {len(counts) - MOST_LISTED:,} others" if len(counts) > MOST_LISTED else ""
    found = f"{place} holds {len(counts):,} different actions: {shown}{more}"
    if len(counts) > 2 and all(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in counts if name):
        found += " (if these are ratings, name the column with --rating-column)"
    every = f"--positive-actions {ALL} if every row is a choice of the user"
    if len(counts) > MOST_ACTIONS:
        return f"{found}; these do not look like actions: name another column with --action-column, or give {every}"
    named = [name for name in counts if name]
    negative = [name for name in named if is_negative(name)]
    others = [name for name in named if name not in negative and not is_removal(name)]
    positive = [name for name in others if not is_view(name)] or others
    if not positive:
        return f"{found}; name those that form the histories with --positive-actions, or give {every}"
    chosen = " ".join(map(shlex.quote, positive))
    text = f"{found}; say which of them form the histories: for example --positive-actions {chosen}"
    if negative and preferences:
        rejected = " ".join(map(shlex.quote, negative))
        text += f" (and for preference rows --chosen-actions {chosen} --rejected-actions {rejected})"
    return f"{text}, or {every}"


def _without_point_zero(name: str) -> str:
    return re.sub(r"^(-?\d+)\.0+$", r"\1", name)
