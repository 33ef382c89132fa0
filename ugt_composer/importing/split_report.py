"""What a split leads to: parts without rows, targets that cannot be recommended, training later than testing."""

import numpy as np

from ugt_composer.importing.corpus import Corpus
from ugt_composer.importing.repeats import previous_occurrence
from ugt_composer.importing.settings import SplitSettings
from ugt_composer.importing.splits import PARTS, TEST, TIME, Rows


def training_after_test(corpus: Corpus) -> float | None:
    """The fraction of training interactions that are later than the median test interaction; None without times."""
    if corpus.log.time is None:
        return None
    time = corpus.log.time[corpus.positive]
    test = time[corpus.part == TEST]
    trained = time[corpus.trained]
    return round(float((trained > np.median(test)).mean()), 4) if len(test) and len(trained) else None


def unreachable_targets(corpus: Corpus, parts: dict[str, Rows]) -> dict[str, int]:
    """Name of a part → how many of its targets are in the history of their row, which exclude_seen leaves out."""
    if not corpus.facts["repeats"]["interactions"]:
        return dict.fromkeys(parts, 0)
    previous = previous_occurrence(corpus.user, corpus.item)
    return {name: int((previous[rows.stop] >= rows.start).sum()) for name, rows in parts.items()}


def about_unreachable(counts: dict[str, int], parts: dict[str, Rows]) -> tuple[str, ...]:
    shown = [f"{count:,} of {len(parts[name]):,} {name} targets" for name, count in counts.items() if count]
    if not shown:
        return ()
    return (
        f"{' and '.join(shown)} are already in the history of their row; an evaluation that excludes seen items "
        "(exclude_seen) can never recommend them; --repeats first keeps only the first interaction with an item",
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


def about_empty_parts(corpus: Corpus, split: SplitSettings, parts: dict[str, Rows]) -> tuple[str, ...]:
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
