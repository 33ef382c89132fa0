"""Assign semantic IDs to items, or report their quality.

Ids are made from --codes, else from --vectors, else from the texts of --items and the training part of INTERACTIONS:
residual k-means gives L1 and L2, and L3 distinguishes the items that share both. Interactions are split as by
`ugt import`, and their validation and test parts are not used.

With --extend, the items of --items that an earlier semantic_ids.json lacks are added to it: they get their ids by the
stored centres of each level, and no id of the other items changes.

    semantic_ids.json   the ids as a versioned bundle; give it to ugt import as --codes
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

from ugt_composer.cli.interrupts import as_interrupt, interrupted
from ugt_composer.errors import UserError

EPILOG = """examples:
  # make ids from texts and interactions
  ugt ids sequences.txt --items items.tsv --out data/ids

  # from vectors, one per row of the table of items
  ugt ids --items items.tsv --vectors items.npy --clusters 128 512 --out data/ids

  # add the new items of a table, which may have the old ones too
  ugt ids --extend data/movies/semantic_ids.json --items new_movies.csv --out data/more_movies

  # only report the quality of published codes
  ugt ids sequences.txt --items items.tsv --report --codes index.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ugt_composer.importing import options
    from ugt_composer.storage.s3_url import input_path

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


def main(arguments: argparse.Namespace) -> int:
    try:
        with as_interrupt():
            report = _make(arguments)
    except KeyboardInterrupt as interrupt:
        return interrupted(interrupt, arguments.out)
    from ugt_composer.importing.options import print_warnings
    from ugt_composer.importing.quality import summary
    from ugt_composer.importing.report_lines import lines_about_interactions

    if "extension" in report:
        print(_about_extension(report["extension"]))
    if "repeats" in report:
        for line in lines_about_interactions(report):
            print(line)
    print(summary(report["quality"]))
    print_warnings(report)
    print(f"codebook sizes {' '.join(map(str, report['codebook_sizes']))}, fingerprint {report['fingerprint']}")
    if not arguments.report:
        print(f"The files are in {arguments.out}")
    if arguments.extend is not None:
        print_next(arguments.out)
    return 0


def _make(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes the ids unless only their report is wanted, which is returned."""
    from ugt_composer.importing import options
    from ugt_composer.importing.run import EXTENDED_FILES, ID_FILES, add_items, make_ids
    from ugt_composer.importing.settings import IdSettings, SplitSettings
    from ugt_composer.storage.output_folder import new_folder

    if arguments.report and (arguments.codes is None or arguments.out is not None):
        raise UserError("--report needs --codes FILE and writes nothing; leave out --report to make ids in --out DIR")
    if not arguments.report and arguments.out is None:
        raise UserError(
            "--out DIR is missing, the folder to write; or use --report to print the quality of --codes FILE"
        )
    if arguments.extend is not None:
        _check_extend(arguments)
    split, ids = options.settings_of(SplitSettings, arguments), options.settings_of(IdSettings, arguments)
    settings = options.source_settings(arguments), split, ids

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if arguments.report:
        with tempfile.TemporaryDirectory() as scratch:
            return make_ids(*settings, Path(scratch), say)
    files = ID_FILES if arguments.extend is None else EXTENDED_FILES
    with new_folder(arguments.out, files, arguments.overwrite) as folder:
        if arguments.extend is not None:
            return add_items(arguments.extend, settings[0], ids, folder, say)
        return make_ids(*settings, folder, say)


def print_next(out: Path) -> None:
    """The command that gives a trained model the new items, to be copied into a shell."""
    from ugt_composer.importing.assigner import VECTORS
    from ugt_composer.importing.bundle import CATALOGUE

    command = ["ugt", "extend", "--checkpoint", "checkpoints/stage3/best", "--catalogue", str(out / CATALOGUE)]
    print("Next, with the folder of a model that was trained on the items so far as --checkpoint:")
    print("  " + shlex.join([*command, "--item-vectors", str(out / VECTORS), "--out", "extended"]))


def _check_extend(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that have no effect with --extend."""
    from ugt_composer.importing.settings import IdSettings

    if arguments.interactions:
        raise UserError(
            f"--extend and {arguments.interactions[0]}: new items get their ids without interactions; leave these out"
        )
    default = IdSettings()
    names = ("codes", "code_items", "clusters", "dimensions", "window", "text_weight", "drop_items_without")
    given = [name for name in names if vars(arguments)[name] != vars(default)[name]]
    option = "--report" if arguments.report else f"--{given[0].replace('_', '-')}" if given else None
    if option is not None:
        raise UserError(
            f"--extend and {option}: expected only one; the ids are made as those in {arguments.extend} were"
        )


def _about_extension(facts: dict[str, Any]) -> str:
    prefix, size = facts["largest_prefix"], facts["l3_size"]
    return (
        f"{facts['new_items']:,} items were added to {facts['old_items']:,}; {facts['with_own_l3_id']:,} of them have "
        f"a third-level id of their own, {facts['with_shared_l3_id']:,} share one with items of other prefixes\n"
        f"third codebook: {size['now']:,} ids (before: {size['before']:,}), {facts['unused_l3_ids']:,} unused; at most "
        f"{prefix['items']:,} items share a prefix, which has room for {prefix['room']:,}"
    )
