"""Converts a table of interactions to JSON Lines or shards: histories, preferences, a catalogue and its semantic IDs.

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
    report.json                                          counts, warnings, quality of the ids, scores of popularity

With --to mds, folders of shards (train, validation, …) take the place of train.jsonl, validation.jsonl, …: the same
that jsonl_to_mds.py makes of these files, which then need no space.

Validation and test items are not used for training rows, training preferences or semantic IDs. A user's interactions
with the same timestamp keep the order of the file. Where the table has ratings, actions or timestamps, rows hold them
too, for models that read them: encoder_actions, encoder_times, and decoder_times, the moment of prediction.
"""

import argparse
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ugt_composer.job.cpus import share_cpus

if __name__ == "__main__":
    share_cpus()  # before NumPy and scikit-learn are imported, which start their threads

from tqdm import tqdm

from ugt_composer import __version__
from ugt_composer.conversion.import_shards import ENDING, ShardFolders
from ugt_composer.conversion.output import OUTPUT_NAMES
from ugt_composer.conversion.settings import Settings as ShardSettings
from ugt_composer.conversion.settings import limits_for
from ugt_composer.conversion.shard_options import add_shard_options, changed_shard_options, shard_settings
from ugt_composer.errors import RunError, UserError, exit_on_user_error
from ugt_composer.importing import options
from ugt_composer.importing.quality import summary
from ugt_composer.importing.report_lines import lines_about_histories, lines_about_interactions
from ugt_composer.importing.run import CATALOGUE, FILES, ROW_FILES, LocalEngine, Settings, import_interactions
from ugt_composer.importing.settings import IdSettings, RowSettings, SplitSettings
from ugt_composer.importing.spark_engine import SparkEngine
from ugt_composer.jsonl.schema import PREFERENCE, RECOMMEND
from ugt_composer.spark.options import add_engine_options, engine_session
from ugt_composer.spark.progress import job_progress
from ugt_composer.storage.output_folder import new_folder
from ugt_composer.storage.s3_url import input_path

JSON_LINES, MDS = "jsonl", "mds"  # of --to
FOLDERS = {name.removesuffix(ENDING): OUTPUT_NAMES for name in ROW_FILES}  # of shards

EXAMPLES = """
examples:
  # ratings with titles; histories hold items rated 4 or more, preferences pair ratings of 4 or more with 2 or less
  python convert/interactions_to_jsonl.py ratings.csv --items movies.csv --min-rating 4 --out data/movies

  # one line per user, items with texts in a table
  python convert/interactions_to_jsonl.py sequences.txt --items items.tsv --cuts-per-user all --out data/beauty

  # clicks preferred to impressions, tested on the last tenth of the time, with published ids
  python convert/interactions_to_jsonl.py events.parquet --split time --positive-actions click \\
    --chosen-actions click --rejected-actions impression --codes index.json --out data/news

  # MovieLens-1M
  python convert/interactions_to_jsonl.py ml-1m/ratings.dat --separator :: --columns user,item,rating,timestamp \\
    --items ml-1m/movies.dat --items-columns item,title,genres --encoding latin-1 --out data/ml-1m

  # MovieLens-100k
  python convert/interactions_to_jsonl.py ml-100k/u.data --separator tab --columns user,item,rating,timestamp \\
    --items ml-100k/u.item --items-separator '|' --items-encoding latin-1 --items-columns item,title --out data/ml-100k

  # Amazon reviews of 2018
  python convert/interactions_to_jsonl.py All_Beauty_5.json.gz --items meta_All_Beauty.json.gz --out data/beauty

  # Amazon reviews of 2023
  python convert/interactions_to_jsonl.py All_Beauty.jsonl.gz --items meta_All_Beauty.jsonl.gz --out data/beauty

  # RecBole
  python convert/interactions_to_jsonl.py ml-100k/ml-100k.inter --items ml-100k/ml-100k.item --out data/ml-100k

  # MIND: clicks are histories, and preferred to impressions of the same time
  python convert/interactions_to_jsonl.py MIND/behaviors.tsv --format mind --items MIND/news.tsv \\
    --chosen-actions click --rejected-actions impression --out data/mind

  # shards instead of JSON Lines: trained on with data.train.local=data/movies/train
  python convert/interactions_to_jsonl.py ratings.csv --items movies.csv --to mds --out data/movies

  # a folder of parts
  python convert/interactions_to_jsonl.py events/ --out data/events

  # from S3, or another store at S3_ENDPOINT_URL
  python convert/interactions_to_jsonl.py s3://bucket/events --items s3://bucket/items.csv --out data/events

  # more than one machine holds: on a Spark cluster, whose machines share the folders
  python convert/interactions_to_jsonl.py events/ --engine spark --master spark://HOST:7077 --out data/events
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"ugt_composer {__version__}")
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
        help="jsonl: rows as JSON Lines, for jsonl_to_mds.py. mds: as folders of shards, for training "
        "(default %(default)s)",
    )
    add_engine_options(parser, "INTERACTIONS and DIR")
    options.add_source_options(parser)
    options.add_split_options(parser)
    options.add_row_options(parser)
    options.add_preference_options(parser)
    options.add_id_options(parser)
    add_shard_options(parser, "form of the shards, with --to mds")
    args = parser.parse_args(arguments)
    settings = Settings(
        options.source_settings(args),
        options.settings_of(SplitSettings, args),
        options.settings_of(IdSettings, args),
        options.settings_of(RowSettings, args),
        options.preference_settings(args),
    )
    limits = limits_for(settings.rows.max_history, settings.rows.max_targets)
    writer = _shard_writer(args, settings.ids, limits)
    try:
        with (
            new_folder(args.out, FILES, args.overwrite, FOLDERS) as folder,
            engine_session(args, "interactions_to_jsonl", "") as session,
        ):
            engine = LocalEngine(writer) if session is None else SparkEngine(session, writer)
            with nullcontext() if session is None else job_progress(session, "importing"):
                report = import_interactions(settings, folder, lambda text: tqdm.write(text, file=sys.stderr), engine)
    except OSError as error:
        raise RunError(f"{error}; nothing was written to {args.out}") from None
    print_report(report)
    options.print_warnings(report)
    print_next(report, args.out, limits)
    return 0


def _shard_writer(args: argparse.Namespace, ids: IdSettings, limits: dict[str, Any]) -> ShardFolders | None:
    """What writes rows as shards; None if they are written as JSON Lines."""
    if args.to == JSON_LINES:
        if useless := changed_shard_options(args):
            raise UserError(f"{', '.join(useless)}: expected --to {MDS} too; --to {JSON_LINES} writes no shards")
        return None
    shards = ShardSettings(kind=RECOMMEND, codebook_sizes=ids.codebook_sizes, **limits, **shard_settings(args))
    return ShardFolders(args.out, shards)


def print_report(report: dict[str, Any]) -> None:
    for text, number in (
        ("rows skipped because they could not be parsed", report["skipped_rows"]),
        ("interactions skipped because their items have no code or vector", report["interactions_without_id"]),
    ):
        if number:
            print(f"{text}: {number:,}")
    if report["first_skipped"]:
        print(f"the first of them: {report['first_skipped']}")
    if "item_matches" in report:
        matches, table = report["item_matches"], report["item_table"]
        print(
            f"{table['items']:,} items in the table of items, {table['items_without_text']:,} without text, "
            f"{matches['table_without_interactions']:,} without interactions; "
            f"{matches['not_in_table']:,} of the {matches['items_of_interactions']:,} items of the interactions are "
            "not in it"
        )
    parts = ", ".join(f"{count:,} {part}" for part, count in report["parts"].items())
    users = report["users"] + report.get("k_core", {"users_removed": 0})["users_removed"]
    print(f"{report['interactions']:,} interactions of {users:,} users")
    for line in lines_about_interactions(report):
        print(line)
    print(f"{report['positive']:,} of them in histories: {parts}")
    for line in lines_about_histories(report["histories"]):
        print(line)
    if report["training_after_median_test_time"] is not None:
        fraction = report["training_after_median_test_time"]
        print(f"{fraction:.1%} of the training interactions are later than the median test interaction")
    if "validation_from_date" in report:
        print(f"validation from {report['validation_from_date']}, test from {report['test_from_date']}")
    for name, count in report["rows"].items():
        print(f"{name}: {count:,} rows")
    print_preferences(report)
    for part, scores in report["popularity"].items():
        print(f"popularity on {part}: " + ", ".join(f"{name} {score:.4f}" for name, score in scores.items()))
    print(summary(report["quality"]))


def print_preferences(report: dict[str, Any]) -> None:
    facts = report["preferences"]
    if "why_none" in facts:
        print(f"no preference rows: {facts['why_none']}")
        return
    if "chosen_min" in facts:
        by = f"rated {facts['chosen_min']:g} or more against {facts['rejected_max']:g} or less"
    elif "rating_gap" in facts:
        by = f"any rating against those lower by {facts['rating_gap']:g} or more"
    else:
        by = f"{', '.join(facts['chosen_actions'])} against {', '.join(facts['rejected_actions'])}"
    print(f"preferences: {by}; validation by {facts['validation_by']}")
    if not any(name.startswith("train_preference") for name in report["rows"]):
        print(f"no training pairs among {facts['chosen']:,} chosen and {facts['rejected']:,} rejected; no file written")


def print_next(report: dict[str, Any], out: Path, limits: dict[str, Any]) -> None:
    """The commands that convert the files and check a run on them, to be copied into a shell.

    Args:
        limits: of the conversion; those that are not its defaults are named.
    """
    sizes, facts = [str(size) for size in report["codebook_sizes"]], report["histories"]
    catalogue = str(out / CATALOGUE)
    print(f"\nAll in {out}; the catalogue is {catalogue}, fingerprint {report['fingerprint'][:12]}. Next:")
    names = [name for name, count in report["rows"].items() if count]
    shards = out
    if f"train{ENDING}" in names:
        shards = Path("mds")
        larger = {key: value for key, value in limits.items() if value > getattr(ShardSettings, key)}
        more = [text for key, value in larger.items() for text in (f"--{key.replace('_', '-')}", str(value))]
        for name in names:
            stem = name.removesuffix(ENDING)
            kind = PREFERENCE if PREFERENCE in stem else RECOMMEND
            command = ["python", "convert/jsonl_to_mds.py", str(out / name), "--kind", kind, "--codebook-sizes", *sizes]
            command += [*more, "--catalogue", catalogue, "--out", str(shards / stem)]
            print("  " + shlex.join(command))
    evaluated = shards / "validation" if {"validation", f"validation{ENDING}"} & set(names) else "null"
    keys = [f"data.train.local={shards / 'train'}", f"data.eval.local={evaluated}", f"data.catalogue={catalogue}"]
    command = ["python", "train.py", "yamls/stage1.yaml", "--dry-run", *keys]
    print("  " + shlex.join([*command, f"model.codebook_sizes=[{','.join(sizes)}]"]))
    readers = {"actions": f"model.num_actions={len(facts.get('actions', ()))}", "times": "model.time_buckets=32"}
    if signals := [name for name in readers if name in facts]:
        read_with = " ".join(readers[name] for name in signals)
        print(f"The rows have {' and '.join(signals)}, which a model reads with {read_with}")


if __name__ == "__main__":
    exit_on_user_error(main)
