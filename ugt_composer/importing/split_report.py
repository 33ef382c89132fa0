"""What a split leads to: parts without rows, targets that cannot be recommended, training later than testing."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ugt_composer.importing.corpus import Corpus, UserHistories
from ugt_composer.importing.order_statistics import nth_smallest
from ugt_composer.importing.settings import EVERYTHING, SplitSettings
from ugt_composer.importing.splits import PARTS, TEST, TIME, Ranges
from ugt_composer.importing.timeline import Timeline


@dataclass(frozen=True)
class TargetCounts:
    """Counts of the held-out targets of a part, such as validation.

    Attributes:
        rows: how many there are.
        items: int64 (I,) how often each item is one.
        in_history: how many are in the history of their row.
        after_others: how many histories hold interactions that are not positive and have the target's time.
    """

    rows: int
    items: np.ndarray
    in_history: int
    after_others: int

    def __add__(self, other: "TargetCounts") -> "TargetCounts":
        return TargetCounts(
            self.rows + other.rows,
            self.items + other.items,
            self.in_history + other.in_history,
            self.after_others + other.after_others,
        )


def count_targets(
    partition: UserHistories, timeline: Timeline, previous: np.ndarray | None, targets: Ranges, items: int
) -> TargetCounts:
    """Args:
    previous: of the interactions in histories, as `previous_occurrence` has it; None if users have each item once.
    targets: ranges of the positive interactions.
    """
    histories = timeline.before_targets(targets)
    return TargetCounts(
        rows=len(targets),
        items=np.bincount(partition.item[targets.start], minlength=items),
        in_history=0 if previous is None else int((previous[histories.stop] >= histories.start).sum()),
        after_others=_count_after_others(partition, timeline, histories),
    )


def _count_after_others(partition: UserHistories, timeline: Timeline, histories: Ranges) -> int:
    """How many histories end with interactions that are not positive at the time of what follows them."""
    if partition.log.time is None or timeline.place is None:
        return 0
    user, time = partition.log.user[timeline.included], partition.log.time[timeline.included]
    is_new = np.concatenate([[True], (user[1:] != user[:-1]) | (time[1:] != time[:-1])])
    start = np.flatnonzero(is_new)[np.cumsum(is_new) - 1]  # the first interaction of the same user and time
    others = np.concatenate([[0], np.cumsum(~partition.positive[timeline.included])])
    return int((others[histories.stop] > others[start[histories.stop]]).sum())


def training_after_test(corpus: Corpus) -> float | None:
    """The fraction of training interactions that are later than the median test interaction; None without times."""
    tests, trained = int(corpus.counts.parts[TEST]), corpus.counts.trained
    if not corpus.timed or not tests or not trained:
        return None
    median = np.mean(nth_smallest(corpus.partitions, _test_times, lambda count: [(count - 1) // 2, count // 2]))
    return round(corpus.partitions.sum(_count_trained_after, median) / trained, 4)


def _positive_times(partition: UserHistories) -> np.ndarray:
    assert partition.log.time is not None
    return partition.log.time[partition.positive]


def _test_times(partition: UserHistories) -> np.ndarray:
    return _positive_times(partition)[partition.part == TEST]


def _count_trained_after(partition: UserHistories, time: float) -> int:
    return int((_positive_times(partition)[partition.trained] > time).sum())


def about_unreachable(parts: dict[str, TargetCounts], history: str) -> tuple[str, ...]:
    shown = [f"{part.in_history:,} of {part.rows:,} {name} targets" for name, part in parts.items() if part.in_history]
    if not shown:
        return ()
    way_out = "--repeats first keeps only the first interaction with an item"
    if history == EVERYTHING:
        way_out += ", --history positive leaves out what came before the user liked an item, such as impressions of it"
    return (
        f"{' and '.join(shown)} are already in the history of their row; an evaluation that excludes seen items "
        f"(exclude_seen) can never recommend them; {way_out}",
    )


def about_others(histories: dict[str, Any], one_time: bool, parts: dict[str, TargetCounts]) -> tuple[str, ...]:
    """A warning if --history all adds nothing to histories, or what was at the same time as the target.

    Args:
        histories: facts about them.
        one_time: there are no different times.
    """
    if histories["hold"] == EVERYTHING and not histories["not_positive"]:
        return (
            "--history all: histories are the same as with --history positive, because every interaction is positive; "
            "choose what is positive with --min-rating or --positive-actions",
        )
    shown = [f"{part.after_others:,} of {part.rows:,} {name} rows" for name, part in parts.items() if part.after_others]
    if not shown or one_time:
        return ()
    return (
        f"--history all: the histories of {' and '.join(shown)} hold interactions that are not positive and have the "
        "target's timestamp, in the order of the file, such as impressions on the same page; if these are not known "
        "before the recommendation is made, give later timestamps to them, or --history positive",
    )


def why_no_training(corpus: Corpus, split: SplitSettings) -> str:
    """Why no user has two training interactions."""
    users = corpus.users
    if corpus.held_out_users == users:
        return f"--held-out-users {split.held_out_users:g} keeps all {users:,} users out of training; lower it"
    if split.split == TIME:
        return f"--validation-from {split.validation_from}: {_before(corpus)}; choose a later point"
    most = corpus.counts.longest_trained
    taken = "" if most < split.min_interactions else ", of which the last two are for validation and test"
    return (
        f"no user has two interactions to train on: the longest history of {users:,} users has {most} "
        f"interaction{'s' if most > 1 else ''}{taken}; see --min-interactions, --min-rating and --positive-actions"
    )


def about_empty_parts(corpus: Corpus, split: SplitSettings, parts: dict[str, TargetCounts]) -> tuple[str, ...]:
    """Warnings about validation and test parts without rows, with the option that causes it."""
    return tuple(
        f"{name}.jsonl has no rows: {_why_empty(name, corpus, split)}" for name, part in parts.items() if not part.rows
    )


def _why_empty(name: str, corpus: Corpus, split: SplitSettings) -> str:
    if split.split == TIME:
        count = int(corpus.counts.parts[PARTS.index(name)])
        if count:
            return f"its {count:,} interactions are the first ones of their users, so there is no history before them"
        bounds = f"--validation-from {split.validation_from} and --test-from {split.test_from}"
        return f"no interaction is in that part of the time; {bounds}, the interactions are {_range(corpus)}"
    return (
        f"no user has the {split.min_interactions} interactions of --min-interactions (the longest history has "
        f"{corpus.counts.longest}); lower it, or add interactions"
    )


def _before(corpus: Corpus) -> str:
    count = corpus.counts.trained
    found = "there is no interaction before it" if not count else "no user has two interactions before it"
    return f"{found}; the interactions are {_range(corpus)}"


def _range(corpus: Corpus) -> str:
    times = corpus.facts["times"]
    return f"from {times['first']} to {times['last']}"
