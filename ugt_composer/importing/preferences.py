"""Preference rows: decides which interactions are chosen or rejected, and turns their pairs into rows."""

import functools
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ugt_composer.errors import UserError
from ugt_composer.importing.actions import counts_of_actions, names_of_actions, with_actions
from ugt_composer.importing.corpus import Corpus, UserHistories
from ugt_composer.importing.draws import Draws
from ugt_composer.importing.interactions import Interactions
from ugt_composer.importing.pairs import NEVER, Log, PairLimits, Pairs, levels_of_ratings, make_pairs, two_levels
from ugt_composer.importing.quality import prefix_numbers
from ugt_composer.importing.ratings import Ratings, ratings_of
from ugt_composer.importing.settings import PreferenceSettings
from ugt_composer.importing.splits import TRAIN, Ranges
from ugt_composer.importing.timeline import Timeline, parts_of_partition

# Fractions of the largest rating: 4 and 2 of 5 stars, 8 and 4 of 10.
CHOSEN_FRACTION, REJECTED_FRACTION = 0.8, 0.4

MOST_RATINGS = 100  # different ones with --rating-gap, each of which is a pass over the interactions
ACTIONS_INSTEAD = "; actions are paired with --chosen-actions and --rejected-actions"
FILES = ("train_preference.jsonl", "validation_preference.jsonl")


@dataclass(frozen=True)
class PreferenceRows:
    """R rows.

    Attributes:
        histories: ranges of the timeline.
        chosen: int (R,) item numbers.
        rejected: int (R, K) item numbers; −1 where there are fewer than K. The first column is always an item.
        seconds: int (R,): the time of the pair's earliest interaction, up to which the history goes. It says nothing
            about which one was chosen, as the time of the choice itself would. None: not written.
    """

    histories: Ranges
    chosen: np.ndarray
    rejected: np.ndarray
    seconds: np.ndarray | None

    def __len__(self) -> int:
        return len(self.chosen)


@dataclass(frozen=True)
class ByActions:
    """Names of actions that are chosen and rejected."""

    chosen: list[str]
    rejected: list[str]

    def levels(self, log: Interactions) -> tuple[np.ndarray, np.ndarray]:
        """`Log.chosen` and `Log.rejected`."""
        return two_levels(with_actions(log, self.chosen), with_actions(log, self.rejected))


@dataclass(frozen=True)
class ByGap:
    """All different ratings, and how much lower a rejected one is."""

    values: np.ndarray
    gap: float

    def levels(self, log: Interactions) -> tuple[np.ndarray, np.ndarray]:
        """`Log.chosen` and `Log.rejected`."""
        assert log.rating is not None
        return levels_of_ratings(log.rating, self.values, self.gap)


@dataclass(frozen=True)
class ByThresholds:
    """The lowest rating that is chosen, and the highest that is rejected."""

    chosen_min: float
    rejected_max: float

    def levels(self, log: Interactions) -> tuple[np.ndarray, np.ndarray]:
        """`Log.chosen` and `Log.rejected`. Ratings are float32, so the thresholds are compared as float32 too."""
        assert log.rating is not None
        return two_levels(log.rating >= np.float32(self.chosen_min), log.rating <= np.float32(self.rejected_max))


Levels = ByActions | ByGap | ByThresholds


@dataclass(frozen=True)
class PreferenceRule:
    """How preference rows are made, for all partitions.

    Attributes:
        levels: None: there are no preference rows.
        limits: of the pairs.
        meaning: int (I,): equal for items that share a semantic ID, which no preference can distinguish.
        seed: of the draws.
        facts: for the report.
    """

    levels: Levels | None
    limits: PairLimits
    meaning: np.ndarray
    seed: int
    facts: dict[str, Any]

    def pairs(self, partition: UserHistories, of_validation: Draws, of_training: Draws) -> tuple[Pairs, Pairs]:
        """For training and validation."""
        assert self.levels is not None
        chosen, rejected = self.levels.levels(partition.log)
        log = Log(
            user=partition.log.user,
            meaning=self.meaning[partition.log.item],
            part=parts_of_partition(partition),
            positive=partition.positive,
            chosen=chosen,
            rejected=rejected,
        )
        return make_pairs(log, partition.held_out_user, self.limits, of_validation, of_training)


def make_preference_rule(corpus: Corpus, ids: np.ndarray, settings: PreferenceSettings) -> PreferenceRule:
    """Args:
    ids: int (I, 3) semantic IDs; items that share one never form a pair.
    """
    by_users = corpus.held_out_users > 0
    limits = PairLimits(settings.window, settings.rejected_per_chosen, settings.pairs_per_user, by_users)
    levels, facts = (None, {"why_none": "--no-preferences"}) if settings.off else _levels(corpus, settings)
    if levels is not None:
        chosen, rejected = corpus.partitions.sum(_count_levels, levels).tolist()
        validation_by = "held-out users" if by_users else "later pairs"
        facts |= {"chosen": chosen, "rejected": rejected, "validation_by": validation_by}
    return PreferenceRule(levels, limits, prefix_numbers(ids), settings.seed, facts)


def _count_levels(partition: UserHistories, levels: Levels) -> np.ndarray:
    chosen, rejected = levels.levels(partition.log)
    return np.array([(chosen >= 0).sum(), (rejected < NEVER).sum()])


def _levels(corpus: Corpus, settings: PreferenceSettings) -> tuple[Levels | None, dict[str, Any]]:
    """How it is decided what is chosen or rejected, None if there is nothing to decide by, and facts on this."""
    if settings.chosen_actions is not None and settings.rejected_actions is not None:
        counts = counts_of_actions(corpus.log)
        chosen = names_of_actions(counts, settings.chosen_actions, "--chosen-actions")
        rejected = names_of_actions(counts, settings.rejected_actions, "--rejected-actions")
        actions = {"chosen_actions": settings.chosen_actions, "rejected_actions": settings.rejected_actions}
        return ByActions(chosen, rejected), actions
    ratings = trained_ratings = ratings_of(np.zeros(0, np.float32))
    if "rating" in corpus.log.columns:
        both = corpus.partitions.map(_ratings)
        ratings, trained_ratings = (functools.reduce(operator.add, some) for some in zip(*both, strict=True))
    if not len(ratings.values):
        if asked := settings.rating_options():
            raise UserError(f"{', '.join(asked)}: no column of ratings was found; see --rating-column")
        return None, {"why_none": "no ratings" + (ACTIONS_INSTEAD if "action" in corpus.log.columns else "")}
    if settings.rating_gap is not None:
        if len(ratings.values) > MOST_RATINGS:
            raise UserError(
                f"--rating-gap: found {len(ratings.values):,} different ratings, expected at most {MOST_RATINGS}"
            )
        return ByGap(ratings.values, settings.rating_gap), {"rating_gap": settings.rating_gap}
    thresholds = settings.chosen_min, settings.rejected_max
    # What is held out decides nothing about training pairs.
    trained = trained_ratings.values
    if not len(trained) and None in thresholds:
        return None, {"why_none": "no training interaction has a rating; give --chosen-min and --rejected-max"}
    largest = float(trained.max()) if len(trained) else 0.0
    if largest <= 0 and None in thresholds:
        return None, {"why_none": f"the largest rating is {largest:g}; give --chosen-min and --rejected-max"}
    chosen_min = CHOSEN_FRACTION * largest if settings.chosen_min is None else settings.chosen_min
    rejected_max = REJECTED_FRACTION * largest if settings.rejected_max is None else settings.rejected_max
    if rejected_max >= chosen_min:
        raise UserError(f"--rejected-max {rejected_max:g} is not below --chosen-min {chosen_min:g}")
    return ByThresholds(chosen_min, rejected_max), {"chosen_min": chosen_min, "rejected_max": rejected_max}


def _ratings(partition: UserHistories) -> tuple[Ratings, Ratings]:
    """All ratings, and those of training interactions."""
    assert partition.log.rating is not None
    trained = (parts_of_partition(partition) == TRAIN) & ~partition.held_out_user[partition.log.user]
    return ratings_of(partition.log.rating), ratings_of(partition.log.rating[trained])


def preference_rows(partition: UserHistories, pairs: Pairs, timeline: Timeline) -> PreferenceRows:
    user = partition.log.user[pairs.chosen].astype(np.int64)
    rejected = np.where(pairs.rejected < 0, -1, partition.log.item[pairs.rejected])
    seconds = None if timeline.seconds is None else timeline.seconds[pairs.earliest]
    return PreferenceRows(timeline.before(user, pairs.earliest), partition.log.item[pairs.chosen], rejected, seconds)
