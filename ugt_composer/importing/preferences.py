"""Preference rows of a corpus: decides which interactions are chosen or rejected, and turns their pairs into rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ugt_composer.errors import UserError
from ugt_composer.importing.actions import with_actions
from ugt_composer.importing.corpus import Corpus
from ugt_composer.importing.pairs import NEVER, Log, Pairs, levels_of_ratings, make_pairs, two_levels
from ugt_composer.importing.quality import prefix_numbers
from ugt_composer.importing.settings import PreferenceSettings
from ugt_composer.importing.splits import TRAIN, Ranges
from ugt_composer.importing.timeline import Timeline, parts_of_corpus

# Fractions of the largest rating: 4 and 2 of 5 stars, 8 and 4 of 10.
CHOSEN_FRACTION, REJECTED_FRACTION = 0.8, 0.4

MOST_RATINGS = 100  # different ones with --rating-gap, each of which is a pass over the interactions
ACTIONS_INSTEAD = "; actions are paired with --chosen-actions and --rejected-actions"


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


def preference_rows(
    corpus: Corpus, ids: np.ndarray, settings: PreferenceSettings, timeline: Timeline
) -> tuple[dict[str, PreferenceRows], dict[str, Any]]:
    """Returns file name → rows, for training and validation if there are any, and facts for the report.

    Args:
        ids: int (I, 3) semantic IDs; items that share one never form a pair.
    """
    if settings.off:
        return {}, {"why_none": "--no-preferences"}
    levels, facts = _levels(corpus, settings)
    if levels is None:
        return {}, facts
    chosen, rejected = levels
    log = Log(
        user=corpus.log.user,
        meaning=prefix_numbers(ids)[corpus.log.item],
        part=parts_of_corpus(corpus),
        positive=corpus.positive,
        chosen=chosen,
        rejected=rejected,
    )
    pairs = make_pairs(
        log,
        corpus.held_out_user,
        settings.window,
        settings.rejected_per_chosen,
        settings.pairs_per_user,
        np.random.default_rng(settings.seed),
    )
    facts |= {"chosen": int((chosen >= 0).sum()), "rejected": int((rejected < NEVER).sum())}
    facts["validation_by"] = "held-out users" if corpus.held_out_user.any() else "later pairs"
    pairs_of = dict(zip(("train_preference.jsonl", "validation_preference.jsonl"), pairs, strict=True))
    return {name: _as_rows(corpus, made, timeline) for name, made in pairs_of.items() if len(made)}, facts


def _levels(
    corpus: Corpus, settings: PreferenceSettings
) -> tuple[tuple[np.ndarray, np.ndarray] | None, dict[str, Any]]:
    """`Log.chosen` and `Log.rejected`, None if there is nothing to decide by, and facts on how it was decided."""
    log = corpus.log
    if settings.chosen_actions is not None and settings.rejected_actions is not None:
        chosen = with_actions(log, settings.chosen_actions, "--chosen-actions")
        rejected = with_actions(log, settings.rejected_actions, "--rejected-actions")
        actions = {"chosen_actions": settings.chosen_actions, "rejected_actions": settings.rejected_actions}
        return two_levels(chosen, rejected), actions
    if log.rating is None or np.isnan(log.rating).all():
        if asked := settings.rating_options():
            raise UserError(f"{', '.join(asked)}: no column of ratings was found; see --rating-column")
        return None, {"why_none": "no ratings" + ("" if log.action is None else ACTIONS_INSTEAD)}
    if settings.rating_gap is not None:
        count = len(np.unique(log.rating[~np.isnan(log.rating)]))
        if count > MOST_RATINGS:
            raise UserError(f"--rating-gap: found {count:,} different ratings, expected at most {MOST_RATINGS}")
        return levels_of_ratings(log.rating, settings.rating_gap), {"rating_gap": settings.rating_gap}
    thresholds = settings.chosen_min, settings.rejected_max
    trained = (parts_of_corpus(corpus) == TRAIN) & ~corpus.held_out_user[log.user] & ~np.isnan(log.rating)
    if not trained.any() and None in thresholds:
        return None, {"why_none": "no training interaction has a rating; give --chosen-min and --rejected-max"}
    # What is held out decides nothing about training pairs.
    largest = float(log.rating[trained].max()) if trained.any() else 0.0
    if largest <= 0 and None in thresholds:
        return None, {"why_none": f"the largest rating is {largest:g}; give --chosen-min and --rejected-max"}
    chosen_min = CHOSEN_FRACTION * largest if settings.chosen_min is None else settings.chosen_min
    rejected_max = REJECTED_FRACTION * largest if settings.rejected_max is None else settings.rejected_max
    if rejected_max >= chosen_min:
        raise UserError(f"--rejected-max {rejected_max:g} is not below --chosen-min {chosen_min:g}")
    # Ratings are float32, so the thresholds are compared as float32 too.
    chosen, rejected = log.rating >= np.float32(chosen_min), log.rating <= np.float32(rejected_max)
    return two_levels(chosen, rejected), {"chosen_min": chosen_min, "rejected_max": rejected_max}


def _as_rows(corpus: Corpus, pairs: Pairs, timeline: Timeline) -> PreferenceRows:
    user = corpus.log.user[pairs.chosen].astype(np.int64)
    rejected = np.where(pairs.rejected < 0, -1, corpus.log.item[pairs.rejected])
    seconds = None if timeline.seconds is None else timeline.seconds[pairs.earliest]
    return PreferenceRows(timeline.before(user, pairs.earliest), corpus.log.item[pairs.chosen], rejected, seconds)
