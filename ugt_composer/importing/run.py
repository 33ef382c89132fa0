"""An import from beginning to end: tables in, rows, semantic IDs and a report out."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ugt_composer.catalogue.neighbour_file import read_neighbours, save_neighbours
from ugt_composer.errors import UserError
from ugt_composer.importing.assign import Assigned, Given, assign_ids, read_given
from ugt_composer.importing.assigner import FILE as ASSIGNER
from ugt_composer.importing.assigner import VECTORS
from ugt_composer.importing.bundle import CATALOGUE, Bundle, retired_items
from ugt_composer.importing.column_names import about_columns
from ugt_composer.importing.corpus import Corpus, UserHistories, make_corpus, with_checked_values
from ugt_composer.importing.extend import Base, Extended, extend_ids, read_base
from ugt_composer.importing.inputs import find_parts, shown
from ugt_composer.importing.interactions import read_interactions
from ugt_composer.importing.items import Items, all_items, read_items
from ugt_composer.importing.log import Census, Log
from ugt_composer.importing.matching import match_codes
from ugt_composer.importing.neighbours import FILE as NEIGHBOURS
from ugt_composer.importing.neighbours import WINDOW, neighbours_of
from ugt_composer.importing.new_neighbours import with_new_items
from ugt_composer.importing.pair_counts import NearCounts, PairCounts, PairSample, count_near, count_pairs
from ugt_composer.importing.partitions import Partitions
from ugt_composer.importing.popularity import popularity
from ugt_composer.importing.preferences import FILES as PREFERENCE_FILES
from ugt_composer.importing.preferences import make_preference_rule
from ugt_composer.importing.quality import quality
from ugt_composer.importing.rows import (
    HELD_OUT,
    TRAIN_FILE,
    Ids,
    RowCounts,
    RowRule,
    UserRows,
    count_rows,
    kind_of,
    make_rows,
    row_blocks,
    write_rows,
)
from ugt_composer.importing.run_yaml import DATA_YAML, PREFERENCES_YAML
from ugt_composer.importing.settings import IdSettings, PreferenceSettings, RowSettings, SourceSettings, SplitSettings
from ugt_composer.importing.signals import about_clipped_times
from ugt_composer.importing.split_report import (
    about_empty_parts,
    about_others,
    about_unreachable,
    training_after_test,
    why_no_training,
)
from ugt_composer.importing.timeline import history_facts, make_history_rule
from ugt_composer.jsonl.schema import ACTIONS_NAME

BUNDLE, REPORT = "semantic_ids.json", "report.json"
ROW_FILES = (TRAIN_FILE, *HELD_OUT, *PREFERENCE_FILES)
FILES = (
    *ROW_FILES,
    *(CATALOGUE, BUNDLE, ASSIGNER, VECTORS, NEIGHBOURS, ACTIONS_NAME, DATA_YAML, PREFERENCES_YAML, REPORT),
)
ID_FILES = (CATALOGUE, BUNDLE, ASSIGNER, VECTORS, REPORT)
EXTENDED_FILES = (*ID_FILES, NEIGHBOURS)
Say = Callable[[str], object]


@dataclass(frozen=True)
class Settings:
    """All settings of an import."""

    source: SourceSettings
    split: SplitSettings
    ids: IdSettings
    rows: RowSettings
    preferences: PreferenceSettings


class Engine(Protocol):
    """Where the partitions of an import are: in this process, or in the executors of Spark."""

    def read(self, source: SourceSettings) -> Log:
        """The interactions, as they are written."""
        ...

    def write(self, rows: Partitions[UserRows], counts: RowCounts, ids: Ids, folder: Path) -> dict[str, int]:
        """Writes the files that `counts` has rows of, or that are always written. Returns the number of rows of each.

        Args:
            folder: has the catalogue and, if there are any, the names of the actions already.
        """
        ...


class RowWriter(Protocol):
    """What the local engine writes rows with: `JsonLines`, or something that makes more of them."""

    def write(
        self, folder: Path, name: str, kind: str, codebook_sizes: tuple[int, ...], blocks: Iterator[pl.DataFrame]
    ) -> str:
        """Writes rows of a kind, in blocks that have the keys of JSON Lines as columns.

        Args:
            name: of the file of JSON Lines in `folder` that has these rows.

        Returns:
            The name of what was written in its place.
        """
        ...


class JsonLines:
    """Writes the file itself."""

    def write(
        self, folder: Path, name: str, kind: str, codebook_sizes: tuple[int, ...], blocks: Iterator[pl.DataFrame]
    ) -> str:
        with (folder / name).open("wb") as file:
            write_rows(blocks, file)
        return name


class LocalEngine:
    """Everything in this process."""

    def __init__(self, writer: RowWriter | None = None):
        self._writer = writer or JsonLines()

    def read(self, source: SourceSettings) -> Log:
        log = read_interactions(
            source.interactions,
            source.columns,
            source.written,
            source.file_order,
            source.skip_bad,
            source.missing_as_ids,
            source.time_format,
        )
        return Log.of(log)

    def write(self, rows: Partitions[UserRows], counts: RowCounts, ids: Ids, folder: Path) -> dict[str, int]:
        with tqdm(total=sum(counts.rows.values()), unit=" rows", desc="writing", disable=None, leave=False) as bar:
            (written,) = rows.map(_write_files, counts, ids, folder, self._writer, bar.update)
            return written


def _write_files(
    rows: UserRows,
    counts: RowCounts,
    ids: Ids,
    folder: Path,
    writer: RowWriter,
    progress: Callable[[int], object],
) -> dict[str, int]:
    written = {}
    for name in counts.files:
        blocks = _counted(row_blocks(rows, name, ids, counts), progress)
        written[writer.write(folder, name, kind_of(name), ids.codebook_sizes, blocks)] = counts.rows[name]
    return written


def _counted(blocks: Iterator[pl.DataFrame], progress: Callable[[int], object]) -> Iterator[pl.DataFrame]:
    """The same blocks. `progress` is called with the rows of each one when it is done."""
    for block in blocks:
        yield block
        progress(len(block))


def import_interactions(settings: Settings, folder: Path, say: Say, engine: Engine) -> dict[str, Any]:
    """Writes FILES into `folder`, except for preference files that would have no pairs. Returns the report."""
    find_parts(settings.source.interactions, settings.source.written)  # a missing file is said before all else
    known = read_known_items(settings.source, say)
    given = read_given(settings.ids, known)
    log, counts = read_interactions_of(engine, settings.source, say)
    covered = None if given is None else given.items
    corpus = make_corpus(log, counts, known, covered, settings.source, settings.split, settings.ids.drop_items_without)
    del log  # the corpus keeps its own copy
    if not corpus.counts.trained:
        raise UserError(f"the training part is empty: {why_no_training(corpus, settings.split)}")
    say(f"semantic IDs of {len(corpus.items):,} items")
    assigned = assign_ids(corpus.items, given, training_pairs(corpus, settings.ids.window), settings.ids)
    report = {**corpus.facts, **table_facts(corpus.log, known)}
    report |= write_ids(assigned, corpus.items, folder, given)
    report |= _write_rows(corpus, assigned.bundle, settings, folder, engine)
    of_ids = (*(() if given is None else given.warnings), *assigned.warnings)
    report["warnings"] = [*of_ids, *corpus.warnings, *report["warnings"]]
    write_report(report, folder)
    return report


def training_pairs(corpus: Corpus, window: int) -> PairCounts | None:
    """The pairs of training items that are near each other; None if there are no training interactions."""
    if not corpus.counts.trained:
        return None
    sample = PairSample.of(window, corpus.counts.trained)
    return PairCounts.joined(corpus.partitions.sum_pieces(_count_pairs, len(corpus.items), sample))


def _count_pairs(partition: UserHistories, items: int, sample: PairSample) -> list[PairCounts]:
    return count_pairs(*_paired(partition, sample), items, sample.window).pieces()


def _count_near(partition: UserHistories, items: int, sample: PairSample) -> list[NearCounts]:
    counts = count_near(*_paired(partition, sample), items, sample.window)
    if sample.one_of > 1:
        counts = replace(counts, items=np.bincount(partition.item[partition.trained], minlength=items))  # of all users
    return counts.pieces()


def _paired(partition: UserHistories, sample: PairSample) -> tuple[np.ndarray, np.ndarray]:
    """Users and items of the training interactions of a sample."""
    paired = partition.trained
    if sample.one_of > 1:
        paired = paired & sample.users(partition.log.users)[partition.user]
    return partition.user[paired], partition.item[paired]


def make_ids(source: SourceSettings, split: SplitSettings, ids: IdSettings, folder: Path, say: Say) -> dict[str, Any]:
    """Writes ID_FILES into `folder`. Only the training part of the interactions, if there are any, is used."""
    if source.interactions:
        find_parts(source.interactions, source.written)
    known = read_known_items(source, say)
    given = read_given(ids, known)
    items, pairs = known, None
    warnings = () if known is None else known.warnings
    covered, log = None if given is None else given.items, None
    facts: dict[str, Any] = {}
    if source.interactions:
        log, counts = read_interactions_of(LocalEngine(), source, say)
        corpus = make_corpus(log, counts, known, covered, source, split, ids.drop_items_without)
        if not corpus.counts.trained and known is None and given is None:
            raise UserError(f"the training part is empty: {why_no_training(corpus, split)}")
        items, pairs = corpus.items, training_pairs(corpus, ids.window)
        warnings, log, facts = corpus.warnings, corpus.log, corpus.facts
        if log.skipped:
            warnings += (f"skipped rows of the interactions: {log.skipped:,}; the first: {log.first_skipped}",)
    elif given is not None:
        items = all_items(given.items, known, given.items, only_seen=False)
        warnings += match_codes(given.items, known, source.max_unmatched)
    if items is None:
        raise UserError("no items to make semantic IDs for; give interactions, --items, --codes or --vectors")
    say(f"semantic IDs of {len(items):,} items")
    assigned = assign_ids(items, given, pairs, ids)
    report = facts | write_ids(assigned, items, folder, given)
    report |= table_facts(log, known)
    report["warnings"] = [*(() if given is None else given.warnings), *assigned.warnings, *warnings]
    write_report(report, folder)
    return report


def add_items(bundle: Path, source: SourceSettings, ids: IdSettings, folder: Path, say: Say) -> dict[str, Any]:
    """Writes EXTENDED_FILES of the bundle's items and of the new ones in the table of items; NEIGHBOURS only if the
    bundle has such a file beside it. Returns the report."""
    base = read_base(bundle)
    known = read_known_items(source, say)
    extended = extend_ids(base, known, ids, say)
    report: dict[str, Any] = {"extends": str(bundle), "extension": extended.facts}
    report |= write_ids(extended.assigned, extended.items, folder, base) | table_facts(None, known)
    stale = _write_neighbours(base, extended, folder)
    report["warnings"] = [*(() if known is None else known.warnings), *extended.warnings, *stale]
    write_report(report, folder)
    return report


def _write_neighbours(base: Base, extended: Extended, folder: Path) -> tuple[str, ...]:
    """Writes NEIGHBOURS if the bundle has such a file beside it. Returns a warning if that is of other items."""
    path = base.path.with_name(NEIGHBOURS)
    if not path.exists():
        return ()
    ids, neighbours, probabilities = read_neighbours(str(path))
    if not np.array_equal(ids, base.bundle.ids):
        return (f"{path} is not of the items of {base.path}, so {NEIGHBOURS} of the new items was not written",)
    with threadpool_limits(1):
        extended_neighbours = with_new_items(neighbours, probabilities, extended.known_vectors)
    save_neighbours(folder / NEIGHBOURS, extended.assigned.bundle.ids, *extended_neighbours)
    return ()


def read_known_items(source: SourceSettings, say: Say) -> Items | None:
    if source.items is None:
        return None
    columns = source.items_column, source.text_columns, source.name_column
    known = read_items(source.items, *columns, source.items_written, source.skip_bad, source.missing_as_ids)
    say(str(known.table))
    return known


def read_interactions_of(engine: Engine, source: SourceSettings, say: Say) -> tuple[Log, Census]:
    say("reading the interactions")
    log, counts = with_checked_values(engine.read(source), source)
    if log.columns:
        say(about_columns(shown(source.interactions), log.columns, log.unused))
    return log, counts


def table_facts(log: Log | None, known: Items | None) -> dict[str, Any]:
    """For the report: which columns of the tables were used for what, and counts of the rows of items."""
    facts: dict[str, Any] = {}
    if log is not None:
        facts |= {"columns": log.columns, "unused_columns": list(log.unused)}
    if known is not None and known.table is not None:
        facts |= {"item_columns": known.table.columns, "item_table": known.table.facts}
    return facts


def write_ids(assigned: Assigned, items: Items, folder: Path, reused: Given | Base | None) -> dict[str, Any]:
    """Writes ID_FILES. Items that are retired in the catalogue that is `reused` stay so."""
    bundle = assigned.bundle
    if assigned.vectors is not None:
        np.save(folder / VECTORS, assigned.vectors)
    if assigned.assigner is not None:
        bundle = replace(bundle, assigner=assigned.assigner.save(folder))
    bundle.save(folder / BUNDLE)
    retired = retired_items(None if reused is None else reused.catalogue)
    bundle.write_catalogue(folder / CATALOGUE, items.names, retired)
    return {
        "fingerprint": bundle.fingerprint,
        **({"retired_items": int(bundle.items.is_in(list(retired)).sum())} if retired else {}),
        "codebook_sizes": list(bundle.codebook_sizes),
        "made": bundle.made,
        "quality": quality(bundle.ids, bundle.codebook_sizes, assigned.views, seed=0),
    }


def write_report(report: dict[str, Any], folder: Path) -> None:
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_rows(corpus: Corpus, bundle: Bundle, settings: Settings, folder: Path, engine: Engine) -> dict[str, Any]:
    """Writes all rows; returns their counts and the scores of the popularity baseline."""
    rule = RowRule(
        settings.rows,
        make_history_rule(corpus, settings.rows, settings.source.repeats),
        make_preference_rule(corpus, bundle.ids, settings.preferences),
        len(corpus.items),
        bool(corpus.facts["repeats"]["interactions"]),
    )
    rows = make_rows(corpus, rule)
    counts = count_rows(rows)
    if not counts.rows[TRAIN_FILE]:
        raise UserError(f"the training part is empty: {why_no_training(corpus, settings.split)}")
    if rule.histories.action_names:
        (folder / ACTIONS_NAME).write_text(
            json.dumps(rule.histories.action_names, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    written = engine.write(rows, counts, Ids(bundle.ids, bundle.members, tuple(bundle.codebook_sizes)), folder)
    sample = PairSample.of(WINDOW, corpus.counts.trained)
    near = NearCounts.joined(corpus.partitions.sum_pieces(_count_near, len(corpus.items), sample))
    save_neighbours(folder / NEIGHBOURS, bundle.ids, *neighbours_of(near))
    parts = {name.partition(".")[0]: part for name, part in counts.targets.items()}
    facts = history_facts(rule.histories, counts.histories, corpus.facts["positive"])
    return {
        "rows": written,
        "histories": facts,
        "preferences": rule.preferences.facts,
        "popularity": {name: popularity(near.items, part.items) for name, part in parts.items() if part.rows},
        "pairs": {
            "semantic_ids": PairSample.of(settings.ids.window, corpus.counts.trained).facts,
            "neighbours": sample.facts,
        },
        "unreachable_targets": {name: part.in_history for name, part in parts.items()},
        "training_after_median_test_time": training_after_test(corpus),
        "warnings": [
            *about_empty_parts(corpus, settings.split, parts),
            *about_unreachable(parts, settings.rows.history),
            *about_others(facts, corpus.one_time, parts),
            *about_clipped_times(counts.clipped, counts.interactions, shown(settings.source.interactions)),
        ],
    }
