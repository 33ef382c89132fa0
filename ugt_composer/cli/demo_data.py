"""Make the demo's data: histories, preferences and a catalogue, drawn from a distribution that is known exactly.

The distribution is defined in ugt_composer/demo/process.py, so that the best possible recall@10 can be computed; it is
in facts.json. The same arguments give the same bytes.

    catalogue.jsonl          the items, with names
    train.jsonl              recommend rows: a few cuts of each training customer's sequence
    eval.jsonl               recommend rows of other customers, one target each
    preference_train.jsonl   preference rows of the training customers
    preference_eval.jsonl    preference rows of the customers of eval.jsonl
    facts.json               the scores of popularity and of the best possible prediction on the eval files

With --law signals, what customers did with an item and when decide what they take next (ugt_composer/demo/signals.py).
There are no preference rows; actions.json has the names of actions, and facts.json the best possible scores with and
without actions and times.
"""

import argparse
from pathlib import Path

from ugt_composer.errors import UserError

EPILOG = """examples:
  ugt demo-data --out data/demo
  ugt convert data/demo/train.jsonl --kind recommend --codebook-sizes 32 128 1024 --out mds/train"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ugt_composer.demo.make_data import FILES, SHOP
    from ugt_composer.seeds import seed_of

    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="output folder; appears only when complete"
    )
    parser.add_argument(
        "--law", choices=tuple(FILES), default=SHOP, help="what the customers' choices depend on (default %(default)s)"
    )
    parser.add_argument("--users", type=int, metavar="N", default=8000, help="training customers (default %(default)s)")
    parser.add_argument(
        "--eval-users", type=int, metavar="N", default=2000, help="held-out customers (default %(default)s)"
    )
    parser.add_argument(
        "--cuts", type=int, metavar="N", default=3, help="maximum training rows per customer (default %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=seed_of,
        metavar="N",
        default=7,
        help="seed of the distribution and all draws (default %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier run in --out")


def main(arguments: argparse.Namespace) -> int:
    from ugt_composer.demo.make_data import FILES, SHOP, make_demo_data, make_signal_data
    from ugt_composer.storage.output_folder import new_folder

    for name, minimum in (("users", 1), ("eval_users", 1), ("cuts", 1)):
        if getattr(arguments, name) < minimum:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; at least {minimum} is expected")
    make = make_demo_data if arguments.law == SHOP else make_signal_data
    with new_folder(arguments.out, FILES[arguments.law], arguments.overwrite) as folder:
        report = make(folder, arguments.users, arguments.eval_users, arguments.cuts, arguments.seed)
    print(f"{arguments.out}: {', '.join(f'{count:,} {name}' for name, count in report['rows'].items())}")
    ceilings = [name for name in report if name.startswith("ceiling") and not name.endswith("realised")]
    for name in ("popularity", *ceilings):
        title, scores = name.replace("ceiling", "the best possible").replace("_", " "), report[name]
        print(f"{title:>18}: recall@10 {scores['recall@10']:.4f}, ndcg@10 {scores['ndcg@10']:.4f}")
    if arguments.law == SHOP:
        accuracy = f"clicks {report['preference_of_clicks']:.4f}, the best possible {report['preference_ceiling']:.4f}"
        print(f"pair accuracy: {accuracy}")
    return 0
