"""Assigns semantic IDs to items, or reports their quality.

Ids are made from --codes, else from --vectors, else from the texts of --items and the training part of INTERACTIONS:
residual k-means gives L1 and L2, and L3 distinguishes the items that share both. Interactions are split as in
convert/interactions_to_jsonl.py, and their validation and test parts are not used.

With --extend, the items of --items that an earlier semantic_ids.json lacks are added to it: they get their ids by the
stored centres of each level, and no id of the other items changes.

    semantic_ids.json   the ids as a versioned bundle; give it to interactions_to_jsonl.py as --codes
    semantic_ids.npz    what gives ids to new items: the centres of each level, the words of the texts
    catalogue.jsonl     the same ids, for data.catalogue
    item_vectors.npy    the vectors of the items, for init_item_vectors: one row per line of the catalogue
    item_neighbours.npz with --extend, if the earlier ids have such a file beside them: also of the new items, by their
                        vectors, for evaluation.item_neighbours
    report.json         the quality of the ids
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from ugt_composer.job.cpus import share_cpus

if __name__ == "__main__":
    share_cpus()  # before NumPy and scikit-learn are imported, which start their threads

from ugt_composer import __version__
from ugt_composer.errors import UserError, exit_on_user_error
from ugt_composer.importing import options
from ugt_composer.importing.assigner import VECTORS
from ugt_composer.importing.bundle import CATALOGUE
from ugt_composer.importing.quality import summary
from ugt_composer.importing.report_lines import lines_about_interactions
from ugt_composer.importing.run import EXTENDED_FILES, ID_FILES, add_items, make_ids
from ugt_composer.importing.settings import IdSettings, SplitSettings
from ugt_composer.storage.output_folder import new_folder
from ugt_composer.storage.s3_url import input_path

EXAMPLES = """
examples:
  # make ids from texts and interactions
  python convert/semantic_ids.py sequences.txt --items items.tsv --out data/ids

  # from vectors, one per row of the table of items
  python convert/semantic_ids.py --items items.tsv --vectors items.npy --clusters 128 512 --out data/ids

  # add the new items of a table, which may have the old ones too
  python convert/semantic_ids.py --extend data/movies/semantic_ids.json --items new_movies.csv --out data/more_movies

  # only report the quality of published codes
  python convert/semantic_ids.py sequences.txt --items items.tsv --report --codes index.json
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"ugt_composer {__version__}")
    parser.add_argument(
        "interactions",
        type=input_path,
        nargs="*",
        metavar="INTERACTIONS",
        help="files, folders or patterns of a table of interactions, also s3://BUCKET/PREFIX",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder; appears only when complete")
    parser.add_argument("--report", action="store_true", help="write nothing: print the report of --codes")
    parser.add_argument(
        "--extend",
        type=Path,
        metavar="FILE",
        help="a semantic_ids.json: keep its ids and add the new items of --items (of --vectors, if it was made from "
        "vectors); the files beside it are needed",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier run in --out")
    options.add_source_options(parser)
    options.add_split_options(parser)
    options.add_id_options(parser)
    args = parser.parse_args(arguments)
    if args.report and (args.codes is None or args.out is not None):
        raise UserError("--report needs --codes FILE and writes nothing; leave out --report to make ids in --out DIR")
    if not args.report and args.out is None:
        raise UserError(
            "--out DIR is missing, the folder to write; or use --report to print the quality of --codes FILE"
        )
    if args.extend is not None:
        _check_extend(args)
    split, ids = options.settings_of(SplitSettings, args), options.settings_of(IdSettings, args)
    settings = options.source_settings(args), split, ids

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if args.report:
        with tempfile.TemporaryDirectory() as scratch:
            report = make_ids(*settings, Path(scratch), say)
    else:
        files = ID_FILES if args.extend is None else EXTENDED_FILES
        with new_folder(args.out, files, args.overwrite) as folder:
            if args.extend is not None:
                report = add_items(args.extend, settings[0], ids, folder, say)
            else:
                report = make_ids(*settings, folder, say)
    if "extension" in report:
        print(_about_extension(report["extension"]))
    if "repeats" in report:
        for line in lines_about_interactions(report):
            print(line)
    print(summary(report["quality"]))
    options.print_warnings(report)
    print(f"codebook sizes {' '.join(map(str, report['codebook_sizes']))}, fingerprint {report['fingerprint']}")
    if not args.report:
        print(f"The files are in {args.out}")
    if args.extend is not None:
        print_next(args.out)
    return 0


def print_next(out: Path) -> None:
    """The command that gives a trained model the new items, to be copied into a shell."""
    command = ["ugt", "extend", "--checkpoint", "checkpoints/stage3/best", "--catalogue", str(out / CATALOGUE)]
    print("Next, with the folder of a model that was trained on the items so far as --checkpoint:")
    print("  " + shlex.join([*command, "--item-vectors", str(out / VECTORS), "--out", "extended"]))


def _check_extend(args: argparse.Namespace) -> None:
    """Raises UserError for options that have no effect with --extend."""
    if args.interactions:
        raise UserError(
            f"--extend and {args.interactions[0]}: new items get their ids without interactions; leave these out"
        )
    default = IdSettings()
    names = ("codes", "code_items", "clusters", "dimensions", "window", "text_weight", "drop_items_without")
    given = [name for name in names if vars(args)[name] != vars(default)[name]]
    option = "--report" if args.report else f"--{given[0].replace('_', '-')}" if given else None
    if option is not None:
        raise UserError(f"--extend and {option}: expected only one; the ids are made as those in {args.extend} were")


def _about_extension(facts: dict[str, Any]) -> str:
    prefix, size = facts["largest_prefix"], facts["l3_size"]
    return (
        f"{facts['new_items']:,} items were added to {facts['old_items']:,}; {facts['with_own_l3_id']:,} of them have "
        f"a third-level id of their own, {facts['with_shared_l3_id']:,} share one with items of other prefixes\n"
        f"third codebook: {size['now']:,} ids (before: {size['before']:,}), {facts['unused_l3_ids']:,} unused; at most "
        f"{prefix['items']:,} items share a prefix, which has room for {prefix['room']:,}"
    )


if __name__ == "__main__":
    exit_on_user_error(main)
