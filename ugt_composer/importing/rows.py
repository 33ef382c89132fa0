"""The rows of a partition's users: which there are, counts of them, and their files.

I items. Files are named like those of an import, such as `train.jsonl`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import polars as pl

from ugt_composer.importing.corpus import Corpus, UserHistories
from ugt_composer.importing.draws import Draws
from ugt_composer.importing.jsonl import preference_blocks, recommend_blocks
from ugt_composer.importing.partitions import Partitions
from ugt_composer.importing.preferences import FILES as PREFERENCE_FILES
from ugt_composer.importing.preferences import PreferenceRows, PreferenceRule, preference_rows
from ugt_composer.importing.repeats import previous_occurrence
from ugt_composer.importing.settings import RowSettings
from ugt_composer.importing.signals import count_clipped_times
from ugt_composer.importing.split_report import TargetCounts, count_targets
from ugt_composer.importing.splits import TEST, VALIDATION, Ranges, held_out_targets, training_targets
from ugt_composer.importing.timeline import HistoryCounts, HistoryRule, Timeline, count_histories, make_timeline
from ugt_composer.jsonl.schema import PREFERENCE, RECOMMEND

TRAIN_FILE = "train.jsonl"
HELD_OUT = {"validation.jsonl": VALIDATION, "test.jsonl": TEST}


@dataclass(frozen=True)
class RowRule:
    """How rows are made, for all partitions.

    Attributes:
        items: I.
        may_repeat: some users have a positive item more than once.
    """

    settings: RowSettings
    histories: HistoryRule
    preferences: PreferenceRule
    items: int
    may_repeat: bool


@dataclass(frozen=True)
class Skipped:
    """How many random numbers earlier partitions have drawn for each purpose."""

    training: int = 0
    validation_pairs: int = 0
    training_pairs: int = 0


@dataclass(frozen=True)
class UserRows:
    """The rows of a partition.

    Attributes:
        users: text (U,).
        timeline: what histories hold.
        recommend: file → targets.
        preferences: file → rows.
        counts: of these.
    """

    users: pl.Series
    timeline: Timeline
    recommend: dict[str, Ranges]
    preferences: dict[str, PreferenceRows]
    counts: "RowCounts"


@dataclass(frozen=True)
class RowCounts:
    """Counts for the report.

    Attributes:
        rows: of each file.
        earlier: of each file, rows whose history lacks earlier items of its user.
        histories: of the interactions in histories.
        targets: of the held-out files.
        interactions: all of them.
        clipped: those whose time rows cannot hold.
    """

    rows: Counter[str]
    earlier: Counter[str]
    histories: HistoryCounts
    targets: dict[str, TargetCounts]
    interactions: int
    clipped: int

    @property
    def files(self) -> list[str]:
        """Those that are written: preference files only if they have rows."""
        always = (TRAIN_FILE, *HELD_OUT)
        return [*always, *(name for name in PREFERENCE_FILES if self.rows[name])]

    def __add__(self, other: "RowCounts") -> "RowCounts":
        return RowCounts(
            self.rows + other.rows,
            self.earlier + other.earlier,
            self.histories + other.histories,
            {name: counts + other.targets[name] for name, counts in self.targets.items()},
            self.interactions + other.interactions,
            self.clipped + other.clipped,
        )


def make_rows(corpus: Corpus, rule: RowRule) -> Partitions[UserRows]:
    """The rows of all partitions."""
    return corpus.partitions.transform(_make_rows, rule, each=_skipped(corpus.partitions, rule)).kept()


def _skipped(partitions: Partitions[UserHistories], rule: RowRule) -> list[Skipped]:
    """Of each partition. Training pairs depend on validation pairs, so these are counted one after the other."""
    if len(partitions) == 1:
        return [Skipped()]
    training = _before(partitions.map(_count_training_draws, rule.settings))
    skipped = [Skipped(number) for number in training]
    if rule.preferences.levels is None:
        return skipped
    validation = _before([count for count, _ in partitions.map(_count_pair_draws, rule, each=skipped)])
    skipped = [Skipped(*numbers) for numbers in zip(training, validation, strict=True)]
    pairs = _before([count for _, count in partitions.map(_count_pair_draws, rule, each=skipped)])
    return [Skipped(*numbers) for numbers in zip(training, validation, pairs, strict=True)]


def _before(counts: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(counts[:-1]).tolist()]


def _count_training_draws(partition: UserHistories, settings: RowSettings) -> int:
    draws = Draws(settings.seed)
    _training(partition, settings, draws)
    return draws.count


def _count_pair_draws(partition: UserHistories, skipped: Skipped, rule: RowRule) -> tuple[int, int]:
    draws = _pair_draws(rule, skipped)
    rule.preferences.pairs(partition, *draws)
    return draws[0].count, draws[1].count


def _pair_draws(rule: RowRule, skipped: Skipped) -> tuple[Draws, Draws]:
    seed = rule.preferences.seed
    return Draws(seed, skipped.validation_pairs, stream=0), Draws(seed, skipped.training_pairs, stream=1)


def _training(partition: UserHistories, settings: RowSettings, draws: Draws) -> Ranges:
    cuts, most = settings.cuts_per_user, settings.max_targets
    return training_targets(partition.trained, partition.offsets, cuts, most, draws)


def _make_rows(partition: UserHistories, skipped: Skipped, rule: RowRule) -> UserRows:
    timeline = make_timeline(partition, rule.histories)
    recommend = {TRAIN_FILE: _training(partition, rule.settings, Draws(rule.settings.seed, skipped.training))}
    for name, part in HELD_OUT.items():
        first = not rule.settings.every_target
        recommend[name] = held_out_targets(partition.part, part, partition.user, partition.offsets, first)
    preferences: dict[str, PreferenceRows] = {}
    if rule.preferences.levels is not None:
        pairs = rule.preferences.pairs(partition, *_pair_draws(rule, skipped))
        made = [preference_rows(partition, some, timeline) for some in pairs]
        preferences = dict(zip(PREFERENCE_FILES, made, strict=True))
    counts = _count_rows(partition, timeline, recommend, preferences, rule)
    return UserRows(partition.log.users, timeline, recommend, preferences, counts)


def _count_rows(
    partition: UserHistories,
    timeline: Timeline,
    recommend: Mapping[str, Ranges],
    preferences: Mapping[str, PreferenceRows],
    rule: RowRule,
) -> RowCounts:
    previous = None
    if rule.may_repeat or timeline.place is not None:
        previous = previous_occurrence(timeline.user, timeline.histories.item)
    histories = {name: timeline.before_targets(targets) for name, targets in recommend.items()}
    earlier = {name: int((ranges.start > timeline.offsets[ranges.user]).sum()) for name, ranges in histories.items()}
    time, unit = partition.log.time, rule.histories.unit
    files: dict[str, Ranges | PreferenceRows] = {**recommend, **preferences}
    return RowCounts(
        rows=Counter(dict(zip(files, map(len, files.values()), strict=True))),
        earlier=Counter(earlier),
        histories=count_histories(timeline, rule.histories),
        targets={name: count_targets(partition, timeline, previous, recommend[name], rule.items) for name in HELD_OUT},
        interactions=len(partition.log),
        clipped=0 if unit is None or time is None else count_clipped_times(time, unit),
    )


def count_rows(rows: Partitions[UserRows]) -> RowCounts:
    return rows.sum(_counts_of)


def _counts_of(rows: UserRows) -> RowCounts:
    return rows.counts


@dataclass(frozen=True)
class Ids:
    """Semantic IDs of the items.

    Attributes:
        ids: int (I, 3).
        members: int (I,) which of the items that share its ID each item is; None if no two share one.
        codebook_sizes: one per level.
    """

    ids: np.ndarray
    members: np.ndarray | None
    codebook_sizes: tuple[int, ...]


def kind_of(name: str) -> str:
    """The kind of the rows of a file."""
    return PREFERENCE if name in PREFERENCE_FILES else RECOMMEND


def row_blocks(rows: UserRows, name: str, ids: Ids, counts: RowCounts) -> Iterator[pl.DataFrame]:
    """The rows of a file, in blocks that have the keys of JSON Lines as columns.

    Args:
        counts: of all partitions.
    """
    timeline = rows.timeline
    if name in rows.preferences:
        return preference_blocks(rows.preferences[name], timeline.histories, rows.users, ids.ids)
    targets = rows.recommend[name]
    tokens = timeline.before_targets(targets), timeline.histories, targets, timeline.targets
    offsets = timeline.offsets if counts.earlier[name] else None
    members = ids.members if name in HELD_OUT else None  # for evaluation
    return recommend_blocks(*tokens, rows.users, ids.ids, offsets, members)


def write_rows(blocks: Iterator[pl.DataFrame], file: IO[bytes]) -> None:
    """Writes rows as JSON Lines."""
    for block in blocks:
        block.write_ndjson(file)
