"""Make preference rows of a model's own lists, to train stage 3 on what the model ranks wrongly now."""

import argparse
import sys
from typing import TYPE_CHECKING

from ugt_composer.cli.options import (
    add_catalogue,
    add_item_lists,
    add_item_scores,
    add_max_history,
    add_model,
    add_output_folder,
    check_writable,
)
from ugt_composer.terminal import ProgressBar

if TYPE_CHECKING:
    from ugt_composer.catalogue.catalogue import Catalogue
    from ugt_composer.inference.own_preferences import Selection

EPILOG = """examples:
  ugt preferences --checkpoint checkpoints/stage2/best --data mds/train --out mds/own
  ugt preferences --checkpoint checkpoints/stage2/best --data mds/train --out mds/own --limit 50000 --jsonl own.jsonl
  ugt preferences --checkpoint checkpoints/stage2/best --data mds/train --out mds/own --reward margins.csv

--data are recommend rows. Chosen is the item that the user took, the row's first target; rejected are the --rejected
highest-ranked other items, best first, without those of the history, the row's other targets, all that share a semantic
ID with one of these, and items that --only, --exclude or "retired": true in the catalogue withhold. The lists are
exact: a search is repeated with a wider beam where a better item may have been dropped; rows for which no beam that
fits into memory proves it are counted.

--reward picks from the target and the model's --candidates highest-ranked others instead: chosen is the item with the
highest reward, rejected are those with the lowest rewards, lowest first. It is a file with a value for each item of
the catalogue, JSON Lines such as {"item_id": "B00…", "reward": 1.5}, or .csv or .tsv with the columns item_id and
reward; or a function of yours, my_package.my_module:my_function, called with user id, history and candidates (item
ids), which returns a value per candidate. With --reward-scale S, preference_score is tanh(gap / 2S), where gap is the
chosen item's reward minus the mean of the rejected ones'; without it, 1.

--out has shards as ugt convert --kind preference writes them, in the order of the input, without rows whose
target is missing or not in the catalogue. Then train stage 3 on them, mixed with recommend rows. If the command is
killed, run it again. Exit status: 0 done, 1 error, 2 bad input."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="DIR",
        help="a folder of shards with recommend rows; may be given several times",
    )
    add_output_folder(parser)
    parser.add_argument("--jsonl", metavar="FILE", help="also write the rows as JSON Lines")
    add_catalogue(parser)
    add_item_lists(parser)
    parser.add_argument("--rejected", type=int, default=20, metavar="N", help="rejected items per row (default 20)")
    parser.add_argument("--reward", metavar="FILE|MODULE:FUNCTION", help="values of items, see below")
    parser.add_argument(
        "--candidates",
        type=int,
        metavar="N",
        help="with --reward: items of the model's list that it picks from (default: twice --rejected)",
    )
    parser.add_argument(
        "--reward-scale", type=float, metavar="S", help="with --reward: weight rows by the gap of the rewards"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use a random sample of N rows (default: all)")
    parser.add_argument("--seed", type=int, metavar="N", help="of that sample (default 42)")
    add_item_scores(parser)
    add_max_history(parser)
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="rows per batch (default 256)")


def main(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from ugt_composer.catalogue.load import load_item_neighbours
    from ugt_composer.catalogue.trie import ItemTrie
    from ugt_composer.checkpoint.portable import weights_hash
    from ugt_composer.checkpoint.remote import model_folder
    from ugt_composer.cli.loading import MOST_SEARCH_BYTES, load_trained, recommend_rows, with_item_scores
    from ugt_composer.inference.exact_lists import beam_widths
    from ugt_composer.inference.history_length import history_length
    from ugt_composer.inference.preference_shards import write_preferences
    from ugt_composer.inference.recommender import Recommender
    from ugt_composer.parallelism.device import prepare_device

    _check_options(arguments)
    model, config, facts, catalogue = load_trained(arguments.checkpoint, arguments.catalogue)
    catalogue = _recommendable(arguments, catalogue)
    config = with_item_scores(config, catalogue, arguments)
    manifests = recommend_rows("--data", arguments.data, arguments.checkpoint, config, facts, catalogue)
    max_history = history_length(config, facts, arguments.max_history)
    selection, trie = _selection(arguments, catalogue), ItemTrie.from_catalogue(catalogue)
    weight, loss = config.evaluation.item_score_weight, config.loss
    scoring = (weight, loss.contrastive_temperature, loss.contrastive_similarity)
    neighbours = load_item_neighbours(config, trie)
    recommender = Recommender(
        model.to(prepare_device(config)), trie, *scoring, max_history=max_history, neighbours=neighbours
    )
    size = min(selection.list_size, len(trie))
    numbers = _sample(sum(manifest.rows for manifest in manifests), arguments.limit, arguments.seed)
    with ProgressBar("making pairs", len(numbers), "rows") as bar:
        written = write_preferences(
            recommender,
            catalogue,
            manifests,
            Path(arguments.out),
            selection,
            beam_widths(trie, config.model.codebook_sizes, size, MOST_SEARCH_BYTES),
            model=weights_hash(model_folder(arguments.checkpoint)),
            numbers=numbers,
            batch_size=arguments.batch_size,
            overwrite=arguments.overwrite,
            jsonl=None if arguments.jsonl is None else Path(arguments.jsonl),
            progress=bar.update,
        )
    print(f"{arguments.out}: {written.rows:,} preference rows with {written.rejected:,} rejected items")
    for reason, count in written.left_out.items():
        if count:
            print(f"left out: {count:,} of {written.read:,} rows {reason}", file=sys.stderr)
    if written.not_proven:
        print(
            f"warning: the lists of {written.not_proven:,} of {written.read:,} rows are not proven to be exact, "
            f"because a wider beam would take more than {MOST_SEARCH_BYTES >> 30} GiB",
            file=sys.stderr,
        )
    return 0


def _check_options(arguments: argparse.Namespace) -> None:

    from ugt_composer.cli.loading import check_positive
    from ugt_composer.errors import UserError

    check_positive(arguments, "rejected", "candidates", "limit", "batch_size", "max_history")
    for option, value in (("--candidates", arguments.candidates), ("--reward-scale", arguments.reward_scale)):
        if value is not None and arguments.reward is None:
            raise UserError(f"{option} is given without --reward, which it belongs to")
    if arguments.reward_scale is not None and not 0 < arguments.reward_scale < float("inf"):
        raise UserError(f"--reward-scale is {arguments.reward_scale:g}; expected a number above 0")
    if arguments.seed is not None and arguments.limit is None:
        raise UserError("--seed is given without --limit: all rows are used, in their order")
    if arguments.seed is not None and arguments.seed < 0:
        raise UserError(f"--seed is {arguments.seed}; expected 0 or more")
    if arguments.candidates is not None and arguments.candidates < arguments.rejected:
        raise UserError(f"--candidates is {arguments.candidates}; expected at least --rejected {arguments.rejected}")
    if arguments.jsonl:
        check_writable("--jsonl", arguments.jsonl)


def _recommendable(arguments: argparse.Namespace, catalogue: "Catalogue | None") -> "Catalogue":
    """The catalogue without what --only and --exclude withhold."""
    from ugt_composer.catalogue.load import check_any_open
    from ugt_composer.cli.item_lists import withhold
    from ugt_composer.errors import UserError

    catalogue, files = withhold(catalogue, arguments)
    if catalogue is None:
        raise UserError(
            f"{arguments.checkpoint} was trained without a catalogue, so its lists have items that do not exist; give "
            "--catalogue FILE"
        )
    for file in files:
        if file.problem:
            print(f"warning: {file.problem}", file=sys.stderr)
    check_any_open(catalogue)
    return catalogue


def _selection(arguments: argparse.Namespace, catalogue: "Catalogue") -> "Selection":
    from ugt_composer.inference.own_preferences import Selection
    from ugt_composer.inference.rewards import read_rewards

    if arguments.reward is None:
        return Selection(arguments.rejected)
    candidates = arguments.candidates or 2 * arguments.rejected
    return Selection(arguments.rejected, read_rewards(arguments.reward, catalogue), candidates, arguments.reward_scale)


def _sample(rows: int, limit: int | None, seed: int | None) -> list[int]:
    """The numbers of all rows, or of a random sample, ascending."""
    import numpy as np

    if limit is None or limit >= rows:
        return list(range(rows))
    chosen = np.random.default_rng(42 if seed is None else seed).choice(rows, limit, replace=False)
    return sorted(chosen.tolist())
