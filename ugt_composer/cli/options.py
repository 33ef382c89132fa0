"""Options shared by several commands. No heavy imports here, so that --help is fast."""

import argparse
import os
from pathlib import Path

from ugt_composer.errors import UserError

MAX_UNMATCHED = 0.5  # the default of --max-unmatched


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="a model (best/ or latest/ of a run, or s3://…), not a training checkpoint",
    )


def add_catalogue(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--catalogue", metavar="FILE", help="default: the data.catalogue that the model was trained with"
    )


def add_output_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="the folder to write; it appears only when it is complete"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DIR once the new one is complete")


def add_item_lists(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        metavar="FILE",
        help="recommend only these items: one item id per line, or a JSON list of them",
    )
    parser.add_argument("--exclude", metavar="FILE", help="recommend none of these items: a file like that of --only")
    parser.add_argument(
        "--max-unmatched",
        type=float,
        metavar="FRACTION",
        help=f"of the item ids of such a file that the catalogue may lack (default {MAX_UNMATCHED}); they are named",
    )


def add_item_scores(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--item-score-weight",
        type=float,
        metavar="W",
        help="weight of the user-item score that is added to the log-probability (default: that of the model's config)",
    )
    parser.add_argument(
        "--item-neighbours",
        metavar="FILE",
        help="item_neighbours.npz of the import (default: evaluation.item_neighbours of the model's config)",
    )
    parser.add_argument(
        "--neighbour-weight",
        type=float,
        metavar="A",
        help="fraction of these neighbours in the user-item score (default: that of the model's config)",
    )


def add_max_history(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-history",
        type=int,
        metavar="N",
        help="items of a history that the model reads, the most recent ones (default: evaluation.max_history of the "
        "model's config, or as many as the longest history that it was trained on)",
    )


def check_writable(option: str, path: str | Path) -> None:
    """Raises UserError before the work starts if the file of an option cannot be written."""
    if Path(path).is_dir() or not os.access(Path(path).parent, os.W_OK):
        raise UserError(f"{option} {path} cannot be written; expected a file in a writable folder")
