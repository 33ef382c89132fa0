"""Store a reference model's log-probabilities with the preference rows, so that training needs no reference.

For stage 3 with loss.reference_log_probs=data: training then runs no reference forward pass and loads no reference
weights.
"""

import argparse
from typing import TYPE_CHECKING

from ugt_composer.cli.options import add_catalogue, add_model, add_output_folder
from ugt_composer.terminal import ProgressBar

if TYPE_CHECKING:
    from ugt_composer.catalogue.catalogue import Catalogue
    from ugt_composer.config.schema import Config
    from ugt_composer.data.manifest import Manifest
    from ugt_composer.model.ugt import UGT

EPILOG = """examples:
  ugt reference --checkpoint checkpoints/stage2/best --data mds/preference --out mds/preference-scored
  # then replace mds/preference by mds/preference-scored under data.train.streams in the YAML, and:
  composer -c ugt train yamls/stage3.yaml loss.reference_log_probs=data
  # for a run in bf16 under fsdp
  ugt reference … --precision amp_bf16 --strategy fsdp
  composer -n 8 -c ugt reference …                  on 8 GPUs

The --out folder is a copy of the --data folder with 4 bytes more for each chosen and rejected item. Evaluation data
with preference pairs needs it as well.
Exit status: 0 done, 1 error, 2 bad input."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--data", required=True, metavar="DIR", help="MDS shards made with --kind preference")
    add_output_folder(parser)
    add_catalogue(parser)
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="rows per batch (default 256)")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "amp_bf16", "amp_fp16", "fp32"),
        help="that of the training run, which refuses another one (default auto: bf16 on a GPU, else fp32)",
    )
    parser.add_argument(
        "--strategy",
        default="ddp",
        choices=("ddp", "fsdp", "deepspeed"),
        help="in half precision: parallelism.strategy of the training run, whose weights fsdp and deepspeed from "
        "zero_stage 1 on cast, so that results are rounded differently (default ddp)",
    )


def main(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from ugt_composer.catalogue.trie import ItemTrie
    from ugt_composer.checkpoint.remote import model_folder
    from ugt_composer.inference.reference_log_probs import write_reference_log_probs
    from ugt_composer.job.ranks import joined_ranks
    from ugt_composer.model.reference import Reference
    from ugt_composer.parallelism.device import prepare_device
    from ugt_composer.parallelism.precision import resolve_precision

    precision = resolve_precision(arguments.precision)
    with joined_ranks() as ranks:
        model, config, catalogue, manifest = ranks.agree(lambda: _inputs(arguments))
        device = prepare_device(config)
        trie = None if catalogue is None else ItemTrie.from_triples(catalogue.triples).to(device)
        with ProgressBar("scoring", manifest.rows, "rows", is_hidden=not ranks.is_first) as bar:
            rows = write_reference_log_probs(
                Reference(model).to(device),
                model_folder(arguments.checkpoint),
                trie,
                Path(arguments.data),
                Path(arguments.out),
                arguments.batch_size,
                precision,
                arguments.strategy,
                arguments.overwrite,
                ranks,
                bar.update,
            )
        if ranks.is_first:
            print(
                f"{arguments.out}: {rows:,} rows with the log-probabilities of {arguments.checkpoint}, in {precision}"
            )
    return 0


def _inputs(arguments: argparse.Namespace) -> "tuple[UGT, Config, Catalogue | None, Manifest]":
    """The model, and the rows of --data, which fit it and its catalogue."""
    from ugt_composer.catalogue.shard_items import check_shards
    from ugt_composer.cli.loading import check_actions_of, check_data_of, check_positive, load_trained, say
    from ugt_composer.config.schema import StreamConfig
    from ugt_composer.data.manifest import check_data
    from ugt_composer.data.model_inputs import missing_inputs
    from ugt_composer.errors import UserError
    from ugt_composer.jsonl.schema import PREFERENCE

    check_positive(arguments, "batch_size")
    model, config, facts, catalogue = load_trained(arguments.checkpoint, arguments.catalogue)
    (manifest,) = check_data(config, "--data", [StreamConfig(local=arguments.data)])
    if manifest.kind != PREFERENCE:
        raise UserError(f"--data {arguments.data} holds {manifest.kind} rows; expected rows of --kind preference")
    check_actions_of(arguments.checkpoint, config, facts, [manifest])
    warnings = check_shards({"--data": [manifest]}, catalogue, config.data.max_fraction_outside_catalogue)
    for warning in [*warnings, *missing_inputs(config.model, "--data", [manifest])]:
        say(f"warning: {warning}")
    if catalogue is None:
        check_data_of(arguments.checkpoint, facts, [manifest])
    return model, config, catalogue, manifest
