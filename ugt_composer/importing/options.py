"""Command-line options shared by `ugt import` and `ugt ids`, and their conversion to settings."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ugt_composer.importing.file_format import FORMATS
from ugt_composer.importing.history_options import add_history_options
from ugt_composer.importing.interactions import Columns
from ugt_composer.importing.settings import (
    EVERYTHING,
    POSITIVE,
    IdSettings,
    PreferenceSettings,
    RowSettings,
    SourceSettings,
    SplitSettings,
)
from ugt_composer.importing.signals import SIGNALS
from ugt_composer.importing.splits import LEAVE_ONE_OUT, TIME
from ugt_composer.seeds import seed_of
from ugt_composer.storage.s3_url import input_path

SEED = 42
T = TypeVar("T")


def add_source_options(parser: argparse.ArgumentParser) -> None:
    table = parser.add_argument_group(
        "the table of interactions", "columns that are not named are detected by their usual names"
    ).add_argument
    for role in fields(Columns):
        table(f"--{role.name}-column", metavar="NAME", help=f"the column of the {role.name}")
    table(
        "--columns",
        metavar="NAME,NAME,…",
        type=_comma_separated,
        help="names of the first columns of a file without a header",
    )
    table(
        "--format",
        choices=FORMATS,
        help="format of the files (default: by their extension; .txt is sequences). mind: "
        "behaviors.tsv, and news.tsv for --items; clicks form the histories",
    )
    table(
        "--separator", metavar="TEXT", help="what separates the columns, such as ';', '::' or tab (default: by format)"
    )
    table("--encoding", metavar="NAME", help="encoding of text, such as latin-1, gbk or utf-16 (default: UTF-8)")
    table("--file-order", action="store_true", help="rows are already oldest first; no timestamps are needed")
    table(
        "--time-format",
        nargs="+",
        metavar="FORMAT",
        help="how timestamps are written: s, ms, us or ns since 1970; unix for numbers of which each has the unit that "
        "its size shows; number for others, of which only the order counts; or formats of dates such as "
        "'%%d/%%m/%%Y %%H:%%M' (default: detected)",
    )
    table(
        "--on-error",
        choices=("fail", "skip"),
        default="fail",
        help="of interactions and items. fail: stop at the first row that is damaged or has an invalid value. skip: "
        "leave such rows out and count them (default %(default)s)",
    )
    table(
        "--missing-as-ids",
        action="store_true",
        help="values such as nan, NULL, NA and - are ids of users and items; otherwise such rows are invalid",
    )
    add_history_options(parser)
    items = parser.add_argument_group("the table of items").add_argument
    items(
        "--items",
        type=input_path,
        metavar="FILE",
        help="items with titles or other texts, also s3://…; all of them can be recommended",
    )
    items(
        "--items-columns",
        metavar="NAME,NAME,…",
        type=_comma_separated,
        help="names of the first columns of a file without a header",
    )
    items("--items-column", metavar="NAME", help="the column of the item ids")
    items(
        "--text-columns",
        nargs="*",
        metavar="NAME",
        help="the columns that describe an item; without a name: none, only the ids are wanted",
    )
    items("--name-column", metavar="NAME", help="the column of the items' names")
    for option, value, text in (
        ("format", None, "format"),
        ("separator", "TEXT", "separator of the columns"),
        ("encoding", "NAME", "encoding"),
    ):
        items(
            f"--items-{option}",
            choices=FORMATS[:-1] if value is None else None,
            metavar=value,
            help=f"{text} of that file (default: --{option} if the extensions are the same, else by its extension)",
        )
    items(
        "--max-unmatched",
        type=float,
        default=SourceSettings.max_unmatched,
        metavar="FRACTION",
        help="stop if that file lacks more than this fraction of the items of the interactions (default %(default)s)",
    )
    items("--only-seen-items", action="store_true", help="leave out items that no interaction has")


def add_split_options(parser: argparse.ArgumentParser) -> None:
    default = SplitSettings()
    split = parser.add_argument_group("split into training, validation and test").add_argument
    split(
        "--split",
        choices=(LEAVE_ONE_OUT, TIME),
        default=default.split,
        help="leave-one-out: each user's last item is for test, the one before for validation. time: split at two "
        "points in time (default %(default)s)",
    )
    split(
        "--min-interactions",
        type=int,
        default=default.min_interactions,
        metavar="N",
        help="leave-one-out: users with fewer interactions are used for training only (default %(default)s)",
    )
    for part, start in (("validation", default.validation_from), ("test", default.test_from)):
        split(
            f"--{part}-from",
            default=start,
            metavar="WHEN",
            help=f"time: where the {part} part starts: a fraction of all interactions, a timestamp or a date "
            "(default %(default)s)",
        )
    split(
        "--held-out-users",
        type=float,
        default=default.held_out_users,
        metavar="FRACTION",
        help="fraction of the users kept out of training, used for validation and test only; validation preferences "
        "then come from them alone "
        "(default %(default)s)",
    )
    split("--seed", type=seed_of, default=SEED, help="seed of all random draws (default %(default)s)")


def add_id_options(parser: argparse.ArgumentParser) -> None:
    default = IdSettings()
    ids = parser.add_argument_group(
        "semantic IDs", "from codes, else from vectors, else built from item texts and training interactions"
    ).add_argument
    ids(
        "--codes",
        type=Path,
        metavar="FILE",
        help='JSON file that maps item ids to lists of codes (numbers, or tokens such as "<a_12>"), or an earlier '
        "semantic_ids.json; or an array of items × levels or levels × items (.npy, .pt), in the order of --code-items, "
        "else of --items",
    )
    ids("--code-items", type=Path, metavar="FILE", help="the item ids of that array: one per line, or a JSON list")
    ids("--vectors", type=Path, metavar="NPY", help="one row per item, in the order of --vector-items, else of --items")
    ids("--vector-items", type=Path, metavar="FILE", help="the item ids of the vectors: one per line, or a JSON list")
    ids(
        "--drop-items-without",
        action="store_true",
        help="leave out interactions with items that have no code or vector",
    )
    ids(
        "--clusters",
        type=int,
        nargs=2,
        metavar=("L1", "L2"),
        help="number of codes at the first two levels (default: by the number of items)",
    )
    ids(
        "--codebook-sizes",
        type=int,
        nargs=3,
        default=default.codebook_sizes,
        metavar=("L1", "L2", "L3"),
        help=f"maximum sizes of the codebooks, including 5 special ids each (default "
        f"{' '.join(map(str, default.codebook_sizes))})",
    )
    for option, value, text in (
        (
            "--dimensions",
            default.dimensions,
            "dimensions of the vectors built from texts, and of those built from interactions",
        ),
        ("--window", default.window, "maximum distance, in interactions, of two items that count as chosen together"),
    ):
        ids(option, type=int, default=value, metavar="N", help=f"{text} (default %(default)s)")
    ids(
        "--text-weight",
        type=float,
        default=default.text_weight,
        metavar="W",
        help="weight of the texts, 0 to 1; interactions weigh 1 - W (default %(default)s)",
    )
    ids(
        "--reserve",
        type=float,
        default=default.reserve,
        metavar="R",
        help="leave room in the third codebook for R times as many more items, such as 0.2, which ugt ids "
        "--extend can add later without changing the size of a trained model (default %(default)s)",
    )


def add_row_options(parser: argparse.ArgumentParser) -> None:
    default = RowSettings()
    rows = parser.add_argument_group("rows").add_argument
    rows(
        "--cuts-per-user",
        type=_number_or_all,
        default=default.cuts_per_user,
        metavar="N",
        help="maximum number of training rows per user, cut at places spread over the history; or all "
        "(default %(default)s)",
    )
    for option, value, text in (
        ("--max-targets", default.max_targets, "maximum number of items to predict in a training row"),
        (
            "--max-history",
            default.max_history,
            "maximum number of items in a history, of which the most recent are kept; the converter's --max-history "
            "counts the user token too",
        ),
    ):
        rows(option, type=int, default=value, metavar="N", help=f"{text} (default %(default)s)")
    rows(
        "--history",
        choices=(POSITIVE, EVERYTHING),
        default=default.history,
        help="what histories hold. positive: what --min-rating and --positive-actions choose, as do targets. all: also "
        "what the user rated lower or did otherwise, such as impressions; targets, preference pairs and ids are the "
        "same (default %(default)s)",
    )
    rows(
        "--signals",
        choices=SIGNALS,
        default=default.signals,
        help="what rows say about items beside their ids, where the table has it. actions: ratings, and actions by "
        "name (actions.json). times: seconds since 1970, also of the moment of prediction "
        "(default %(default)s)",
    )
    rows(
        "--every-target",
        action="store_true",
        help="with --split time: a row for every held-out item of a user, not only for the first",
    )


def add_preference_options(parser: argparse.ArgumentParser) -> None:
    default = PreferenceSettings()
    pairs = parser.add_argument_group(
        "preferences", "made if there are ratings, or if the actions are named"
    ).add_argument
    pairs("--no-preferences", action="store_true", help="make no preference rows")
    pairs(
        "--chosen-min",
        type=float,
        metavar="R",
        help="items rated R or more are chosen (default: 0.8 of the largest training rating)",
    )
    pairs(
        "--rejected-max",
        type=float,
        metavar="R",
        help="items rated R or less are rejected (default: 0.4 of the largest training rating)",
    )
    pairs(
        "--rating-gap",
        type=float,
        metavar="R",
        help="instead of both: any item is chosen over those that the user rated lower by R or more",
    )
    pairs(
        "--chosen-actions",
        nargs="+",
        metavar="ACTION",
        help="items with these actions are chosen, instead of by rating",
    )
    pairs(
        "--rejected-actions",
        nargs="+",
        metavar="ACTION",
        help="items with these actions, such as impressions, are rejected",
    )
    for option, value, text in (
        (
            "--preference-window",
            default.window,
            "maximum distance between chosen and rejected, in interactions of the user",
        ),
        (
            "--rejected-per-chosen",
            default.rejected_per_chosen,
            "maximum number of rejected items per chosen one; the nearest are kept",
        ),
    ):
        pairs(option, type=int, default=value, metavar="N", help=f"{text} (default %(default)s)")
    pairs(
        "--pairs-per-user",
        type=_number_or_all,
        default=default.pairs_per_user,
        metavar="N",
        help="maximum number of pairs per user, spread over the history; or all (default %(default)s)",
    )


def source_settings(args: argparse.Namespace) -> SourceSettings:
    columns = Columns(**{role.name: vars(args)[f"{role.name}_column"] for role in fields(Columns)})
    return settings_of(
        SourceSettings,
        args,
        columns=columns,
        names=args.columns,
        items_names=args.items_columns,
        skip_bad=args.on_error == "skip",
        preferences="chosen_actions" in vars(args),
    )


def preference_settings(args: argparse.Namespace) -> PreferenceSettings:
    return settings_of(PreferenceSettings, args, off=args.no_preferences, window=args.preference_window)


def settings_of(kind: type[T], args: argparse.Namespace, **renamed: Any) -> T:
    """Makes settings from options of the same names, except for those in `renamed`. Lists become tuples."""
    values = vars(args) | renamed
    field_values = {field.name: values[field.name] for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in field_values.items()})


def print_warnings(report: dict[str, Any]) -> None:
    """Prints the report's warnings, which concern the user's data, to stderr."""
    sys.stdout.flush()
    for text in report["warnings"]:
        print(f"warning: {text}", file=sys.stderr, flush=True)


def _comma_separated(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _number_or_all(text: str) -> int | None:
    try:
        return None if text == "all" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number or all") from None
