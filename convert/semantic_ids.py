"""Semantic ids of items: makes them, or says how good they are.

Made from --codes, else from --vectors, else from the texts of --items and the training part of INTERACTIONS: residual
k-means gives L1 and L2, and L3 tells instances apart. Interactions are split as convert/interactions_to_jsonl.py splits
them, and their validation and test parts are not looked at.

    semantic_ids.json   the ids as a versioned bundle; give it to interactions_to_jsonl.py as --codes
    catalogue.jsonl     the same, for data.catalogue
    item_vectors.npy    what they were made of, for init_item_vectors: a row a line of the catalogue
    report.json         how good they are
"""

import argparse
import sys
import tempfile
from pathlib import Path

from ugt_composer.errors import UserError, exit_on_user_error
from ugt_composer.importing import options
from ugt_composer.importing.quality import summary
from ugt_composer.importing.run import ID_FILES, make_ids
from ugt_composer.storage.output_folder import new_folder

EXAMPLES = """
examples:
  # make ids from texts and interactions
  python convert/semantic_ids.py sequences.txt --items items.tsv --out data/ids

  # from vectors, one a row of the table of items
  python convert/semantic_ids.py --items items.tsv --vectors items.npy --clusters 128 512 --out data/ids

  # only say how good published codes are
  python convert/semantic_ids.py sequences.txt --items items.tsv --report --codes index.json
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("interactions", type=Path, nargs="?", metavar="INTERACTIONS", help="what users did")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write; complete or not there")
    parser.add_argument("--report", action="store_true", help="write nothing: print the report of --codes")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier run in --out")
    options.add_source_options(parser)
    options.add_split_options(parser)
    options.add_id_options(parser)
    given = parser.parse_args(arguments)
    if given.report and (given.codes is None or given.out is not None):
        raise UserError(
            "--report judges --codes FILE and writes nothing; leave out --report to make ids into --out DIR"
        )
    if not given.report and given.out is None:
        raise UserError("--out DIR is missing: the folder to write; or --report, to print how good --codes FILE is")
    settings = options.source_settings(given), options.split_settings(given), options.id_settings(given)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if given.report:
        with tempfile.TemporaryDirectory() as folder:
            report = make_ids(*settings, Path(folder), say)
    else:
        with new_folder(given.out, ID_FILES, given.overwrite) as folder:
            report = make_ids(*settings, folder, say)
    print(summary(report["quality"]))
    print(f"codebook sizes {' '.join(map(str, report['codebook_sizes']))}, fingerprint {report['fingerprint']}")
    if not given.report:
        print(f"All in {given.out}")
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
