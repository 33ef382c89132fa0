"""Export a model as programs that need only PyTorch to run."""

import argparse

from ugt_composer.cli.options import add_max_history, add_model, add_output_folder

FILES = (
    "encoder.pt2",
    "scorer.pt2",
    "usage.py",
    "model.safetensors",
    "config.yaml",
    "catalogue.jsonl.zst",
    "record.json",
)
EPILOG = """examples:
  ugt export --checkpoint checkpoints/stage3/best --out exported
  python exported/usage.py

DIR holds, in float32:
  encoder.pt2        histories → user state (for the scorer) and user vector; any number of rows and tokens. Inputs:
                     ids, positions, token types, mask; then, if the model reads them, actions; times of the tokens
                     and of the recommendation
  scorer.pt2         user states, semantic IDs → log p(l1) + log p(l2|l1) + log p(l3|l1,l2); any number of both.
                     A model with repeat_bias reads the history's ids, too
  usage.py           loads both with torch and numpy and scores an example; no other code is needed. It reads as many of
                     the most recent items as the model was trained on, or --max-history
  model.safetensors, config.yaml, catalogue.jsonl.zst, record.json
                     the model itself; every --checkpoint option accepts DIR
Exit status: 0 done, 2 bad input."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_output_folder(parser)
    add_max_history(parser)
    parser.add_argument(
        "--catalogue",
        metavar="FILE",
        help="only for a model whose softmax runs over the catalogue (default: the data.catalogue it was trained with)",
    )


def main(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    import torch

    from ugt_composer import inference
    from ugt_composer.catalogue.trie import ItemTrie
    from ugt_composer.checkpoint.portable import load_portable, read_copy, save_portable
    from ugt_composer.checkpoint.remote import model_folder
    from ugt_composer.cli.loading import check_positive, load_catalogue_of
    from ugt_composer.errors import UserError
    from ugt_composer.inference.export_programs import export_programs
    from ugt_composer.inference.history_length import history_length
    from ugt_composer.storage.output_folder import new_folder

    check_positive(arguments, "max_history")
    out = Path(arguments.out)
    with new_folder(out, FILES, arguments.overwrite) as folder:
        trie = None
        source = model_folder(arguments.checkpoint)
        model, config, facts = load_portable(source)
        max_history = history_length(config, facts, arguments.max_history) or config.model.max_seq_len - 1
        if arguments.catalogue is not None and not model.is_over_catalogue:
            raise UserError(
                "--catalogue: the scores of this model do not use one (model.level_softmax is codebook); leave it out"
            )
        if model.is_over_catalogue:
            catalogue = load_catalogue_of(arguments.checkpoint, source, config, facts, arguments.catalogue)
            assert catalogue is not None  # the config requires one
            trie = ItemTrie.from_triples(catalogue.triples)
        save_portable(folder, model.float().state_dict(), config, facts, read_copy(source))
        for name, program in zip(FILES, export_programs(model, trie), strict=False):
            torch.export.save(program, folder / name)
        usage = (Path(inference.__path__[0]) / "export_usage.py").read_text("utf-8")
        usage = usage.replace("MAX_HISTORY = None", f"MAX_HISTORY = {max_history}", 1)
        usage = usage.replace("READS_ACTIONS = False", f"READS_ACTIONS = {config.model.num_actions > 0}", 1)
        usage = usage.replace("READS_TIMES = False", f"READS_TIMES = {config.model.time_buckets > 0}", 1)
        usage = usage.replace("KNOWS_REPEATS = False", f"KNOWS_REPEATS = {config.model.repeat_bias}", 1)
        (folder / "usage.py").write_text(usage, "utf-8")
    print(f"{out}: {', '.join(FILES)}; usage.py reads the {max_history:,} most recent items of a history")
    return 0
