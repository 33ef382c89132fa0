"""Options that several commands take. Nothing heavy is imported here: --help is quick."""

import argparse


def add_item_score_weight(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--item-score-weight",
        type=float,
        metavar="W",
        help="of the user-item score that is added to the log-probability (default: the model's config)",
    )
