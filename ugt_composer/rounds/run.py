"""Rounds of self-made preferences: generate, align, evaluate; a round that lowers the validation metric is not kept.

The files of a save folder:

start/evaluation.json       the model that the rounds begin with
round-1/preferences/        preference rows of the best model so far
round-1/run/                stage 3 on them, from that model, which is also its reference
round-1/evaluation.json     of round-1/run/best, on the same rows and with the same options
best                        link to the best model so far
rounds.json                 the table
state.json                  which steps are finished; the same command resumes with the first that is not
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ugt_composer.data.integrity import MANIFEST_NAME
from ugt_composer.errors import UserError
from ugt_composer.rounds.commands import Commands
from ugt_composer.rounds.settings import RoundsSettings
from ugt_composer.rounds.state import State, write_json

BEST, TABLE = "best", "rounds.json"
Run = Callable[[str, list[str]], None]  # of a step's name and its command


@dataclass(frozen=True)
class Round:
    """
    Attributes:
        number: from 1; 0 for the start.
        model: its folder.
        metrics: of `ugt evaluate`.
        pairs: pairs of a chosen and a rejected item that it was trained on.
        kept: whether the metric is not below that of the best model before it, and the model is another one.
    """

    number: int
    model: str
    metrics: dict[str, float]
    pairs: int
    kept: bool


def run_rounds(settings: RoundsSettings, commands: Commands, run: Run) -> list[Round]:
    """Runs what is not finished yet. Ends after `settings.rounds` rounds, or after the first one that is not kept.

    Returns: the start and all rounds.
    """
    folder, state = Path(settings.save_folder), State(settings, commands.config)

    def step(name: str, command: list[str]) -> None:
        if name not in state.finished:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            run(name, command)
            state.add(name)

    def evaluated(number: int, name: str, model: Path, pairs: int, best: Round | None) -> Round:
        report = folder / name / "evaluation.json"
        step(f"{name}/evaluation", commands.evaluation(model, report))
        metrics = _metrics_of(report)
        if settings.metric not in metrics:
            raise UserError(
                f"{report} has no {settings.metric}: no row of validation ({settings.validation}) is ranked"
            )
        return Round(number, str(model), metrics, pairs, best is None or _is_kept(metrics, best, settings.metric))

    best = evaluated(0, "start", Path(settings.init_from), 0, None)
    rounds = [best]
    for number in range(1, settings.rounds + 1):
        name, model = f"round-{number}", Path(best.model)
        preferences, trained = folder / name / "preferences", folder / name / "run"
        step(f"{name}/preferences", commands.preferences(model, preferences, number))
        step(f"{name}/run", commands.training(model, preferences, trained))
        rounds.append(evaluated(number, name, trained / "best", _pairs_of(preferences), best))
        if not rounds[-1].kept:
            break
        best = rounds[-1]
        _link(folder / BEST, Path(best.model))
    _link(folder / BEST, Path(best.model))
    write_json(folder / TABLE, [asdict(one) for one in rounds])
    return rounds


def _is_kept(metrics: dict[str, float], best: Round, name: str) -> bool:
    """Equal metrics mean the same model: the training ended with the one that it began with."""
    return metrics[name] >= best.metrics[name] and metrics != best.metrics


def kept_model(rounds: Sequence[Round]) -> str:
    """The folder of the best model."""
    return next(one.model for one in reversed(rounds) if one.kept)


def print_table(rounds: Sequence[Round], metric: str) -> None:
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys((metric, "ndcg@10", "recall@10")))
    table = Table("round", *names, "pairs", "kept")
    for one in rounds:
        values = [f"{one.metrics[name]:.4f}" if name in one.metrics else "" for name in names]
        table.add_row(str(one.number or "start"), *values, f"{one.pairs:,}", "yes" if one.kept else "no")
    Console().print(table)
    if not rounds[-1].kept:
        number = rounds[-1].number
        print(
            f"round {number} did not improve {metric}, so it is not kept and no further round begins", file=sys.stderr
        )


def _metrics_of(report: Path) -> dict[str, float]:
    try:
        return json.loads(report.read_text("utf-8"))["metrics"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{report}: cannot be read ({error!r}); use another save_folder") from None


def _pairs_of(preferences: Path) -> int:
    lengths = json.loads((preferences / MANIFEST_NAME).read_text("utf-8"))["lengths"]["rejected"]
    return sum(int(length) * rows for length, rows in lengths.items())


def _link(link: Path, target: Path) -> None:
    """Makes or replaces a relative link atomically, so that it stays valid where the folders are moved together."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()))
    os.replace(temporary, link)
