"""Command-line options that choose which interactions form the histories."""

import argparse

from ugt_composer.importing.repeats import FIRST, KEEP, LAST
from ugt_composer.importing.settings import SourceSettings


def add_history_options(parser: argparse.ArgumentParser) -> None:
    histories = parser.add_argument_group("which interactions form the histories").add_argument
    histories(
        "--min-rating", type=float, metavar="R", help="only items rated R or more enter the histories (default: all)"
    )
    histories(
        "--positive-actions",
        nargs="+",
        metavar="ACTION",
        help="only interactions with these actions enter the histories; or all. Needed if there are several actions",
    )
    histories(
        "--missing-ratings",
        nargs="+",
        type=float,
        metavar="R",
        help="ratings that mean «not rated», such as 0 or -1",
    )
    histories(
        "--keep-duplicates",
        action="store_true",
        help="keep rows whose user, item, time, rating and action equal those of an earlier row (default: left out)",
    )
    histories(
        "--repeats",
        choices=(KEEP, FIRST, LAST),
        default=SourceSettings.repeats,
        help="which interactions of a user with the same item enter the history: all of them, the first or the last "
        "(default %(default)s)",
    )
    histories(
        "--k-core",
        type=int,
        metavar="N",
        help="remove users and items with fewer than N interactions in histories, until there are none, also from the "
        "catalogue",
    )
