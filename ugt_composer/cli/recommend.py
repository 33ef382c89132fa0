"""Recommend the next items for one history or many."""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ugt_composer.cli.options import add_catalogue, add_item_lists, add_item_scores, add_max_history, add_model
from ugt_composer.errors import UserError

if TYPE_CHECKING:
    from ugt_composer.catalogue.catalogue import Catalogue
    from ugt_composer.catalogue.trie import ItemTrie
    from ugt_composer.cli.histories import HistoryReader
    from ugt_composer.cli.item_lists import ListFile
    from ugt_composer.cli.recommendation_lists import ListMaker
    from ugt_composer.config.schema import Config

USERS_PER_PART = 1 << 14
MOST_PLACES = 1 << 24  # places in the lists of a batch, to bound the memory
EPILOG = """examples:
  ugt recommend --checkpoint checkpoints/stage3/best --history user.json -k 10
  ugt recommend --checkpoint checkpoints/stage3/best --history users.jsonl --json > recommendations.jsonl
  ugt recommend --checkpoint checkpoints/stage3/best --history users.jsonl --exclude out-of-stock.txt
  composer -n 8 -c ugt recommend --checkpoint checkpoints/stage3/best --history users.parquet --out recommendations

user.json holds one JSON object, users.jsonl one per line, with either the history's item ids of the catalogue, oldest
first, or the encoder_* lists of a recommend row:
  {"user_id": "u1", "items": ["B004756YJA", "B0020YLEYK"]}
A model that reads actions and times takes them beside the items: "actions", their names or numbers, "times" in seconds,
and "now", the moment of prediction:
  {"items": ["B004756YJA", "B0020YLEYK"], "actions": ["view", "buy"], "times": [1399939200, 1400025600],
   "now": 1400112000}
An object may also have `only`, the item ids that may be recommended to this user, and `exclude`, those that may not.
Items that --only, --exclude, these lists or "retired": true in the catalogue withhold change no score: a list is that
of all items without them.
users.parquet has a row for each user, with these keys as columns; MDS shards are recommend rows, whose targets are not
read. With --out, each rank writes its parts, which depend neither on the number of ranks nor on kills; index.json is
there when all of them are.
Items that are not in the catalogue are reported and left out. If the history is longer than those that the model was
trained on, only the most recent items are read, but no item of it is recommended again.
Exit status: 0 done, 1 error, 2 bad input, 75 interrupted on several ranks: run the same command again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--history",
        required=True,
        metavar="FILE",
        help="JSON, JSON Lines or Parquet, a folder of such files or of MDS shards; - reads standard input",
    )
    parser.add_argument("-k", type=int, default=10, help="recommendations per user (default 10)")
    add_catalogue(parser)
    parser.add_argument("--include-seen", action="store_true", help="items of the history may be recommended again")
    parser.add_argument(
        "--beam-width", type=int, default=50, help="prefixes kept at each level (default 50, at least k)"
    )
    add_item_lists(parser)
    add_item_scores(parser)
    add_max_history(parser)
    parser.add_argument("--batch-size", type=int, default=256, help="users per batch (default 256)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per user instead of a table")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="write the lists to parts in this folder instead; the same command resumes it; on several ranks needed",
    )
    parser.add_argument("--out-format", choices=("jsonl", "parquet"), help="of the parts (default jsonl)")
    parser.add_argument(
        "--users-per-part",
        type=int,
        metavar="N",
        help=f"users in a part, which one rank writes and a resumed run does not repeat (default {USERS_PER_PART:,})",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the parts in DIR if they are of other inputs or options"
    )


def main(arguments: argparse.Namespace) -> int:
    # Heavy imports only after the arguments are parsed, so that --help is fast.
    from ugt_composer.job.ranks import joined_ranks

    _check_output(arguments)
    with joined_ranks() as ranks:
        if arguments.out is None and ranks.size > 1:
            raise UserError(
                f"the lists of {ranks.size} ranks cannot be printed one after the other; expected --out DIR"
            )
        setup = ranks.agree(lambda: _setup(arguments))
        if arguments.out is None:
            _print_lists(arguments, setup)
        else:
            from ugt_composer.cli.recommend_everybody import write_lists

            write_lists(arguments, setup, ranks)
    return 0


def _check_output(arguments: argparse.Namespace) -> None:
    """UserError for options that do not go together."""
    given = {"--out-format": arguments.out_format, "--users-per-part": arguments.users_per_part}
    given["--overwrite"] = arguments.overwrite or None
    if arguments.out is None:
        for option, value in given.items():
            if value is not None:
                raise UserError(f"{option} is given without --out DIR, which it belongs to")
    elif arguments.json:
        raise UserError("--json prints the lists, and --out DIR writes them to files; expected one of them")
    elif arguments.history == "-":
        raise UserError("--out DIR reads --history more than once, which standard input cannot; expected a file")


class Setup(NamedTuple):
    """What the lists are made with.

    Attributes:
        reader: of the histories.
        files: those of --only and --exclude.
        max_history: items of a history that the model reads.
    """

    config: "Config"
    catalogue: "Catalogue | None"
    maker: "ListMaker"
    reader: "HistoryReader"
    files: "Sequence[ListFile]"
    batch_size: int
    max_history: int | None


def _setup(arguments: argparse.Namespace) -> Setup:
    from ugt_composer.catalogue.load import load_item_neighbours
    from ugt_composer.catalogue.trie import ItemTrie
    from ugt_composer.cli.histories import HistoryReader, history_settings
    from ugt_composer.cli.history_files import check_history
    from ugt_composer.cli.item_lists import withhold
    from ugt_composer.cli.loading import check_positive, check_search, load_trained, say, with_item_scores
    from ugt_composer.cli.recommendation_lists import ListMaker
    from ugt_composer.data.model_inputs import actions_of_model
    from ugt_composer.inference.history_length import history_length
    from ugt_composer.inference.recommender import Recommender
    from ugt_composer.parallelism.device import prepare_device

    check_positive(arguments, "k", "beam_width", "batch_size", "max_history", "users_per_part")
    model, config, facts, catalogue = load_trained(arguments.checkpoint, arguments.catalogue)
    config = with_item_scores(config, catalogue, arguments)
    check_history(arguments.history, arguments.checkpoint, config, facts, catalogue)
    catalogue, files = withhold(catalogue, arguments)
    for file in files:
        if file.problem:
            say(file.problem)
    trie = None if catalogue is None else ItemTrie.from_catalogue(catalogue)
    size, width = _list_size(arguments.k, arguments.beam_width, trie)
    check_search(trie, config.model.codebook_sizes, size, width)
    weight, loss = config.evaluation.item_score_weight, config.loss
    scoring = (weight, loss.contrastive_temperature, loss.contrastive_similarity)
    neighbours = load_item_neighbours(config, trie)
    recommender = Recommender(model.to(prepare_device(config)), trie, *scoring, neighbours=neighbours)
    max_history = history_length(config, facts, arguments.max_history)
    settings = history_settings(config.model.codebook_sizes, config.model.max_seq_len, max_history)
    if config.model.num_actions:
        settings = replace(settings, largest_action=config.model.num_actions)
    recommendable = 0 if trie is None else trie.recommendable
    maker = ListMaker(recommender, catalogue, arguments.k, size, width, arguments.include_seen, recommendable)
    reader = HistoryReader(settings, catalogue, actions_of_model(facts))
    batch_size = max(1, min(arguments.batch_size, MOST_PLACES // size))
    return Setup(config, catalogue, maker, reader, files, batch_size, max_history)


def _print_lists(arguments: argparse.Namespace, setup: Setup) -> None:
    from ugt_composer.cli.history_files import read_histories
    from ugt_composer.cli.recommendation_files import json_line
    from ugt_composer.inference.recommender import batched

    has_lists: Counter[str] = Counter()
    for users in batched(read_histories(arguments.history, setup.reader), setup.batch_size):
        has_lists.update(name for user in users for name in user.lists)
        for user_id, entries, remarks in setup.maker.lists(users):
            for remark in remarks:
                print(f"{user_id}: {remark.sentence}", file=sys.stderr)
            if arguments.json:
                print(json_line(user_id, entries))
            else:
                _print_table(user_id, entries)
    warn_of_missing_lists(arguments, setup, has_lists)


def warn_of_missing_lists(arguments: argparse.Namespace, setup: Setup, has_lists: Mapping[str, int]) -> None:
    """Names the inputs that the model reads and no user had."""
    from ugt_composer.cli.history_inputs import KEYS
    from ugt_composer.data.model_inputs import missing_lists

    place = "standard input" if arguments.history == "-" else arguments.history
    for warning in missing_lists(setup.config.model, place, has_lists, KEYS):
        print(f"warning: {warning}", file=sys.stderr)


def _list_size(k: int, beam_width: int, trie: "ItemTrie | None") -> tuple[int, int]:
    """k and beam width, at most the number of semantic IDs in the catalogue, with a remark if it has fewer items."""
    from ugt_composer.cli.loading import say

    if trie is None:
        return k, max(k, beam_width)
    if not trie.recommendable:
        say(f"nothing can be recommended: all {trie.catalogue_size:,} items are withheld")
    elif k > trie.recommendable and trie.open is not None:
        few = f"only {trie.recommendable:,} of the {trie.catalogue_size:,} items may be recommended"
        say(f"-k is {k:,}, but {few}; the others are retired or withheld by --only or --exclude")
    elif k > trie.catalogue_size:
        say(f"-k is {k:,}, but the catalogue has only {trie.catalogue_size:,} items")
    return min(k, len(trie)), min(max(k, beam_width), len(trie))


def _print_table(user_id: str, entries: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(user_id), title_justify="left")
    headings = ["rank", "item", "name", "semantic ID", "probability"]
    if any(entry["score"] != entry["log_prob"] for entry in entries):
        headings.append("score")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in ("rank", "probability", "score") else "left")
    for entry in entries:
        triple = f"{entry['l1_id']} / {entry['l2_id']} / {entry['l3_id']}"
        value = math.exp(entry["log_prob"])
        probability = f"{value:.4f}" if value >= 0.001 else f"{value:.1e}"
        cells = [str(entry["rank"]), entry.get("item_id", "–"), entry.get("name") or "", triple, probability]
        table.add_row(*(Text(cell) for cell in [*cells, f"{entry['score']:.3f}"][: len(headings)]))
    Console().print(table)
