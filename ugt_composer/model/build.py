"""Builds the model from the config, with the same weights on every rank for a given seed."""

from dataclasses import asdict

import torch

from ugt_composer.config.schema import LossConfig, ModelConfig
from ugt_composer.model.ugt import UGT


def build_model(config: ModelConfig, seed: int) -> UGT:
    """A UGT initialised from `seed`; the global random state is left unchanged."""
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU, so no GPU state is saved
        torch.manual_seed(seed)
        return UGT(**asdict(config))


def freeze_untrained(model: UGT, loss: LossConfig) -> None:
    """Freezes parameters that a stage's loss does not use. They exist in every stage, so the state dict is the same."""
    if loss.lambda_contrastive == 0:
        model.user_proj.requires_grad_(False)
        model.item_proj.requires_grad_(False)
    if model.user_repeats is not None and not loss.has_catalogue_negatives:
        model.user_repeats.requires_grad_(False)
