"""What rows are made of: the interactions that histories hold, with their actions and times.

N interactions of U users, grouped by user, oldest first. P of them are positive and can be targets; E of them, the
positive ones and maybe others, are in histories.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ugt_composer.importing import signals
from ugt_composer.importing.corpus import Corpus
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
        action_names: the name of action 1, 2, ….
        facts: values for the report.
    """

    included: np.ndarray
    user: np.ndarray
    offsets: np.ndarray
    place: np.ndarray | None
    histories: Tokens
    targets: Tokens
    seconds: np.ndarray | None
    max_history: int
    action_names: tuple[str, ...]
    facts: dict[str, Any]

    def before_targets(self, targets: Ranges) -> Ranges:
        """The histories, as ranges of the E interactions, of targets that are ranges of the P positive ones."""
        return self._until(targets.user, targets.start if self.place is None else self.place[targets.start])

    def before(self, user: np.ndarray, interaction: np.ndarray) -> Ranges:
        """The histories of users int (R,) before interactions int64 (R,), which are numbers from 0 to N − 1."""
        return self._until(user, np.searchsorted(np.flatnonzero(self.included), interaction))

    def _until(self, user: np.ndarray, stop: np.ndarray) -> Ranges:
        return Ranges(user, np.maximum(self.offsets[user], stop - self.max_history), stop)


def make_timeline(corpus: Corpus, settings: RowSettings, repeats: str) -> Timeline:
    """The interactions of histories, as --history, --signals and --repeats choose them."""
    log, positive = corpus.log, corpus.positive
    included = positive if settings.history == POSITIVE else positive | _others(corpus, repeats)
    only_positive = int(included.sum()) == len(corpus.user)
    facts: dict[str, Any] = {"hold": settings.history, "interactions": int(included.sum())}
    facts["not_positive"] = facts["interactions"] - len(corpus.user)
    actions = seconds = None
    if settings.signals in (signals.ALL, signals.ACTIONS):
        trained = included & (parts_of_corpus(corpus) == TRAIN) & ~corpus.held_out_user[log.user]
        actions = signals.actions_of(log, trained)
    if settings.signals in (signals.ALL, signals.TIMES):
        seconds, why_none = signals.seconds_of(log)
        facts |= {"why_no_times": why_none} if seconds is None else {"times": _range_of(seconds[included])}
    user, item = (corpus.user, corpus.item) if only_positive else (_only(log.user, included), _only(log.item, included))
    number = None if actions is None else _only(actions.number, included)
    histories = Tokens(item, number, None if seconds is None else _only(seconds, included))
    targets = histories
    if not only_positive:
        targets = Tokens(corpus.item, None, None if seconds is None else seconds[positive])
    if actions is not None and number is not None:
        counts = np.bincount(number, minlength=len(actions.names) + 1).tolist()
        facts["actions"] = dict(zip(actions.names, counts[1:], strict=True))
        facts["without_action"] = counts[0]
    return Timeline(
        included=included,
        user=user,
        offsets=corpus.offsets if only_positive else user_offsets(user, len(log.users)),
        place=None if only_positive else np.flatnonzero(_only(positive, included)),
        histories=histories,
        targets=targets,
        seconds=seconds,
        max_history=settings.max_history,
        action_names=() if actions is None else actions.names,
        facts=facts,
    )


def parts_of_corpus(corpus: Corpus) -> np.ndarray:
    """(N,) the part of each interaction, whether it is positive or not."""
    if "validation_from" in corpus.facts:
        assert corpus.log.time is not None
        return by_time(corpus.log.time, corpus.facts["validation_from"], corpus.facts["test_from"])
    return parts_of_log(corpus.log.user, corpus.positive, corpus.part)


def _others(corpus: Corpus, repeats: str) -> np.ndarray:
    """bool (N,): what is not positive by rating or action. Of these, too, --repeats keeps one for a user and item."""
    others = ~corpus.liked
    at = np.flatnonzero(others)
    previous = previous_occurrence(corpus.log.user[at], corpus.log.item[at])
    others[at[~kept_repeats(previous, repeats)]] = False
    return others


def _range_of(seconds: np.ndarray) -> dict[str, int]:
    return {"first": int(seconds.min()), "last": int(seconds.max())}


def _only(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return values if kept.all() else values[kept]
