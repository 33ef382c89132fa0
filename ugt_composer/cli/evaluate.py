"""Evaluate a model on folders of rows, like the evaluation during training."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ugt_composer.cli.options import (
    add_catalogue,
    add_item_lists,
    add_item_scores,
    add_max_history,
    add_model,
    check_writable,
)
from ugt_composer.errors import UserError
from ugt_composer.terminal import ProgressBar, counted

if TYPE_CHECKING:
    from ugt_composer.catalogue.catalogue import Catalogue
    from ugt_composer.cli.item_lists import ListFile
    from ugt_composer.config.schema import Config
    from ugt_composer.inference.evaluation import Evaluation
    from ugt_composer.model.ugt import UGT

EPILOG = """examples:
  ugt evaluate --checkpoint checkpoints/stage3/best --data mds/test
  ugt evaluate --checkpoint checkpoints/stage3/best --data mds/test --data mds/test_preference --json test.json
  ugt evaluate --checkpoint checkpoints/stage1/best --data mds/test -k 10 100 --include-seen --plot test.png
  ugt evaluate --checkpoint checkpoints/stage3/best --data mds/test --only in-stock.txt
  composer -n 8 -c ugt evaluate …                    on 8 GPUs

The metrics equal those of the evaluation during training on the same rows. A second table shows them by the
number of items in the history. Rows with a rejected item give the preference metrics and are not ranked. Items that
--only, --exclude or "retired": true in the catalogue withhold are in no list; a target among them is not found, and the
rows with such a target are counted.
Exit status: 0 done, 2 bad input."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--data", required=True, action="append", metavar="DIR", help="a folder of shards; may be given several times"
    )
    parser.add_argument("-k", type=int, nargs="+", metavar="K", help="cut-offs (default: those of the model's config)")
    add_catalogue(parser)
    parser.add_argument(
        "--reference",
        metavar="DIR",
        help="reference model of the preference loss; default: the one that the model was trained with",
    )
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument(
        "--include-seen",
        dest="exclude_seen",
        action="store_false",
        help="items of the history may be recommended again",
    )
    seen.add_argument(
        "--exclude-seen",
        action="store_true",
        help="items of the history are not recommended again (default: evaluation.exclude_seen of the model's config)",
    )
    parser.set_defaults(exclude_seen=None)
    parser.add_argument(
        "--beam-width",
        type=int,
        metavar="N",
        help="prefixes kept at each level (default: that of the model's config, at least k)",
    )
    add_item_lists(parser)
    add_item_scores(parser)
    add_max_history(parser)
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="rows per batch (default 256)")
    parser.add_argument("--json", metavar="FILE", help="write all results, unrounded")
    parser.add_argument("--plot", metavar="FILE.png", help="plot recall and ndcg by k and by history length")


def main(arguments: argparse.Namespace) -> int:
    from ugt_composer.inference.evaluation import evaluate
    from ugt_composer.job.ranks import joined_ranks

    with joined_ranks() as ranks:
        inputs = ranks.agree(lambda: _inputs(arguments, ranks.is_first))
        with ProgressBar("evaluating", inputs.rows, "rows", is_hidden=not ranks.is_first) as bar:
            evaluation = evaluate(
                inputs.model,
                inputs.config,
                inputs.catalogue,
                ranks,
                bar.update_to,
                inputs.max_history,
            )
    if ranks.is_first:
        _report(arguments, inputs, evaluation)
    return 0


class _Inputs(NamedTuple):
    model: "UGT"
    config: "Config"
    facts: dict[str, str]
    catalogue: "Catalogue | None"
    files: "list[ListFile]"
    max_history: int | None
    rows: int


def _inputs(arguments: argparse.Namespace, writes: bool) -> _Inputs:
    """The model, and what it is evaluated on. UserError if something does not fit.

    Args:
        writes: whether this rank writes the results.
    """
    from dataclasses import replace

    from ugt_composer.catalogue.load import check_any_open
    from ugt_composer.catalogue.trie import ItemTrie
    from ugt_composer.cli.item_lists import withhold
    from ugt_composer.cli.loading import (
        check_actions_of,
        check_data_of,
        check_positive,
        check_search,
        load_trained,
        with_item_scores,
    )
    from ugt_composer.data.manifest import read_manifest
    from ugt_composer.inference.evaluation import evaluation_config
    from ugt_composer.inference.history_length import history_length

    check_positive(arguments, "k", "beam_width", "batch_size", "max_history")
    if writes and arguments.json is not None:
        check_writable("--json", arguments.json)
    if writes and arguments.plot is not None:
        if not arguments.plot.endswith(".png"):
            raise UserError(f"--plot {arguments.plot}: expected a name that ends in .png")
        check_writable("--plot", arguments.plot)
    model, config, facts, catalogue = load_trained(arguments.checkpoint, arguments.catalogue)
    config = with_item_scores(config, catalogue, arguments)
    with _named_as_options(arguments):
        config = evaluation_config(
            config,
            arguments.data,
            arguments.batch_size,
            k_values=arguments.k and tuple(sorted(set(arguments.k))),
            beam_width=arguments.beam_width,
            exclude_seen=arguments.exclude_seen,
        )
    if arguments.reference is not None:
        config = replace(config, loss=replace(config.loss, reference_from=arguments.reference))
    catalogue, files = withhold(catalogue, arguments)
    if catalogue is not None:
        check_any_open(catalogue)
    trie = None if catalogue is None else ItemTrie.from_catalogue(catalogue)
    check_search(trie, config.model.codebook_sizes, max(config.evaluation.k_values), config.evaluation.beam_width)
    max_history = history_length(config, facts, arguments.max_history)
    manifests = [read_manifest(folder) for folder in arguments.data]
    check_actions_of(arguments.checkpoint, config, facts, manifests)
    if catalogue is None:
        check_data_of(arguments.checkpoint, facts, manifests)
    rows = sum(manifest.rows for manifest in manifests)
    return _Inputs(model, config, facts, catalogue, files, max_history, rows)


def _report(arguments: argparse.Namespace, inputs: _Inputs, evaluation: "Evaluation") -> None:
    """Prints the results, and writes them into the files that were asked for."""
    from ugt_composer.data.manifest import rows_longer_than
    from ugt_composer.jsonl.schema import RECOMMEND

    model, config, facts, catalogue, files, max_history, rows = inputs
    report: dict[str, Any] = {
        "model": {"path": arguments.checkpoint, "parameters": sum(p.numel() for p in model.parameters()), **facts},
        "data": [
            {"folder": m.folder, "kind": m.kind, "rows": m.rows, "index_hash": m.index_hash} for m in evaluation.data
        ],
        "catalogue": catalogue
        and {"path": catalogue.source, "items": len(catalogue), "withheld_items": int(catalogue.withheld.sum())},
        **{file.option.removeprefix("--"): file.facts for file in files},
        "k_values": list(config.evaluation.k_values),
        "beam_width": config.evaluation.beam_width,
        "exclude_seen": config.evaluation.exclude_seen,
        "max_history": max_history,
        "item_score_weight": config.evaluation.item_score_weight,
        "neighbour_weight": config.evaluation.neighbour_weight,
        "rows": rows,
        "ranked_rows": evaluation.ranked_rows,
        "unreachable_rows": evaluation.unreachable_rows,
        "withheld_target_rows": _rows_with_withheld_targets(evaluation),
        "with_open_targets": evaluation.with_open_targets,
        "longer_histories": 0 if max_history is None else rows_longer_than(max_history, evaluation.data),
        "incomplete_histories": sum(m.incomplete_histories for m in evaluation.data if m.kind == RECOMMEND),
        "metrics": evaluation.metrics,
        "by_history_length": evaluation.by_length,
    }
    problems = [file.problem for file in files if file.problem]
    report["warnings"] = [*problems, *evaluation.warnings, *_warnings(report, catalogue)]
    if arguments.reference is not None and not config.loss.needs_reference:
        setting = "dpo_reference_free true" if config.loss.lambda_preference else "lambda_preference 0"
        report["warnings"].append(
            f"--reference {arguments.reference} was not used: nothing is compared with a reference, because the model "
            f"was trained with loss.{setting}"
        )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if arguments.plot:
        from ugt_composer.cli.evaluation_plot import draw

        draw(report, Path(arguments.plot))
    _print(report)
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)


def _rows_with_withheld_targets(evaluation: "Evaluation") -> int:
    others = evaluation.with_open_targets
    return 0 if others is None else evaluation.ranked_rows - others["rows"]


def _warnings(report: dict[str, Any], catalogue: "Catalogue | None") -> Iterator[str]:
    """What a reader of the metrics has to know about the rows and the catalogue."""
    if report["ranked_rows"] and catalogue is not None and catalogue.collisions.count:
        shared = catalogue.collisions
        yield (
            f"{shared.items:,} items share {counted(shared.count, 'semantic ID')}: recall, ndcg, hit_rate and mrr are "
            "those of the lists of items that ugt recommend prints, id_recall and the like those of the lists of IDs; "
            "where a row does not say by target_members which of these items its target is, each is equally likely to "
            "be it"
        )
    rows, items = f"of {counted(report['rows'], 'row')}", report["max_history"]
    if not report["ranked_rows"] and any(folder["kind"] == "recommend" for folder in report["data"]):
        yield "no recommend row has a target, so nothing was ranked"
    if longer := report["longer_histories"]:
        yield (
            f"{longer:,} {rows} {'has a history' if longer == 1 else 'have histories'} of more than "
            f"{counted(items, 'item')}; the model reads the most recent {items:,} of each (default: as many "
            "as the longest history that it was trained on; --max-history sets another number)"
        )
    if withheld := report["withheld_target_rows"]:
        others = {name: value for name, value in report["with_open_targets"].items() if name != "rows"}
        means = ", ".join(f"{name} {value:.4f}" for name, value in others.items())
        yield (
            f"{withheld:,} of {report['ranked_rows']:,} ranked rows have a target that is withheld (retired, not in "
            "--only, or in --exclude), which is never found"
            + (f"; over the {report['with_open_targets']['rows']:,} others: {means}" if means else "")
        )
    if not report["exclude_seen"]:
        return
    if incomplete := report["incomplete_histories"]:
        yield (
            f"{incomplete:,} {rows} {'lacks' if incomplete == 1 else 'lack'} the earliest items of the user's history, "
            "which was truncated when the rows were made; these items are not excluded and can be recommended again"
        )
    if unreachable := report["unreachable_rows"]:
        yield (
            f"{unreachable:,} of {report['ranked_rows']:,} ranked rows have a target whose semantic ID is also in "
            "their history, so with seen items excluded it cannot be recommended; --include-seen ranks all items"
        )


@contextmanager
def _named_as_options(arguments: argparse.Namespace) -> Iterator[None]:
    """Errors about keys of `evaluation` name the option that the user set instead."""
    try:
        yield
    except UserError as error:
        problem = str(error)
        if arguments.k is not None:
            problem = problem.replace("evaluation.k_values", "-k")
        if arguments.beam_width is not None:
            problem = problem.replace("evaluation.beam_width", "--beam-width")
        raise UserError(problem) from None


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, metrics, k_values = Console(), report["metrics"], report["k_values"]
    title = f"{report['model']['path']}: {counted(report['rows'], 'row')}, {report['ranked_rows']:,} of them ranked"
    ranked = Table(title=Text(title), title_justify="left")
    ranked.add_column("")
    for k in k_values:
        ranked.add_column(f"@{k}", justify="right")
    names = dict.fromkeys(name.rpartition("@")[0] for name in metrics if "@" in name)
    for name in names:
        ranked.add_row(name, *(f"{metrics[f'{name}@{k}']:.4f}" for k in k_values))
    single = Table("", show_header=False)
    single.add_column("", justify="right")
    for name, value in metrics.items():
        if "@" not in name:
            single.add_row(name, f"{value:.4f}")
    tables = [ranked, single] if names else [single]
    for table in tables:
        console.print(table)
    if not report["by_history_length"]:
        return
    lengths = Table(title="by number of items in the history", title_justify="left")
    for heading in report["by_history_length"][0]:
        lengths.add_column(heading, justify="right")
    for row in report["by_history_length"]:
        values = list(row.values())
        lengths.add_row(values[0], f"{values[1]:,}", *(f"{value:.4f}" for value in values[2:]))
    console.print(lengths)
