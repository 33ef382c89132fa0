"""What rows are made of: the interactions that histories hold, with their actions and times.

N interactions of the U users of a partition, grouped by user, oldest first. P of them are positive and can be targets;
E of them, the positive ones and maybe others, are in histories.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ugt_composer.importing import signals
from ugt_composer.importing.corpus import Corpus, UserHistories
from ugt_composer.importing.pairs import parts_of_log
from ugt_composer.importing.repeats import kept_repeats, previous_occurrence
from ugt_composer.importing.settings import POSITIVE, RowSettings
from ugt_composer.importing.splits import TRAIN, Ranges, by_time, user_offsets


@dataclass(frozen=True)
class Tokens:
    """n interactions as tokens of rows.

    Attributes:
        item: int (n,) item numbers.
        action: int (n,) ids of actions, 0 without one; None: not written.
        seconds: int (n,) times; None: not written.
    """

    item: np.ndarray
    action: np.ndarray | None = None
    seconds: np.ndarray | None = None


@dataclass(frozen=True)
class Timeline:
    """The interactions of histories.

    Attributes:
        included: bool (N,): whether an interaction is in histories.
        user: int (E,), ascending.
        offsets: int64 (U + 1,): user u's interactions in histories are offsets[u] to offsets[u + 1].
        place: int64 (P,): the place of each positive interaction among the E; None: P = E.
        histories, targets: the tokens of the E and of the P interactions.
        seconds: int (N,) times of all interactions; None: not written.
        max_history: most items in a history.
    """

    included: np.ndarray
    user: np.ndarray
    offsets: np.ndarray
    place: np.ndarray | None
    histories: Tokens
    targets: Tokens
    seconds: np.ndarray | None
    max_history: int

    def before_targets(self, targets: Ranges) -> Ranges:
        """The histories, as ranges of the E interactions, of targets that are ranges of the P positive ones."""
        return self._until(targets.user, targets.start if self.place is None else self.place[targets.start])

    def before(self, user: np.ndarray, interaction: np.ndarray) -> Ranges:
        """The histories of users int (R,) before interactions int64 (R,), which are numbers from 0 to N − 1."""
        return self._until(user, np.searchsorted(np.flatnonzero(self.included), interaction))

    def _until(self, user: np.ndarray, stop: np.ndarray) -> Ranges:
        return Ranges(user, np.maximum(self.offsets[user], stop - self.max_history), stop)


@dataclass(frozen=True)
class HistoryRule:
    """How the interactions of histories and their signals are chosen, for all partitions.

    Attributes:
        actions: None: rows have none.
        unit: of the times that become seconds; None: rows have no times.
        why_no_times: the reason, if times were wanted.
        settings: of the rows.
        repeats: --repeats.
    """

    actions: signals.Actions | None
    unit: str | None
    why_no_times: str
    settings: RowSettings
    repeats: str

    @property
    def action_names(self) -> tuple[str, ...]:
        return () if self.actions is None else self.actions.names


@dataclass(frozen=True)
class HistoryCounts:
    """Of interactions in histories.

    Attributes:
        included: how many there are.
        first, last: their times in seconds; None: not written.
        actions: int64 (number of actions + 1,) how many have each; the first: none.
    """

    included: int
    first: int | None
    last: int | None
    actions: np.ndarray

    def __add__(self, other: "HistoryCounts") -> "HistoryCounts":
        firsts = [time for time in (self.first, other.first) if time is not None]
        lasts = [time for time in (self.last, other.last) if time is not None]
        ends = min(firsts, default=None), max(lasts, default=None)
        return HistoryCounts(self.included + other.included, *ends, self.actions + other.actions)


def make_history_rule(corpus: Corpus, settings: RowSettings, repeats: str) -> HistoryRule:
    """What histories hold, as --history, --signals and --repeats choose it."""
    partitions = corpus.partitions
    actions = unit = None
    why_none = ""
    if settings.signals in (signals.ALL, signals.ACTIONS):
        actions = signals.learned_actions(partitions.sum(_seen, settings.history, repeats))
    if settings.signals in (signals.ALL, signals.TIMES):
        why_none = signals.why_no_seconds(corpus.log, corpus.one_time)
        unit = None if why_none or corpus.log.time_form is None else corpus.log.time_form.unit
    return HistoryRule(actions, unit, why_none, settings, repeats)


def history_facts(rule: HistoryRule, counts: HistoryCounts, positive: int) -> dict[str, Any]:
    """What histories hold, for the report.

    Args:
        counts: of all partitions.
        positive: how many interactions are positive.
    """
    facts: dict[str, Any] = {"hold": rule.settings.history, "interactions": counts.included}
    facts["not_positive"] = counts.included - positive
    if rule.why_no_times:
        facts["why_no_times"] = rule.why_no_times
    elif counts.first is not None:
        facts["times"] = {"first": counts.first, "last": counts.last}
    if rule.actions is not None:
        numbers = counts.actions.tolist()
        facts["actions"] = dict(zip(rule.action_names, numbers[1:], strict=True))
        facts["without_action"] = numbers[0]
    return facts


def _included(partition: UserHistories, history: str, repeats: str) -> np.ndarray:
    """bool (N,): whether an interaction is in histories."""
    return partition.positive if history == POSITIVE else partition.positive | _others(partition, repeats)


def _seen(partition: UserHistories, history: str, repeats: str) -> signals.Seen:
    trained = _included(partition, history, repeats) & (parts_of_partition(partition) == TRAIN)
    return signals.seen_signals(partition.log, trained & ~partition.held_out_user[partition.log.user])


def count_histories(timeline: Timeline, rule: HistoryRule) -> HistoryCounts:
    seconds, numbers = timeline.histories.seconds, timeline.histories.action
    timed = seconds is not None and len(seconds) > 0
    return HistoryCounts(
        included=len(timeline.user),
        first=int(seconds.min()) if timed and seconds is not None else None,
        last=int(seconds.max()) if timed and seconds is not None else None,
        actions=np.zeros(1, np.int64)
        if numbers is None
        else np.bincount(numbers, minlength=len(rule.action_names) + 1),
    )


def make_timeline(partition: UserHistories, rule: HistoryRule) -> Timeline:
    """The interactions of a partition's histories."""
    log, positive = partition.log, partition.positive
    included = _included(partition, rule.settings.history, rule.repeats)
    only_positive = int(included.sum()) == len(partition.user)
    actions = None if rule.actions is None else rule.actions.of(log)
    seconds = None if rule.unit is None or log.time is None else signals.seconds_of(log.time, rule.unit)
    user, item = partition.user, partition.item
    if not only_positive:
        user, item = _only(log.user, included), _only(log.item, included)
    number = None if actions is None else _only(actions, included)
    histories = Tokens(item, number, None if seconds is None else _only(seconds, included))
    targets = histories
    if not only_positive:
        targets = Tokens(partition.item, None, None if seconds is None else seconds[positive])
    return Timeline(
        included=included,
        user=user,
        offsets=partition.offsets if only_positive else user_offsets(user, len(log.users)),
        place=None if only_positive else np.flatnonzero(_only(positive, included)),
        histories=histories,
        targets=targets,
        seconds=seconds,
        max_history=rule.settings.max_history,
    )


def parts_of_partition(partition: UserHistories) -> np.ndarray:
    """(N,) the part of each interaction, whether it is positive or not."""
    if partition.bounds is not None:
        assert partition.log.time is not None
        return by_time(partition.log.time, *partition.bounds)
    return parts_of_log(partition.log.user, partition.positive, partition.part)


def _others(partition: UserHistories, repeats: str) -> np.ndarray:
    """bool (N,): what is not positive by rating or action. Of these, too, --repeats keeps one for a user and item."""
    others = ~partition.liked
    at = np.flatnonzero(others)
    previous = previous_occurrence(partition.log.user[at], partition.log.item[at])
    others[at[~kept_repeats(previous, repeats)]] = False
    return others


def _only(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return values if kept.all() else values[kept]
