"""The load-balancing loss of the routers of a mixture of experts.

Shapes: Y layers with a router, E experts.
"""

import torch
from torch import Tensor, nn

from ugt_composer.losses.ranks import sum_over_ranks


def balance_loss(router_counts: Tensor, router_prob_sums: Tensor) -> Tensor:
    """E * sum over experts of f * P, averaged over layers (Fedus et al. 2021, Switch Transformers, eq. 4).

    f is the share of the token assignments that an expert got and P its mean router probability. The value is 1 for a
    uniform router and E / k for one that spreads everything evenly over k experts. No routers or no tokens: 0.

    router_counts: (Y, E) token assignments, no gradient
    router_prob_sums: (Y, E) router probabilities summed over tokens
    returns: () float32
    """
    if router_prob_sums.numel() == 0:
        return router_prob_sums.float().sum()
    counts, prob_sums = router_counts.float(), router_prob_sums.float()
    tiny = torch.finfo(torch.float32).tiny
    shares = counts / counts.sum(dim=-1, keepdim=True).clamp(min=tiny)
    probabilities = prob_sums / prob_sums.sum(dim=-1, keepdim=True).clamp(min=tiny)
    return counts.shape[-1] * (shares * probabilities).sum(dim=-1).mean()


class MoEBalanceLoss(nn.Module):
    """`balance_loss` over the tokens of all ranks; every rank has the global value."""

    def forward(self, router_counts: Tensor, router_prob_sums: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """router_counts, router_prob_sums: (Y, E) of this rank's tokens. Returns the loss () and no metrics."""
        if router_prob_sums.numel() == 0:
            return balance_loss(router_counts, router_prob_sums), {}
        # Sums first, ratio after: the mean of the ranks' ratios would be another number. One collective for both.
        both = sum_over_ranks(torch.stack([router_counts.detach().float(), router_prob_sums.float()]))
        return balance_loss(both[0].detach(), both[1]), {}
