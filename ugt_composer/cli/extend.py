"""Give a trained model the new items of a larger catalogue.

The catalogue has to contain the model's items with the same semantic IDs; ugt ids --extend makes it.
Embeddings of ids that the model knows stay as they are. New third-level ids get entries that are predicted from those
of the trained items with the nearest item vectors. If the catalogue's ids need it, the third codebook is enlarged.
"""

import argparse

from ugt_composer.cli.options import add_model, add_output_folder

FILES = ("model.safetensors", "config.yaml", "catalogue.jsonl.zst", "record.json")
EPILOG = """examples:
  ugt ids --extend data/movies/semantic_ids.json --items new_movies.csv --out data/more_movies
  ugt extend --checkpoint checkpoints/stage3/best --catalogue data/more_movies/catalogue.jsonl \\
    --item-vectors data/more_movies/item_vectors.npy --out extended
  ugt recommend --checkpoint extended --history user.json

Every --checkpoint option, init_from and loss.reference_from accept DIR. A stage that starts from it needs the same
data.catalogue, and the model.codebook_sizes that are printed.
Exit status: 0 done, 2 bad input."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--catalogue", required=True, metavar="FILE", help="the model's items and the new ones")
    parser.add_argument(
        "--item-vectors",
        required=True,
        metavar="NPY",
        help="one row per line of the catalogue, such as the item_vectors.npy beside it",
    )
    add_output_folder(parser)


def main(arguments: argparse.Namespace) -> int:
    from dataclasses import replace
    from pathlib import Path

    import numpy as np

    from ugt_composer.catalogue.catalogue import Catalogue
    from ugt_composer.catalogue.extension import catalogue_copy
    from ugt_composer.catalogue.item_matrix import read_catalogue_vectors
    from ugt_composer.checkpoint.portable import (
        EXTENDED_FROM,
        FINGERPRINT,
        load_portable,
        save_portable,
        trained_catalogue,
    )
    from ugt_composer.checkpoint.remote import model_folder
    from ugt_composer.errors import UserError
    from ugt_composer.model.enlarge import enlarged, sizes_for
    from ugt_composer.model.new_items import set_new_entries
    from ugt_composer.storage.output_folder import new_folder

    catalogue = Catalogue.load(arguments.catalogue)
    vectors = read_catalogue_vectors(arguments.item_vectors, catalogue, "--item-vectors")
    folder = model_folder(arguments.checkpoint)
    model, config, facts = load_portable(folder)
    trained = trained_catalogue(arguments.checkpoint, folder, facts, catalogue)
    if len(trained) == len(catalogue):
        raise UserError(f"--catalogue {arguments.catalogue} has no items that {arguments.checkpoint} lacks")
    sizes = sizes_for(catalogue, config.model.codebook_sizes)
    if is_larger := sizes != config.model.codebook_sizes:
        config = replace(config, model=replace(config.model, codebook_sizes=sizes))
        model = enlarged(model, config.model, config.seed)
    is_old = np.array([item_id in trained for item_id in catalogue.columns.ids])
    own = set_new_entries(model, catalogue.triples, vectors, is_old)
    config = replace(config, data=replace(config.data, catalogue=arguments.catalogue))
    out = Path(arguments.out)
    with new_folder(out, FILES, arguments.overwrite) as written:
        facts |= {FINGERPRINT: catalogue.fingerprint, EXTENDED_FROM: trained.fingerprint}
        save_portable(written, model.state_dict(), config, facts, catalogue_copy(catalogue))
    new = len(catalogue) - len(trained)
    print(
        f"{out}: {len(trained):,} items that the model was trained on, and {new:,} new ones with entries from vectors"
    )
    if own < new:
        print(
            f"{new - own:,} new items share their third-level id, and its entry, with items that the model was trained "
            "on",
        )
    if is_larger:
        print(f"the third codebook was enlarged: model.codebook_sizes=[{','.join(map(str, sizes))}]")
    return 0
