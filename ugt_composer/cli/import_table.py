"""Import a table of interactions: histories, preferences, a catalogue and its semantic IDs, as JSON Lines or shards.

INTERACTIONS are CSV, TSV, JSON Lines or Parquet files with one row per interaction (user, item, timestamp, and
optionally a rating or an action), or text files with one line per user: `user item item …`, oldest first. Text may be
compressed (.gz, .zst). Several files, a folder or a pattern are read as one table.

    train.jsonl, validation.jsonl, test.jsonl            recommend rows
    train_preference.jsonl, validation_preference.jsonl  preference rows, if there are ratings or actions
    catalogue.jsonl                                      the items and their semantic IDs, for data.catalogue
    semantic_ids.json                                    the same ids as a versioned bundle, for --codes
    actions.json                                         the names of encoder_actions, if there are ratings or actions
    item_vectors.npy                                     one row per line of the catalogue, for init_item_vectors
    item_neighbours.npz                                  what users chose after an item, for evaluation.item_neighbours
    data.yaml, preferences.yaml                          what training has to know of the data; after a stage's YAML
    report.json                                          counts, warnings, quality of the ids, scores of popularity

With --to mds, folders of shards (train, validation, …) take the place of train.jsonl, validation.jsonl, …: the same
that `ugt convert` makes of these files, which then need no space.

Validation and test items are not used for training rows, training preferences or semantic IDs. A user's interactions
with the same timestamp keep the order of the file. Where the table has ratings, actions or timestamps, rows hold them
too, for models that read them: encoder_actions, encoder_times, and decoder_times, the moment of prediction.
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ugt_composer.cli.interrupts import as_interrupt, interrupted
from ugt_composer.errors import RunError, UserError
from ugt_composer.jsonl.schema import RECOMMEND

if TYPE_CHECKING:
    from ugt_composer.conversion.import_shards import ShardFolders
    from ugt_composer.importing.settings import IdSettings

JSON_LINES, MDS = "jsonl", "mds"  # of --to
SHARDS = Path("mds")  # where the commands that are printed convert JSON Lines to

EPILOG = """examples:
  # ratings with titles; histories hold items rated 4 or more, preferences pair ratings of 4 or more with 2 or less
  ugt import ratings.csv --items movies.csv --min-rating 4 --out data/movies

  # one line per user, items with texts in a table
  ugt import sequences.txt --items items.tsv --cuts-per-user all --out data/beauty

  # clicks preferred to impressions, tested on the last tenth of the time, with published ids
  ugt import events.parquet --split time --positive-actions click \\
    --chosen-actions click --rejected-actions impression --codes index.json --out data/news

  # MovieLens-1M
  ugt import ml-1m/ratings.dat --separator :: --columns user,item,rating,timestamp \\
    --items ml-1m/movies.dat --items-columns item,title,genres --encoding latin-1 --out data/ml-1m

  # MovieLens-100k
  ugt import ml-100k/u.data --separator tab --columns user,item,rating,timestamp \\
    --items ml-100k/u.item --items-separator '|' --items-encoding latin-1 --items-columns item,title --out data/ml-100k

  # Amazon reviews of 2018
  ugt import All_Beauty_5.json.gz --items meta_All_Beauty.json.gz --out data/beauty

  # Amazon reviews of 2023
  ugt import All_Beauty.jsonl.gz --items meta_All_Beauty.jsonl.gz --out data/beauty

  # RecBole
  ugt import ml-100k/ml-100k.inter --items ml-100k/ml-100k.item --out data/ml-100k

  # MIND: clicks are histories, and preferred to impressions of the same time
  ugt import MIND/behaviors.tsv --format mind --items MIND/news.tsv \\
    --chosen-actions click --rejected-actions impression --out data/mind

  # shards instead of JSON Lines: trained on with data.train.local=data/movies/train
  ugt import ratings.csv --items movies.csv --to mds --out data/movies

  # a folder of parts
  ugt import events/ --out data/events

  # from S3, or another store at S3_ENDPOINT_URL
  ugt import s3://bucket/events --items s3://bucket/items.csv --out data/events

  # more than one machine holds: on a Spark cluster, whose machines share the folders
  ugt import events/ --engine spark --master spark://HOST:7077 --out data/events"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ugt_composer.conversion.shard_options import add_shard_options
    from ugt_composer.importing import options
    from ugt_composer.spark.options import add_engine_options
    from ugt_composer.storage.s3_url import input_path

    parser.add_argument(
        "interactions",
        type=input_path,
        nargs="+",
        metavar="INTERACTIONS",
        help="files, folders or patterns such as 'parts/*.csv', also s3://BUCKET/PREFIX; several are read as one table",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="output folder; appears only when complete"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier run in --out")
    parser.add_argument(
        "--to",
        choices=(JSON_LINES, MDS),
        default=JSON_LINES,
        help="jsonl: rows as JSON Lines, for ugt convert. mds: as folders of shards, for training "
        "(default %(default)s)",
    )
    add_engine_options(parser, "INTERACTIONS and DIR")
    options.add_source_options(parser)
    options.add_split_options(parser)
    options.add_row_options(parser)
    options.add_preference_options(parser)
    options.add_id_options(parser)
    add_shard_options(parser, "form of the shards, with --to mds")


def main(arguments: argparse.Namespace) -> int:
    try:
        with as_interrupt():
            report, limits = _import(arguments)
    except KeyboardInterrupt as interrupt:
        return interrupted(interrupt, arguments.out)
    except OSError as error:
        raise RunError(f"{error}; nothing was written to {arguments.out}") from None
    from ugt_composer.cli.import_report import print_next, print_report
    from ugt_composer.importing.options import print_warnings

    print_report(report)
    print_warnings(report)
    print_next(report, arguments.out, SHARDS, limits)
    return 0


def _import(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report, and the limits of a conversion of the rows."""
    from tqdm import tqdm

    from ugt_composer.conversion.import_shards import ENDING
    from ugt_composer.conversion.output import OUTPUT_NAMES
    from ugt_composer.conversion.settings import limits_for
    from ugt_composer.importing import options
    from ugt_composer.importing.run import FILES, ROW_FILES, LocalEngine, Settings, import_interactions
    from ugt_composer.importing.run_yaml import write_run_yamls
    from ugt_composer.importing.settings import IdSettings, RowSettings, SplitSettings
    from ugt_composer.importing.spark_engine import SparkEngine
    from ugt_composer.spark.options import engine_session
    from ugt_composer.spark.progress import job_progress
    from ugt_composer.storage.output_folder import new_folder

    settings = Settings(
        options.source_settings(arguments),
        options.settings_of(SplitSettings, arguments),
        options.settings_of(IdSettings, arguments),
        options.settings_of(RowSettings, arguments),
        options.preference_settings(arguments),
    )
    limits = limits_for(settings.rows.max_history, settings.rows.max_targets)
    writer = _shard_writer(arguments, settings.ids, limits)
    folders = {name.removesuffix(ENDING): OUTPUT_NAMES for name in ROW_FILES}  # of shards
    with (
        new_folder(arguments.out, FILES, arguments.overwrite, folders) as folder,
        engine_session(arguments, "ugt import", "") as session,
    ):
        engine = LocalEngine(writer) if session is None else SparkEngine(session, writer)
        with nullcontext() if session is None else job_progress(session, "importing"):
            report = import_interactions(settings, folder, lambda text: tqdm.write(text, file=sys.stderr), engine)
        shards = SHARDS if writer is None else arguments.out
        write_run_yamls(folder, arguments.out, shards, report, limits["max_positions"])
    return report, limits


def _shard_writer(arguments: argparse.Namespace, ids: "IdSettings", limits: dict[str, Any]) -> "ShardFolders | None":
    """What writes rows as shards; None if they are written as JSON Lines."""
    from ugt_composer.conversion.import_shards import ShardFolders
    from ugt_composer.conversion.settings import Settings as ShardSettings
    from ugt_composer.conversion.shard_options import changed_shard_options, shard_settings

    if arguments.to == JSON_LINES:
        if useless := changed_shard_options(arguments):
            raise UserError(f"{', '.join(useless)}: expected --to {MDS} too; --to {JSON_LINES} writes no shards")
        return None
    shards = ShardSettings(kind=RECOMMEND, codebook_sizes=ids.codebook_sizes, **limits, **shard_settings(arguments))
    return ShardFolders(arguments.out, shards)
