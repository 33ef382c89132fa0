"""The catalogue, the item vectors and the item rewards that a config names."""

import numpy as np

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.item_matrix import read_catalogue_vectors
from ugt_composer.catalogue.item_rewards import read_item_rewards
from ugt_composer.catalogue.neighbours import ItemNeighbours, load_neighbours
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.config.schema import Config
from ugt_composer.errors import UserError


def load_catalogue(config: Config) -> Catalogue | None:
    """The catalogue of `data.catalogue`, checked against the codebook sizes; None if not given."""
    if config.data.catalogue is None:
        return None
    catalogue = Catalogue.load(config.data.catalogue)
    catalogue.check(config.model.codebook_sizes)
    check_any_open(catalogue)
    return catalogue


def check_any_open(catalogue: Catalogue) -> None:
    """Raises UserError if all items are withheld, so that an evaluation would have nothing to rank."""
    if catalogue.withheld.all():
        raise UserError(
            f"{catalogue.source}: all {len(catalogue):,} items are withheld, so nothing can be recommended; "
            "expected at least one that is not"
        )


def load_item_vectors(config: Config, catalogue: Catalogue | None) -> np.ndarray | None:
    """float32 (n, d), the vectors of `init_item_vectors`; None if not given."""
    if config.init_item_vectors is None:
        return None
    assert catalogue is not None  # the config was refused without one
    return read_catalogue_vectors(config.init_item_vectors, catalogue)


def load_item_neighbours(config: Config, trie: ItemTrie | None) -> tuple[ItemNeighbours, float] | None:
    """The neighbours of `evaluation.item_neighbours`, on the CPU, and their weight; None if that is 0."""
    evaluation = config.evaluation
    if evaluation.item_neighbours is None or evaluation.neighbour_weight == 0:
        return None
    assert trie is not None  # the config was refused without one
    return load_neighbours(evaluation.item_neighbours, trie), evaluation.neighbour_weight


def load_item_rewards(config: Config, catalogue: Catalogue | None) -> np.ndarray | None:
    """float64 (n,), the rewards of `loss.reward_file`; None if not given, or if no loss reads them."""
    if config.loss.reward_file is None or not config.loss.uses_group:
        return None
    assert catalogue is not None  # the config was refused without one
    return read_item_rewards("loss.reward_file", config.loss.reward_file, catalogue)


def about_catalogue(config: Config, catalogue: Catalogue | None) -> str | None:
    """A note for the user: no catalogue, items that share semantic IDs, retired items; None otherwise."""
    if catalogue is None:
        return "data.catalogue is not given: recommendations are not limited to items that exist"
    notes = [str(catalogue.collisions)] if catalogue.collisions.count else []
    if retired := catalogue.retired:
        notes.append(f"{retired:,} of {len(catalogue):,} items are retired, so they are not recommended")
    return f"{config.data.catalogue}: {'; '.join(notes)}" if notes else None
