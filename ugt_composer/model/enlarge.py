"""Enlarges the third codebook of a trained model."""

import torch

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.config.schema import ModelConfig
from ugt_composer.errors import UserError
from ugt_composer.model.build import build_model
from ugt_composer.model.ugt import UGT
from ugt_composer.vocabulary import LEVELS

ROUNDED_TO = 64  # GPUs compute faster with sizes that are multiples of this


def sizes_for(catalogue: Catalogue, sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    """The codebook sizes of a model, with a third level as large as the catalogue's ids need.

    Raises:
        UserError: ids of the first two levels, which have no entries that could be predicted, do not fit.
    """
    needed = (catalogue.triples.max(axis=0) + 1).tolist()
    for level in range(LEVELS - 1):
        if needed[level] > sizes[level]:
            raise UserError(
                f"{catalogue.source}: level {level + 1} has ids up to {needed[level] - 1}, but the model has "
                f"{sizes[level]}; expected new items with known ids of the first two levels, as "
                "ugt ids --extend gives them"
            )
    if needed[-1] <= sizes[-1]:
        return sizes
    return sizes[0], sizes[1], -(-needed[-1] // ROUNDED_TO) * ROUNDED_TO


def enlarged(model: UGT, config: ModelConfig, seed: int) -> UGT:
    """A model of this config, whose codebooks are at least as large, with the weights of `model`.

    Added entries are initialised from the seed. Their biases are the smallest ones of their level, as those of ids that
    no item has become in training.
    """
    larger = build_model(config, seed).eval()
    weights = larger.state_dict()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if weights[name].shape != weight.shape and weight.dim() == 1:
                weights[name].fill_(weight.min())
            weights[name][tuple(slice(size) for size in weight.shape)] = weight
    return larger
