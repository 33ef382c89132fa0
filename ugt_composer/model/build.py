"""Config to model: the same weights on every rank for one seed."""

from dataclasses import asdict

import torch

from ugt_composer.config.schema import ModelConfig
from ugt_composer.model.ugt import UGT


def build_model(config: ModelConfig, seed: int) -> UGT:
    """A UGT initialised from `seed`; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the host; no GPU's state is asked for
        torch.manual_seed(seed)
        return UGT(**asdict(config))


def freeze_untrained(model: UGT, lambda_contrastive: float) -> None:
    """Freezes what a stage's loss does not reach: it exists all the same, so that every stage has one state dict."""
    if lambda_contrastive == 0:
        model.user_proj.requires_grad_(False)
        model.item_proj.requires_grad_(False)
