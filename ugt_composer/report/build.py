"""Puts the report together: from what was collected to the text of the page."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from ugt_composer import __version__
from ugt_composer.report import result_sections, sections
from ugt_composer.report.page import Plots, page
from ugt_composer.report.results import Result
from ugt_composer.report.run_folder import Run
from ugt_composer.report.semantic_ids import SemanticIds
from ugt_composer.report.stages import stages


def build(
    runs: Sequence[Run],
    results: Mapping[int, Result],
    problems: Mapping[int, str],
    ids: Sequence[SemanticIds],
    without_ids: Mapping[int, str],
    seed: int,
    now: datetime,
) -> str:
    """The page.

    Args:
        results: of the runs that were evaluated, by the run's number.
        problems: of the others: why they were not.
        ids: of the runs' catalogues, each once.
        without_ids: of runs without a catalogue: why.
        seed: with which users were drawn.
    """
    plots, of_stages = Plots(), stages(runs)
    parts = [
        sections.overview(runs, results),
        sections.losses(runs, of_stages, plots),
        sections.metrics(runs, of_stages, plots),
        sections.speed(runs, of_stages, plots),
        sections.time(runs, plots),
        result_sections.audience(runs, results, problems, plots),
        result_sections.semantic_id_section(runs, ids, without_ids, plots),
        result_sections.users(runs, results, seed),
        sections.configuration(runs),
    ]
    names = [run.name for run in runs]
    title = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    kind = f"{len(runs)} runs" if len(runs) > 1 else "one run"
    subtitle = f"Training report of {kind}, written {now:%Y-%m-%d %H:%M} UTC by UGT Composer {__version__}"
    foot = f"Made by ugt report of UGT Composer {__version__}. This file loads nothing over the network."
    return page(title, subtitle, names, parts, plots, foot)
