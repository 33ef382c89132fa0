"""An import from beginning to end: tables in, JSON Lines, semantic IDs and a report out."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ugt_composer.catalogue.neighbour_file import read_neighbours, save_neighbours
from ugt_composer.errors import UserError
from ugt_composer.importing.assign import Assigned, Given, assign_ids, read_given
from ugt_composer.importing.assigner import FILE as ASSIGNER
from ugt_composer.importing.assigner import VECTORS
from ugt_composer.importing.bundle import CATALOGUE, Bundle, retired_items
from ugt_composer.importing.column_names import about_columns
from ugt_composer.importing.corpus import Corpus, make_corpus, read_log
from ugt_composer.importing.extend import Base, Extended, extend_ids, read_base
from ugt_composer.importing.inputs import find_parts, shown
from ugt_composer.importing.interactions import Interactions
from ugt_composer.importing.items import Items, all_items, read_items
from ugt_composer.importing.jsonl import write_preferences, write_recommend
from ugt_composer.importing.matching import match_codes
from ugt_composer.importing.neighbours import FILE as NEIGHBOURS
from ugt_composer.importing.neighbours import count_neighbours
from ugt_composer.importing.new_neighbours import with_new_items
from ugt_composer.importing.popularity import popularity
from ugt_composer.importing.preferences import preference_rows
from ugt_composer.importing.quality import quality
from ugt_composer.importing.settings import IdSettings, PreferenceSettings, RowSettings, SourceSettings, SplitSettings
from ugt_composer.importing.signals import about_clipped_times
from ugt_composer.importing.split_report import (
    about_empty_parts,
    about_others,
    about_unreachable,
    training_after_test,
    unreachable_targets,
    why_no_training,
)
from ugt_composer.importing.splits import TEST, VALIDATION, Ranges, held_out_targets, training_targets
from ugt_composer.importing.timeline import make_timeline
from ugt_composer.jsonl.schema import ACTIONS_NAME

BUNDLE, REPORT = "semantic_ids.json", "report.json"
FILES = (
    *("train.jsonl", "validation.jsonl", "test.jsonl", "train_preference.jsonl", "validation_preference.jsonl"),
    *(CATALOGUE, BUNDLE, ASSIGNER, VECTORS, NEIGHBOURS, ACTIONS_NAME, REPORT),
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


def import_interactions(settings: Settings, folder: Path, say: Say) -> dict[str, Any]:
    """Writes FILES into `folder`, except for preference files that would have no pairs. Returns the report."""
    find_parts(settings.source.interactions, settings.source.written)  # a missing file is said before all else
    known = read_known_items(settings.source, say)
    given = read_given(settings.ids, known)
    log = read_interactions_of(settings.source, say)
    covered = None if given is None else given.items
    corpus = make_corpus(log, known, covered, settings.source, settings.split, settings.ids.drop_items_without)
    del log  # the corpus keeps its own copy
    if not corpus.trained.any():
        raise UserError(f"the training part is empty: {why_no_training(corpus, settings.split)}")
    say(f"semantic IDs of {len(corpus.items):,} items")
    assigned = assign_ids(corpus.items, given, corpus.user[corpus.trained], corpus.item[corpus.trained], settings.ids)
    report = {**corpus.facts, **table_facts(corpus.log, known)}
    report |= write_ids(assigned, corpus.items, folder, given)
    report |= _write_rows(corpus, assigned.bundle, settings, folder)
    report["warnings"] = [*(() if given is None else given.warnings), *corpus.warnings, *report["warnings"]]
    write_report(report, folder)
    return report


def make_ids(source: SourceSettings, split: SplitSettings, ids: IdSettings, folder: Path, say: Say) -> dict[str, Any]:
    """Writes ID_FILES into `folder`. Only the training part of the interactions, if there are any, is used."""
    if source.interactions:
        find_parts(source.interactions, source.written)
    known = read_known_items(source, say)
    given = read_given(ids, known)
    items, user, item = known, np.zeros(0, np.int32), np.zeros(0, np.int32)
    warnings = () if known is None else known.warnings
    covered, log = None if given is None else given.items, None
    facts: dict[str, Any] = {}
    if source.interactions:
        corpus = make_corpus(read_interactions_of(source, say), known, covered, source, split, ids.drop_items_without)
        if not corpus.trained.any() and known is None and given is None:
            raise UserError(f"the training part is empty: {why_no_training(corpus, split)}")
        items, user, item = corpus.items, corpus.user[corpus.trained], corpus.item[corpus.trained]
        warnings, log, facts = corpus.warnings, corpus.log, corpus.facts
        if log.skipped:
            warnings += (f"skipped rows of the interactions: {log.skipped:,}; the first: {log.first_skipped}",)
    elif given is not None:
        items = all_items(given.items, known, given.items, only_seen=False)
        warnings += match_codes(given.items, known, source.max_unmatched)
    if items is None:
        raise UserError("no items to make semantic IDs for; give interactions, --items, --codes or --vectors")
    say(f"semantic IDs of {len(items):,} items")
    report = facts | write_ids(assign_ids(items, given, user, item, ids), items, folder, given)
    report |= table_facts(log, known)
    report["warnings"] = [*(() if given is None else given.warnings), *warnings]
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


def read_interactions_of(source: SourceSettings, say: Say) -> Interactions:
    say("reading the interactions")
    log = read_log(source)
    if log.columns:
        say(about_columns(shown(source.interactions), log.columns, log.unused))
    return log


def table_facts(log: Interactions | None, known: Items | None) -> dict[str, Any]:
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


def _write_rows(corpus: Corpus, bundle: Bundle, settings: Settings, folder: Path) -> dict[str, Any]:
    """Writes all rows; returns their counts and the scores of the popularity baseline."""
    row_settings = settings.rows
    train = training_targets(
        corpus.trained,
        corpus.offsets,
        row_settings.cuts_per_user,
        row_settings.max_targets,
        np.random.default_rng(row_settings.seed),
    )
    if not len(train):
        raise UserError(f"the training part is empty: {why_no_training(corpus, settings.split)}")
    held_out = {
        name: held_out_targets(corpus.part, part, corpus.user, corpus.offsets, not row_settings.every_target)
        for name, part in (("validation.jsonl", VALIDATION), ("test.jsonl", TEST))
    }
    recommend: dict[str, Ranges] = {"train.jsonl": train, **held_out}
    timeline = make_timeline(corpus, row_settings, settings.source.repeats)
    preferences, facts = preference_rows(corpus, bundle.ids, settings.preferences, timeline)
    counts = {name: len(rows) for name, rows in recommend.items()}
    counts |= {name: len(rows) for name, rows in preferences.items()}
    users, ids = corpus.log.users, bundle.ids
    with tqdm(total=sum(counts.values()), unit=" rows", desc="writing", disable=None, leave=False) as bar:
        for name, targets in recommend.items():
            members = bundle.members if name in held_out else None  # for evaluation
            histories = timeline.before_targets(targets)
            tokens = (histories, timeline.histories, targets, timeline.targets)
            write_recommend(folder / name, *tokens, users, ids, timeline.offsets, members, bar.update)
        for name, rows in preferences.items():
            write_preferences(folder / name, rows, timeline.histories, users, ids, bar.update)
    trained = corpus.trained
    counted = count_neighbours(corpus.user[trained], corpus.item[trained], len(corpus.items))
    save_neighbours(folder / NEIGHBOURS, ids, *counted)
    if timeline.action_names:
        (folder / ACTIONS_NAME).write_text(
            json.dumps(timeline.action_names, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    popular = {
        name.partition(".")[0]: popularity(corpus.item[corpus.trained], corpus.item[rows.start], len(corpus.items))
        for name, rows in held_out.items()
        if len(rows)
    }
    parts = {name.partition(".")[0]: rows for name, rows in held_out.items()}
    unreachable = unreachable_targets(corpus, timeline, parts)
    return {
        "rows": counts,
        "histories": timeline.facts,
        "preferences": facts,
        "popularity": popular,
        "unreachable_targets": unreachable,
        "training_after_median_test_time": training_after_test(corpus),
        "warnings": [
            *about_empty_parts(corpus, settings.split, parts),
            *about_unreachable(unreachable, parts, row_settings.history),
            *about_others(corpus, timeline, parts),
            *about_clipped_times(corpus.log, timeline.seconds, shown(settings.source.interactions)),
        ],
    }
