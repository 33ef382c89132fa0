"""What a split leads to: parts without rows, targets that cannot be recommended, training later than testing."""

import numpy as np

from ugt_composer.importing.corpus import Corpus
from ugt_composer.importing.repeats import previous_occurrence
from ugt_composer.importing.settings import EVERYTHING, SplitSettings
from ugt_composer.importing.splits import PARTS, TEST, TIME, Ranges
from ugt_composer.importing.timeline import Timeline


def training_after_test(corpus: Corpus) -> float | None:
    """The fraction of training interactions that are later than the median test interaction; None without times."""
    if corpus.log.time is None:
        return None
    time = corpus.log.time[corpus.positive]
    test = time[corpus.part == TEST]
    trained = time[corpus.trained]
    return round(float((trained > np.median(test)).mean()), 4) if len(test) and len(trained) else None


def unreachable_targets(corpus: Corpus, timeline: Timeline, parts: dict[str, Ranges]) -> dict[str, int]:
    """Name of a part → how many of its targets are in the history of their row, which exclude_seen leaves out."""
    if not corpus.facts["repeats"]["interactions"] and not timeline.facts["not_positive"]:
        return dict.fromkeys(parts, 0)
    previous = previous_occurrence(timeline.user, timeline.histories.item)
    histories = {name: timeline.before_targets(targets) for name, targets in parts.items()}
    return {name: int((previous[rows.stop] >= rows.start).sum()) for name, rows in histories.items()}


def about_unreachable(counts: dict[str, int], parts: dict[str, Ranges], history: str) -> tuple[str, ...]:
    shown = [f"{count:,} of {len(parts[name]):,} {name} targets" for name, count in counts.items() if count]
    if not shown:
        return ()
    way_out = "--repeats first keeps only the first interaction with an item"
    if history == EVERYTHING:
        way_out += ", --history positive leaves out what came before the user liked an item, such as impressions of it"
    return (
        f"{' and '.join(shown)} are already in the history of their row; an evaluation that excludes seen items "
        f"(exclude_seen) can never recommend them; {way_out}",
    )


def about_others(corpus: Corpus, timeline: Timeline, parts: dict[str, Ranges]) -> tuple[str, ...]:
    """A warning if --history all adds nothing to histories, or what was at the same time as the target."""
    time = corpus.log.time
    if timeline.facts["hold"] == EVERYTHING and not timeline.facts["not_positive"]:
        return (
            "--history all: histories are the same as with --history positive, because every interaction is positive; "
            "choose what is positive with --min-rating or --positive-actions",
        )
    if not timeline.facts["not_positive"] or time is None or time.min() == time.max():
        return ()
    user, time = corpus.log.user[timeline.included], time[timeline.included]
    is_new = np.concatenate([[True], (user[1:] != user[:-1]) | (time[1:] != time[:-1])])
    start = np.flatnonzero(is_new)[np.cumsum(is_new) - 1]  # the first interaction of the same user and time
    others = np.concatenate([[0], np.cumsum(~corpus.positive[timeline.included])])
    places = {name: timeline.before_targets(targets).stop for name, targets in parts.items()}
    counts = {name: int((others[at] > others[start[at]]).sum()) for name, at in places.items()}
    shown = [f"{count:,} of {len(parts[name]):,} {name} rows" for name, count in counts.items() if count]
    if not shown:
        return ()
    return (
        f"--history all: the histories of {' and '.join(shown)} hold interactions that are not positive and have the "
        "target's timestamp, in the order of the file, such as impressions on the same page; if these are not known "
        "before the recommendation is made, give later timestamps to them, or --history positive",
    )


def why_no_training(corpus: Corpus, split: SplitSettings) -> str:
    """Why no user has two training interactions."""
    users = len(corpus.held_out_user)
    if corpus.held_out_user.all():
        return f"--held-out-users {split.held_out_users:g} keeps all {users:,} users out of training; lower it"
    if split.split == TIME:
        return f"--validation-from {split.validation_from}: {_before(corpus)}; choose a later point"
    most = int(np.diff(corpus.offsets)[~corpus.held_out_user].max())
    taken = "" if most < split.min_interactions else ", of which the last two are for validation and test"
    return (
        f"no user has two interactions to train on: the longest history of {users:,} users has {most} "
        f"interaction{'s' if most > 1 else ''}{taken}; see --min-interactions, --min-rating and --positive-actions"
    )


def about_empty_parts(corpus: Corpus, split: SplitSettings, parts: dict[str, Ranges]) -> tuple[str, ...]:
    """Warnings about validation and test parts without rows, with the option that causes it."""
    return tuple(
        f"{name}.jsonl has no rows: {_why_empty(name, corpus, split)}" for name, rows in parts.items() if not len(rows)
    )


def _why_empty(name: str, corpus: Corpus, split: SplitSettings) -> str:
    if split.split == TIME:
        count = int((corpus.part == PARTS.index(name)).sum())
        if count:
            return f"its {count:,} interactions are the first ones of their users, so there is no history before them"
        bounds = f"--validation-from {split.validation_from} and --test-from {split.test_from}"
        return f"no interaction is in that part of the time; {bounds}, the interactions are {_range(corpus)}"
    counts = np.diff(corpus.offsets)
    return (
        f"no user has the {split.min_interactions} interactions of --min-interactions (the longest history has "
        f"{counts.max()}); lower it, or add interactions"
    )


def _before(corpus: Corpus) -> str:
    count = int(corpus.trained.sum())
    found = "there is no interaction before it" if not count else "no user has two interactions before it"
    return f"{found}; the interactions are {_range(corpus)}"


def _range(corpus: Corpus) -> str:
    times = corpus.facts["times"]
    return f"from {times['first']} to {times['last']}"
