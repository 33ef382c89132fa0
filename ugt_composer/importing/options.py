"""The command line's options that importing and making semantic ids share, and the settings they become."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ugt_composer.importing.interactions import Columns
from ugt_composer.importing.settings import (
    IdSettings,
    PreferenceSettings,
    RowSettings,
    SourceSettings,
    SplitSettings,
)
from ugt_composer.importing.splits import LEAVE_ONE_OUT, TIME
from ugt_composer.importing.table import FORMATS

SEED = 42
T = TypeVar("T")


def add_source_options(parser: argparse.ArgumentParser) -> None:
    table = parser.add_argument_group(
        "the table of interactions", "columns that are not named are looked for by usual names"
    ).add_argument
    for role in fields(Columns):
        table(f"--{role.name}-column", metavar="NAME", help=f"the column of the {role.name}")
    table("--columns", metavar="NAME,NAME,…", type=_comma, help="names of the columns of a file without a header")
    table("--format", choices=FORMATS, help="what the file is (default: by its ending; .txt is sequences)")
    table("--file-order", action="store_true", help="rows are oldest first; no timestamps are needed")
    table(
        "--on-error",
        choices=("fail", "skip"),
        default="fail",
        help="fail: stop at the first row that is not understood. skip: leave such rows out and count them "
        "(default %(default)s)",
    )
    table("--min-rating", type=float, metavar="R", help="histories hold what was rated R or more (default: everything)")
    table("--positive-actions", nargs="+", metavar="ACTION", help="histories hold these actions (default: all)")
    items = parser.add_argument_group("the table of items (CSV, TSV or Parquet)").add_argument
    items("--items", type=Path, metavar="FILE", help="items with titles or other texts; they are all recommended")
    items("--items-column", metavar="NAME", help="the column of its item ids")
    items("--text-columns", nargs="+", metavar="NAME", help="the columns that describe an item")
    items("--name-column", metavar="NAME", help="the column to show to people")
    items("--items-format", choices=FORMATS[:-1], help="what that file is (default: by its ending)")
    items("--only-seen-items", action="store_true", help="leave out items that no interaction has")


def add_split_options(parser: argparse.ArgumentParser) -> None:
    default = SplitSettings()
    split = parser.add_argument_group("what trains, validates and tests").add_argument
    split(
        "--split",
        choices=(LEAVE_ONE_OUT, TIME),
        default=default.split,
        help="leave-one-out: of each user the last item tests, the one before validates. time: what is later than two "
        "points in time (default %(default)s)",
    )
    split(
        "--min-interactions",
        type=int,
        default=default.min_interactions,
        metavar="N",
        help="leave-one-out: everything of users with fewer trains (default %(default)s)",
    )
    for name, part, first in (
        ("validation", "validates", default.validation_from),
        ("test", "tests", default.test_from),
    ):
        split(
            f"--{name}-from",
            default=first,
            metavar="WHEN",
            help=f"time: what is later than this {part}; a share of all, a timestamp or a date (default %(default)s)",
        )
    split(
        "--held-out-users",
        type=float,
        default=default.held_out_users,
        metavar="SHARE",
        help="users of whom nothing trains; they validate and test, and the validation preferences are theirs "
        "(default %(default)s)",
    )
    split("--seed", type=int, default=SEED, help="of all draws (default %(default)s)")


def add_id_options(parser: argparse.ArgumentParser) -> None:
    default = IdSettings()
    ids = parser.add_argument_group(
        "semantic ids", "from codes, else from vectors, else built from item texts and training interactions"
    ).add_argument
    ids("--codes", type=Path, metavar="JSON", help='item → codes, as 12 or "<a_12>"; or a semantic_ids.json')
    ids("--vectors", type=Path, metavar="NPY", help="a row an item, in the order of --vector-items, else of --items")
    ids("--vector-items", type=Path, metavar="FILE", help="the item ids of the vectors: one a line, or a JSON list")
    ids("--drop-items-without", action="store_true", help="leave out interactions with items without code or vector")
    ids(
        "--clusters",
        type=int,
        nargs=2,
        metavar=("L1", "L2"),
        help="codes to make at the first two levels (default: by the number of items)",
    )
    ids(
        "--codebook-sizes",
        type=int,
        nargs=3,
        default=default.codebook_sizes,
        metavar=("L1", "L2", "L3"),
        help=f"the largest sizes of the codebooks, 5 special ids each included (default "
        f"{' '.join(map(str, default.codebook_sizes))})",
    )
    for option, value, text in (
        ("--dimensions", default.dimensions, "of the vectors built from texts, and of those from interactions"),
        ("--window", default.window, "interactions that items are apart at most to count as chosen together"),
    ):
        ids(option, type=int, default=value, metavar="N", help=f"{text} (default %(default)s)")
    ids(
        "--text-weight",
        type=float,
        default=default.text_weight,
        metavar="W",
        help="of the texts, 0 to 1, against the interactions (default %(default)s)",
    )


def add_row_options(parser: argparse.ArgumentParser) -> None:
    default = RowSettings()
    rows = parser.add_argument_group("rows").add_argument
    rows(
        "--cuts-per-user",
        type=_number_or_all,
        default=default.cuts_per_user,
        metavar="N",
        help="training rows of a user at most, spread over the history, or all (default %(default)s)",
    )
    for option, value, text in (
        ("--max-targets", default.max_targets, "items to predict in a training row, at most"),
        ("--max-history", default.max_history, "items of a history, the most recent"),
    ):
        rows(option, type=int, default=value, metavar="N", help=f"{text} (default %(default)s)")
    rows(
        "--every-target",
        action="store_true",
        help="with --split time: a row for each held-out item of a user, not only the first",
    )


def add_preference_options(parser: argparse.ArgumentParser) -> None:
    default = PreferenceSettings()
    pairs = parser.add_argument_group(
        "preferences", "made where there are ratings, or the actions are named"
    ).add_argument
    pairs("--no-preferences", action="store_true", help="make none")
    pairs("--chosen-min", type=float, metavar="R", help="chosen is what was rated R or more (default: 4 of 5)")
    pairs("--rejected-max", type=float, metavar="R", help="rejected is what was rated R or less (default: 2 of 5)")
    pairs("--chosen-actions", nargs="+", metavar="ACTION", help="chosen are these actions, instead of by rating")
    pairs("--rejected-actions", nargs="+", metavar="ACTION", help="rejected are these, such as impressions")
    for option, value, text in (
        ("--preference-window", default.window, "interactions of the user that chosen and rejected are apart at most"),
        ("--rejected-per-chosen", default.rejected_per_chosen, "rejected items of a pair at most, the nearest"),
    ):
        pairs(option, type=int, default=value, metavar="N", help=f"{text} (default %(default)s)")
    pairs(
        "--pairs-per-user",
        type=_number_or_all,
        default=default.pairs_per_user,
        metavar="N",
        help="pairs of a user at most, spread over the history, or all (default %(default)s)",
    )


def source_settings(given: argparse.Namespace) -> SourceSettings:
    columns = Columns(**{role.name: vars(given)[f"{role.name}_column"] for role in fields(Columns)})
    return _settings(SourceSettings, given, columns=columns, names=given.columns, skip_bad=given.on_error == "skip")


def split_settings(given: argparse.Namespace) -> SplitSettings:
    return _settings(SplitSettings, given)


def id_settings(given: argparse.Namespace) -> IdSettings:
    return _settings(IdSettings, given)


def row_settings(given: argparse.Namespace) -> RowSettings:
    return _settings(RowSettings, given)


def preference_settings(given: argparse.Namespace) -> PreferenceSettings:
    return _settings(PreferenceSettings, given, off=given.no_preferences, window=given.preference_window)


def _settings(kind: type[T], given: argparse.Namespace, **renamed: Any) -> T:
    """Settings whose fields are options of the same name, but for the `renamed`. argparse's lists become tuples."""
    values = vars(given) | renamed
    chosen = {field.name: values[field.name] for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()})


def _comma(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _number_or_all(text: str) -> int | None:
    """argparse makes a usage error of the ValueError."""
    return None if text == "all" else int(text)
