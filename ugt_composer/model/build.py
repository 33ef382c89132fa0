"""Config to model: the same weights on every rank for one seed."""

from dataclasses import asdict

import torch

from ugt_composer.config import ModelConfig
from ugt_composer.model.ugt import UGT


def build_model(config: ModelConfig, seed: int) -> UGT:
    """A UGT initialised from `seed`; the global random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UGT(**asdict(config))
