"""Convert JSON Lines of histories or preferences to MDS shards, which training streams."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING

from ugt_composer.cli.interrupts import as_interrupt, interrupted
from ugt_composer.errors import EXIT_ERROR, UserError

if TYPE_CHECKING:
    from ugt_composer.conversion.convert import Conversion, Engine
    from ugt_composer.conversion.settings import Settings

EPILOG = """rows (one JSON object per line):
  recommend   user_id; encoder_l1_ids, encoder_l2_ids, encoder_l3_ids, encoder_positions, encoder_token_types,
              encoder_mask (lists of one length: the history); the same six with decoder_ (what followed);
              labels_l1, labels_l2, labels_l3 (as long as the decoder's lists; -100 = ignored)
              optional: encoder_actions (integers, 0 = unknown), encoder_times (seconds, oldest first),
              decoder_times (seconds: when each target is predicted)
  preference  user_id; user_sequence (an object with the six encoder_ lists); chosen_item and rejected_item
              (objects with l1_id, l2_id, l3_id; several under rejected_items); preference_score (optional)
              optional: encoder_actions and encoder_times in user_sequence, decoder_times (one number)

examples:
  # a file, checked row by row; stops at the first bad row and reports its error
  ugt convert data/train.jsonl --kind recommend --out mds/train

  # the same, and checked against another catalogue than a catalogue.jsonl beside the file
  ugt convert data/train.jsonl --kind recommend --catalogue ids/catalogue.jsonl --out mds/train

  # on a Spark cluster
  ugt convert /shared/logs/ --kind recommend --out /shared/mds/train \
    --engine spark --master spark://host:7077

  # from S3 to S3
  ugt convert s3://bucket/logs --kind recommend --out s3://bucket/mds/train --engine spark

  # a folder of compressed files on four cores; bad rows are quarantined, at most 1 in 100
  ugt convert logs/ --kind recommend --out mds/train --workers 4 --on-error quarantine

Then name the folder in the YAML: data.train.local=mds/train
Exit status: 0 done, 1 error, 2 bad input, 130 interrupted; nothing is written unless it is done."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ugt_composer.conversion.action_names import NO_NAMES
    from ugt_composer.conversion.known_items import CATALOGUE_NAME, NO_CATALOGUE
    from ugt_composer.conversion.partition import QUARANTINE_NAME
    from ugt_composer.conversion.settings import FAIL, KINDS, QUARANTINE, Settings
    from ugt_composer.conversion.shard_options import add_shard_options
    from ugt_composer.jsonl.schema import ACTIONS_NAME
    from ugt_composer.spark.options import add_engine_options

    defaults = Settings(kind=KINDS[0])
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a .jsonl file, plain or compressed (.gz, .zst), or a folder, of which all such files are read; "
        "also s3://BUCKET/PREFIX",
    )
    add("--kind", required=True, choices=KINDS, help="kind of the rows in the files, see below")
    add("--out", required=True, metavar="DIR", help="output folder or s3://BUCKET/PREFIX; appears only when complete")
    add("--overwrite", action="store_true", help="replace DIR, once the new one is complete")
    add("--workers", type=int, metavar="N", help="processes; the output is the same for any N (default 1)")
    add_engine_options(parser, "INPUT and DIR")
    limits = parser.add_argument_group("limits of the rows, as in the model's YAML").add_argument
    limits(
        "--codebook-sizes",
        type=int,
        nargs=len(defaults.codebook_sizes),
        default=defaults.codebook_sizes,
        metavar=("L1", "L2", "L3"),
        help=f"ids of a level are 0..size-1 (default {' '.join(map(str, defaults.codebook_sizes))})",
    )
    for option, value, text in (
        ("--max-history", defaults.max_history, "maximum number of tokens in a history; the most recent are kept"),
        ("--max-target", defaults.max_target, "maximum number of tokens in a target; the first are kept"),
        ("--max-positions", defaults.max_positions, "positions are 0..N-1"),
        ("--max-line-bytes", defaults.max_line_bytes, "a longer line is a bad row"),
    ):
        limits(option, type=int, default=value, metavar="N", help=f"{text} (default {value})")
    items = parser.add_argument_group("items and actions").add_argument
    items(
        "--catalogue",
        metavar="FILE",
        help=f"the catalogue that the rows' semantic IDs come from: items that it lacks are counted, and the shards "
        f"record its fingerprint, so that training refuses another one (default: {CATALOGUE_NAME} beside the input, if "
        f"there is one; {NO_CATALOGUE}: no check)",
    )
    items(
        "--max-fraction-outside-catalogue",
        type=float,
        default=defaults.max_fraction_outside_catalogue,
        metavar="FRACTION",
        help="fail if FILE lacks a larger fraction of the history items, targets, chosen or rejected items (default "
        f"{defaults.max_fraction_outside_catalogue})",
    )
    items(
        "--actions",
        metavar="FILE",
        help="a JSON list of the names of the actions 1, 2, ...: a larger action is an error; the shards record the "
        f"names (default: {ACTIONS_NAME} beside the input, if there is one; {NO_NAMES}: no names)",
    )
    errors = parser.add_argument_group("bad rows").add_argument
    errors(
        "--on-error",
        choices=(FAIL, QUARANTINE),
        default=defaults.on_error,
        help=f"fail: stop at the first, write nothing. quarantine: write them to DIR/{QUARANTINE_NAME} with the "
        f"reason, convert the rest (default {defaults.on_error})",
    )
    errors(
        "--max-error-rate",
        type=float,
        default=defaults.max_error_rate,
        metavar="RATE",
        help=f"with quarantine: fail if a larger fraction of the rows is bad (default {defaults.max_error_rate})",
    )
    add_shard_options(parser)


def main(arguments: argparse.Namespace) -> int:
    """Returns the exit status. Raises UserError for what the user has to fix."""
    from ugt_composer.conversion.convert import convert
    from ugt_composer.conversion.settings import Settings
    from ugt_composer.conversion.shard_options import shard_settings
    from ugt_composer.conversion.workers import WorkerDied

    given = vars(arguments) | {"codebook_sizes": tuple(arguments.codebook_sizes)} | shard_settings(arguments)
    settings = Settings(**{field.name: given[field.name] for field in fields(Settings) if field.name in given})
    try:
        with as_interrupt(), _engine(arguments) as engine:
            conversion = convert(arguments.inputs, arguments.out, settings, engine, arguments.overwrite)
    except KeyboardInterrupt as interrupt:
        return interrupted(interrupt, arguments.out)
    except (WorkerDied, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    _print_report(conversion, settings, arguments.out)
    return 0


@contextmanager
def _engine(arguments: argparse.Namespace) -> "Iterator[Engine]":
    from ugt_composer.conversion.spark_engine import SparkEngine
    from ugt_composer.conversion.workers import LocalEngine
    from ugt_composer.spark.options import LOCAL, SPARK, engine_session

    if arguments.workers is not None and arguments.engine == SPARK:
        raise UserError(
            f"--workers {arguments.workers} is for --engine {LOCAL}; with {SPARK}, --master local[N] uses N cores"
        )
    with engine_session(arguments, "ugt convert", "; --workers N uses N processes") as session:
        if session is not None:
            yield SparkEngine(session)
            return
        with _progress_bar() as progress:
            yield LocalEngine(1 if arguments.workers is None else arguments.workers, progress)


@contextmanager
def _progress_bar() -> Iterator[Callable[[int], Callable[[int], None]]]:
    """A progress bar in bytes of the input, on a terminal only."""
    from tqdm import tqdm

    bar: tqdm | None = None

    def start(total: int) -> Callable[[int], None]:
        nonlocal bar
        bar = tqdm(total=total, unit="B", unit_scale=True, desc="converting", disable=None, leave=False)
        return bar.update

    try:
        yield start
    finally:
        if bar is not None:
            bar.close()


def _print_report(conversion: "Conversion", settings: "Settings", out: str) -> None:
    from ugt_composer.conversion.partition import QUARANTINE_NAME
    from ugt_composer.conversion.report import reasons, summary

    counts = conversion.counts
    print(summary(counts, settings, conversion.catalogue))
    if counts.bad_rows:
        print(f"\nbad rows, in {os.path.join(out, QUARANTINE_NAME)} with their reasons:\n{reasons(counts)}")
    for warning in conversion.warnings:
        print(f"warning: {warning}")
    shards = "1 shard" if conversion.shards == 1 else f"{conversion.shards:,} shards"
    print(f"\n{out}: {shards}, {conversion.shard_bytes / 1e6:,.1f} MB")
