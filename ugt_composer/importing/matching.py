"""Whether two files have the same items: which ids one of them lacks, and if those are only written differently."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from ugt_composer.errors import UserError
from ugt_composer.importing.ids import VARIANTS, id_text, listed, one_form, without_point, without_zeros
from ugt_composer.importing.item_rows import ItemTable
from ugt_composer.importing.items import Items
from ugt_composer.importing.table import named_errors, open_table


def _without_signs(ids: pl.Expr) -> pl.Expr:
    return ids.str.replace_all(r"[\W_]+", "")


# How the ids of two files may differ; the first form that makes most of them the same is named.
FORMS: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    **VARIANTS,
    "blanks and punctuation": _without_signs,
    "the form of letters and digits in Unicode": lambda ids: ids.str.normalize("NFKC"),
    "what comes before the last ':' or '/'": lambda ids: ids.str.extract(r"([^:/]+)/?$"),
    "case, zeros and punctuation": lambda ids: without_zeros(_without_signs(without_point(ids.str.to_lowercase()))),
    "the letters before the number": lambda ids: without_zeros(ids.str.extract(r"^\D*(\d+)$")),
}


@dataclass(frozen=True)
class Matches:
    """How the items of the interactions match a table of items: counts for the report, and warnings."""

    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def match_items(items: pl.Series, item_rows: np.ndarray, known: Items | None, max_unmatched: float) -> Matches:
    """Counts the items that only the interactions have, and those that only the table has.

    Args:
        items: text (n,), those of the interactions.
        item_rows: int (n,), how many interactions each of them has.

    Raises:
        UserError: the table lacks more than the fraction `max_unmatched` of the items of the interactions.
    """
    if known is None or known.table is None:
        return Matches()
    lacking, unseen = _only_in(items, known.ids), _only_in(known.ids, items)
    rows = int(item_rows[items.is_in(lacking.implode()).to_numpy()].sum())
    facts = {
        "items_of_interactions": len(items),
        "not_in_table": len(lacking),
        "interactions_not_in_table": rows,
        "first_not_in_table": lacking.head(10).to_list(),
        "table_without_interactions": len(unseen),
        "first_without_interactions": unseen.head(10).to_list(),
    }
    share = f"{len(lacking) / len(items):.0%}; {rows:,} of {int(item_rows.sum()):,} interactions"
    about = _about_lacking(known.table, known.ids, items, lacking, "the interactions", share, max_unmatched)
    return Matches(facts, about)


def match_codes(coded: pl.Series, known: Items | None, max_unmatched: float) -> tuple[str, ...]:
    """Warnings about items with codes or vectors, `coded` (n,), that the table of items lacks.

    Raises:
        UserError: it lacks more than the fraction `max_unmatched` of them.
    """
    if known is None or known.table is None:
        return ()
    lacking = _only_in(coded, known.ids)
    share = f"{len(lacking) / len(coded):.0%}"
    return _about_lacking(known.table, known.ids, coded, lacking, "the file of codes or vectors", share, max_unmatched)


def _only_in(ids: pl.Series, others: pl.Series) -> pl.Series:
    """The ids that are not among the others."""
    return ids.filter(~ids.is_in(others.implode()))


def _about_lacking(
    table: ItemTable,
    known: pl.Series,
    ids: pl.Series,
    lacking: pl.Series,
    whose: str,
    share: str,
    max_unmatched: float,
) -> tuple[str, ...]:
    if not len(lacking):
        return ()
    unseen = _only_in(known, ids)
    found = (
        f"{table.path}: lacks {len(lacking):,} of the {len(ids):,} items of {whose} ({share}): "
        f"{listed(lacking.to_list())}{form_hint(lacking, unseen, 'the table', whose)}"
    )
    better = _better_column(table, ids, len(ids) - len(lacking))
    if len(lacking) > max_unmatched * len(ids):
        raise UserError(
            f"{found}; expected at most a fraction of {max_unmatched:g}. The table's ids are in the column "
            f"{table.id_column!r}, such as {listed(known.to_list())}: name another one with --items-column{better}, or "
            "import these items without name and text with --max-unmatched 1"
        )
    column = f"; is another column the item{better}? See --items-column" if better else ""
    return (f"{found}; these items have no name and no text{column}",)


def _better_column(table: ItemTable, ids: pl.Series, matched: int) -> str:
    """Part of a sentence: the column of a table that has the most of these ids, if it has more than `matched`."""
    columns = [*table.unused, *table.text_columns]
    if not columns:
        return ""
    rows = open_table(table.parts).read(columns)
    with named_errors(table.path):
        types = rows.collect_schema()
        plain = [name for name in columns if not types[name].is_nested()]
        values = rows.select(id_text(name, types[name]).alias(name) for name in plain).collect()
    counts = {
        name: int(ids.is_in(one_form(values[name].unique(), name, keep_missing=False)[0].drop_nulls().implode()).sum())
        for name in plain
    }
    best = max(counts, key=counts.__getitem__, default=None)
    if best is None or counts[best] <= matched:
        return ""
    return f" ({best!r} has {counts[best]:,} of the {len(ids):,} ids)"


def form_hint(lacking: pl.Series, others: pl.Series, place: str, whose: str = "the interactions") -> str:
    """Part of a sentence: how the ids that are missing in a `place` are written there; empty if they are not there.

    Args:
        lacking: ids (n,) of `whose`.
        others: ids (m,) of the place.
    """
    best, hint = 0, ""
    for name, form in FORMS.items():
        ours = pl.DataFrame({"ours": lacking}).with_columns(form(pl.col("ours")).alias("form")).drop_nulls()
        theirs = pl.DataFrame({"theirs": others}).with_columns(form(pl.col("theirs")).alias("form")).drop_nulls()
        joined = ours.join(theirs.unique("form", keep="first", maintain_order=True), on="form", maintain_order="left")
        if len(joined) > best:
            best, (one, other) = len(joined), joined.select("ours", "theirs").row(0)
            hint = (
                f"; {best:,} of them match without regard to {name}: {one!r} in {whose} is {other!r} in "
                f"{place}, so write ids the same way in both files"
            )
    return hint
