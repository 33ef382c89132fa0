"""Which runs are the stages of one model, so that they are drawn side by side, and which are drawn over each other."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ugt_composer.config.schema import Config
from ugt_composer.report.run_folder import Run


@dataclass(frozen=True)
class Stage:
    """Runs that are drawn over each other: none of them started from another one.

    Attributes:
        title: such as "Stage 2: and contrastive".
        runs: numbers of the report's runs.
    """

    title: str
    runs: list[int]


OBJECTIVES = ("next token", "next token + contrastive", "preference (DPO)", "preference (group)")


def objective(config: Config | None) -> int:
    """The number in OBJECTIVES of what a run was trained for; the first without a config."""
    if config is None:
        return 0
    loss = config.loss
    if loss.lambda_preference > 0:
        return 3 if loss.uses_group else 2
    return 1 if loss.lambda_contrastive > 0 else 0


def parents(runs: Sequence[Run]) -> list[int | None]:
    """For each run, the number of the run whose model it started from; None if that is none of them."""
    return [_parent(run, runs) for run in runs]


def _parent(run: Run, runs: Sequence[Run]) -> int | None:
    if run.config is None or run.config.init_from is None:
        return None
    start = os.path.dirname(run.config.init_from.rstrip("/"))
    for number, other in enumerate(runs):
        if other is run:
            continue
        as_configured = other.config is not None and os.path.normpath(other.config.save_folder) == os.path.normpath(
            start
        )
        if as_configured or os.path.realpath(start) == str(other.folder.resolve()):
            return number
    return None


def stages(runs: Sequence[Run]) -> list[Stage]:
    """The stages, in the order of training. Runs with the same objective are in the same one, unless one of them
    started from the other."""
    before = parents(runs)
    levels: dict[int, int] = {}

    def level(number: int, below: frozenset[int] = frozenset()) -> int:
        if number not in levels:
            own, parent = min(objective(runs[number].config), 2), before[number]
            if parent is not None and parent not in below:
                own = max(own, level(parent, below | {number}) + 1)
            levels[number] = own
        return levels[number]

    for number in range(len(runs)):
        level(number)
    found = []
    for place, own in enumerate(sorted(set(levels.values())), start=1):
        members = [number for number in range(len(runs)) if levels[number] == own]
        kinds = sorted({objective(runs[number].config) for number in members})
        title = " / ".join(OBJECTIVES[kind] for kind in kinds)
        found.append(
            Stage(f"Stage {place}: {title}" if len(set(levels.values())) > 1 else title[0].upper() + title[1:], members)
        )
    return found
