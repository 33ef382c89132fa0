"""Recommend the next items for one history or many."""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ugt_composer.cli.options import add_catalogue, add_item_lists, add_item_scores, add_max_history, add_model

if TYPE_CHECKING:
    from ugt_composer.catalogue.catalogue import Catalogue
    from ugt_composer.catalogue.trie import ItemTrie
    from ugt_composer.cli.histories import History
    from ugt_composer.cli.item_lists import UserLists

MOST_PLACES = 1 << 24  # places in the lists of a batch, to bound the memory
EPILOG = """examples:
  ugt recommend --checkpoint checkpoints/stage3/best --history user.json -k 10
  ugt recommend --checkpoint checkpoints/stage3/best --history users.jsonl --json > recommendations.jsonl
  ugt recommend --checkpoint checkpoints/stage3/best --history users.jsonl --exclude out-of-stock.txt

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
Items that are not in the catalogue are reported and left out. If the history is longer than those that the model was
trained on, only the most recent items are read, but no item of it is recommended again. Exit status: 0 done, 2 bad
input."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--history", required=True, metavar="FILE", help="JSON or JSON Lines; - reads standard input")
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


def main(arguments: argparse.Namespace) -> int:
    # Heavy imports only after the arguments are parsed, so that --help is fast.
    from ugt_composer.catalogue.load import load_item_neighbours
    from ugt_composer.catalogue.trie import ItemTrie
    from ugt_composer.cli.histories import history_settings, read_histories
    from ugt_composer.cli.history_inputs import KEYS
    from ugt_composer.cli.item_lists import withhold
    from ugt_composer.cli.loading import check_positive, check_search, load_trained, with_item_scores
    from ugt_composer.data.model_inputs import actions_of_model, missing_lists
    from ugt_composer.inference.history_length import history_length
    from ugt_composer.inference.recommender import Recommender, batched
    from ugt_composer.parallelism.device import prepare_device

    check_positive(arguments, "k", "beam_width", "batch_size", "max_history")
    model, config, facts, catalogue = load_trained(arguments.checkpoint, arguments.catalogue)
    config = with_item_scores(config, catalogue, arguments)
    catalogue, files = withhold(catalogue, arguments)
    for file in files:
        if file.problem:
            print(file.problem, file=sys.stderr)
    trie = None if catalogue is None else ItemTrie.from_catalogue(catalogue)
    k, width = _list_size(arguments.k, arguments.beam_width, trie)
    check_search(trie, config.model.codebook_sizes, k, width)
    batch_size = max(1, min(arguments.batch_size, MOST_PLACES // k))
    weight, loss = config.evaluation.item_score_weight, config.loss
    scoring = (weight, loss.contrastive_temperature, loss.contrastive_similarity)
    neighbours = load_item_neighbours(config, trie)
    recommender = Recommender(model.to(prepare_device(config)), trie, *scoring, neighbours=neighbours)
    max_history = history_length(config, facts, arguments.max_history)
    settings = history_settings(config.model.codebook_sizes, config.model.max_seq_len, max_history)
    if config.model.num_actions:
        settings = replace(settings, largest_action=config.model.num_actions)
    has_lists: Counter[str] = Counter()
    show = _print_json if arguments.json else _print_table
    histories = read_histories(arguments.history, settings, catalogue, actions_of_model(facts))
    for users in batched(histories, batch_size):
        has_lists.update(name for user in users for name in user.lists)
        rows, earlier = [user.row for user in users], [user.earlier for user in users]
        own = {} if catalogue is None else _own_lists(users, catalogue)
        best = recommender.recommend(rows, k, width, not arguments.include_seen, earlier, **own)
        lists = zip(users, *(values.tolist() for values in (best.ids, best.log_probs, best.scores)), strict=True)
        for user, ids, log_probs, scores in lists:
            for remark in _remarks(user, arguments.include_seen, catalogue):
                print(f"{user.row.user_id}: {remark}", file=sys.stderr)
            entries = list(_entries(ids, log_probs, scores, arguments.k, catalogue, user.own))
            if trie is not None and len(entries) < min(arguments.k, trie.recommendable):
                why = _missing(len(entries), arguments.include_seen, user.own)
                print(f"{user.row.user_id}: {why}", file=sys.stderr)
            show(user.row.user_id, entries)
    place = "standard input" if arguments.history == "-" else arguments.history
    for warning in missing_lists(config.model, place, has_lists, KEYS):
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _list_size(k: int, beam_width: int, trie: "ItemTrie | None") -> tuple[int, int]:
    """k and beam width, at most the number of semantic IDs in the catalogue, with a remark if it has fewer items."""
    if trie is None:
        return k, max(k, beam_width)
    if not trie.recommendable:
        print(f"nothing can be recommended: all {trie.catalogue_size:,} items are withheld", file=sys.stderr)
    elif k > trie.recommendable and trie.open is not None:
        few = f"only {trie.recommendable:,} of the {trie.catalogue_size:,} items may be recommended"
        print(f"-k is {k:,}, but {few}; the others are retired or withheld by --only or --exclude", file=sys.stderr)
    elif k > trie.catalogue_size:
        print(f"-k is {k:,}, but the catalogue has only {trie.catalogue_size:,} items", file=sys.stderr)
    return min(k, len(trie)), min(max(k, beam_width), len(trie))


def _own_lists(users: "list[History]", catalogue: "Catalogue") -> dict[str, Any]:
    """The arguments of `Recommender.recommend` for the users' own lists; none if no user has one."""
    if not any(user.own.given for user in users):
        return {}
    lists = [user.own for user in users]
    return {
        "only": [own.only_ids(catalogue) for own in lists],
        "exclude": [own.excluded_ids(catalogue) for own in lists],
    }


def _missing(number: int, include_seen: bool, lists: "UserLists") -> str:
    """Why a list has only this number of items, although the catalogue has as many as were asked for."""
    seen = "" if include_seen else "are in the history (--include-seen recommends them again) or "
    own = "are withheld by `only` or `exclude` or " if lists.given else ""
    reason = f"{seen}{own}begin with none of the prefixes that are kept (--beam-width)"
    return f"{number:,} {'item' if number == 1 else 'items'} can be recommended; the others {reason}"


def _remarks(user: "History", include_seen: bool, catalogue: "Catalogue | None") -> Iterator[str]:
    from ugt_composer.cli.item_lists import unknown_items

    if user.unknown:
        yield unknown_items(user.unknown, catalogue)
    for name, unknown in user.own.unknown.items():
        yield f"`{name}`: {unknown_items(unknown, catalogue)}"
    if not user.items:
        yield "no item of the history is known, so the recommendations are the same as for any such user"
    if (missing := user.missing_items) and not include_seen:
        were = "item, which the row lacks, is" if missing == 1 else "items, which the row lacks, are"
        yield f"the {missing:,} earliest {were} not excluded and can be recommended again"
    if cut := user.earlier_items:
        seen = "" if include_seen else ", but are not recommended either"
        earlier = f"the {cut:,} earlier ones are not read" if cut > 1 else "the earlier one is not read"
        seen = seen if cut > 1 else seen.replace("are", "is")
        yield f"the model reads the {user.items:,} most recent of {user.items + cut:,} items; {earlier}{seen}"


def _entries(
    ids: list[list[int]], log_probs: list[float], scores: list[float], k: int, catalogue: Any, lists: "UserLists"
) -> Iterator[dict[str, Any]]:
    """The first k items of a list. Items that share a semantic ID are all listed, with the same score, except those
    that are withheld."""
    rank = 0
    for triple, log_prob, score in zip(ids, log_probs, scores, strict=True):
        if score == float("-inf"):
            return
        items = [] if catalogue is None else catalogue.items_of(triple)
        shown = [item for item in items if lists.allow(item.item_id) and not catalogue.is_withheld(item.item_id)]
        names = [{"item_id": item.item_id, "name": item.name} for item in shown] if items else [{}]
        for name in names:
            rank += 1
            if rank > k:
                return
            levels = {f"l{level}_id": number for level, number in enumerate(triple, start=1)}
            yield {"rank": rank, **name, **levels, "log_prob": log_prob, "score": score}


def _print_json(user_id: str, entries: list[dict[str, Any]]) -> None:
    print(json.dumps({"user_id": user_id, "recommendations": entries}, ensure_ascii=False))


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
