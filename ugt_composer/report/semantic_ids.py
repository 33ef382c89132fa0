"""The semantic IDs of a catalogue: the figures of the import's report, the use of codes, and the tree. Imports no
torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.checkpoint.save_folder import PORTABLE
from ugt_composer.data.integrity import CATALOGUE_COPY
from ugt_composer.errors import UserError
from ugt_composer.importing.quality import quality
from ugt_composer.report.run_folder import Run
from ugt_composer.vocabulary import LEVELS

WIDEST, DEEPEST = 32, 10  # first-level codes of the drawn tree, and second-level codes below each
EXAMPLES = 3


@dataclass(frozen=True)
class Branch:
    """Items below one prefix of the drawn tree, or below all prefixes that are not drawn one by one.

    Attributes:
        prefix: (l1,) or (l1, l2); empty for the other first-level codes, (l1, -1) for the others below l1.
        items: how many.
        children: prefixes or items one level below.
        examples: names of a few.
    """

    prefix: tuple[int, ...]
    items: int
    children: int
    examples: list[str]


@dataclass(frozen=True)
class SemanticIds:
    """
    Attributes:
        source: the catalogue's file.
        runs: numbers of the report's runs that use it.
        quality: of `importing.quality.quality`.
        uses: for each level, how many items each used code has, largest first.
        branches: of the tree.
    """

    source: str
    runs: list[int]
    quality: dict[str, Any]
    uses: list[list[int]]
    branches: list[Branch]


def catalogue_of(run: Run) -> Catalogue:
    """The catalogue that a run names, or the copy beside its model.

    Raises:
        UserError: there is neither, or it cannot be read.
    """
    named = None if run.config is None else run.config.data.catalogue
    copies = [run.folder / name / CATALOGUE_COPY for name in PORTABLE]
    places = [*([Path(named)] if named else []), *copies]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        raise UserError(
            f"the catalogue {named} is not here, and {run.folder} has no copy of it"
            if named
            else "the run has no catalogue (data.catalogue): items have no names, and any combination of ids may be "
            "recommended"
        )
    return Catalogue.load(str(path))


def semantic_ids(catalogue: Catalogue, codebook_sizes: Sequence[int], runs: list[int]) -> SemanticIds:
    ids = catalogue.triples
    uses = [np.sort(np.unique(column, return_counts=True)[1])[::-1].tolist() for column in ids.T]
    figures = quality(ids, codebook_sizes, {}, seed=0)
    return SemanticIds(catalogue.source, runs, figures, uses, _branches(catalogue))


def _branches(catalogue: Catalogue) -> list[Branch]:
    """The largest prefixes one by one, the others together."""
    ids = catalogue.triples
    codes, counts = np.unique(ids[:, 0], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    drawn, others = codes[order][:WIDEST], codes[order][WIDEST:]
    branches = []
    for code in drawn.tolist():
        rows = np.flatnonzero(ids[:, 0] == code)
        below, sizes = np.unique(ids[rows, 1], return_counts=True)
        branches.append(Branch((code,), len(rows), len(below), _examples(catalogue, rows)))
        by_size = np.argsort(-sizes, kind="stable")
        for place in by_size[:DEEPEST].tolist():
            of_prefix = rows[ids[rows, 1] == below[place]]
            children = len(np.unique(ids[of_prefix, 2]))
            branches.append(
                Branch((code, int(below[place])), len(of_prefix), children, _examples(catalogue, of_prefix))
            )
        if len(rest := by_size[DEEPEST:]):
            branches.append(Branch((code, -1), int(sizes[rest].sum()), len(rest), []))
    if len(others):
        branches.append(Branch((), int(counts[order][WIDEST:].sum()), len(others), []))
    return branches


def _examples(catalogue: Catalogue, rows: np.ndarray) -> list[str]:
    return [name_of(catalogue, row) for row in rows[:EXAMPLES].tolist()]


def name_of(catalogue: Catalogue, row: int) -> str:
    """The name of an item, or its item id if it has none."""
    return catalogue.columns.names[row] if catalogue.columns.has_name[row] else catalogue.columns.ids[row]


def names_of(catalogue: Catalogue | None, ids: Sequence[int]) -> str:
    """The names of the items with a semantic ID; the ID itself if there is no catalogue or it has no such item."""
    items = [] if catalogue is None else catalogue.items_of(ids)
    return " = ".join(item.name or item.item_id for item in items) or "/".join(map(str, ids[:LEVELS]))
