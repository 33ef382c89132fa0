"""The decoder's mixture-of-experts feed-forward: top-k routing, sorted dispatch, stacked experts.

N tokens (B·T flattened), k experts a token, E experts, C slots an expert, D width, F expert width.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt_composer.model.dropout import Dropout

COUNTS_ARE_AT_HAND = ("cpu",)  # devices whose values the host reads without a wait
FEW_TOKENS = 1024  # such as the one of each row that items are scored from


class RouterStats(NamedTuple):
    """What the balance loss needs of one layer; sums, so that they add up over microbatches and ranks."""

    counts: Tensor  # (E,) float32, tokens sent to each expert (before any is dropped)
    prob_sums: Tensor  # (E,) float32, router probabilities summed over the tokens


class Router(nn.Linear):
    """Expert logits (…, E) of tokens (…, D) in float32, whatever the weights are held in: near ties are decided in full
    precision."""

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, enabled=False):
            return F.linear(tokens.float(), self.weight.float())


class MoEFeedForward(nn.Module):
    """Each token goes through its k most probable experts, weighted by their renormalised probabilities.

    Tokens are sorted by expert, so that an expert's work is one dense product. With a `capacity_factor` an expert
    takes at most C = ⌈factor · N·k / E⌉ tokens while training and the rest pass through the residual only (Switch
    Transformer, Fedus et al., 2021): shapes are static and nothing waits for the device. Without one, and always in
    evaluation, no token is dropped, so that a row's output does not depend on the rows beside it.

    Experts are stacked parameters, (E, D, F) and (E, F, D): each gets a gradient in every step, used or not.
    """

    def __init__(
        self, d_model: int, d_ff: int, num_experts: int, top_k: int, capacity_factor: float | None, dropout: float
    ):
        super().__init__()
        self.top_k = top_k
        self.capacity_factor = capacity_factor
        self.router = Router(d_model, num_experts, bias=False)
        self.up = nn.Parameter(torch.empty(num_experts, d_model, d_ff))
        self.up_bias = nn.Parameter(torch.zeros(num_experts, d_ff))
        self.down = nn.Parameter(torch.empty(num_experts, d_ff, d_model))
        self.down_bias = nn.Parameter(torch.zeros(num_experts, d_model))
        self.dropout = Dropout(dropout)
        self.all_experts = False  # an exported program needs shapes that no value decides

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, RouterStats]:
        """x (B, T, D), mask (B, T) bool → (B, T, D), zero on padding, and the router's sums over valid tokens."""
        tokens, valid = x.flatten(0, 1), mask.flatten()
        num_experts = self.router.out_features
        probs = self.router(tokens).softmax(-1) * valid.unsqueeze(-1)
        gates, experts = probs.topk(self.top_k, dim=-1)
        gates = gates / gates.sum(-1, keepdim=True).clamp(min=1e-9)
        experts = experts.masked_fill(~valid.unsqueeze(-1), num_experts)  # padding sorts behind the last expert

        sorted_experts, order = experts.flatten().sort(stable=True)
        token_index = order // self.top_k
        # One count more than there are experts: the padding.
        counts = torch.zeros(num_experts + 1, dtype=torch.long, device=x.device)
        counts = counts.scatter_add(0, sorted_experts, torch.ones_like(sorted_experts))

        if self.training and self.capacity_factor is not None:
            outputs = self._with_capacity(tokens, token_index, sorted_experts, counts)
        elif self.all_experts or self._is_cheaper_than_waiting(tokens):
            outputs = self._all_experts(tokens, token_index, sorted_experts)
        else:
            outputs = self._dropless(tokens, token_index, counts)
        weighted = outputs * gates.flatten()[order].to(outputs.dtype).unsqueeze(-1)
        mixed = torch.zeros_like(tokens, dtype=outputs.dtype).index_add(0, token_index, weighted)
        return mixed.view_as(x), RouterStats(counts[:-1].float(), probs.sum(0))

    def _stacked(self, weights: Tensor) -> Tensor:
        """(E · D, F), as a strategy may hold them, or (E, D, F) → (E, D, F)."""
        return weights.view(self.router.out_features, -1, weights.shape[-1])

    def _is_cheaper_than_waiting(self, tokens: Tensor) -> bool:
        """Whether few tokens go through all experts sooner than the host knows how many each expert gets."""
        return tokens.device.type not in COUNTS_ARE_AT_HAND and len(tokens) <= FEW_TOKENS

    def _with_capacity(self, tokens: Tensor, token_index: Tensor, sorted_experts: Tensor, counts: Tensor) -> Tensor:
        """Sorted assignments (N·k,) → their outputs (N·k, D); zero for those over an expert's capacity."""
        num_experts = self.router.out_features
        assert self.capacity_factor is not None
        capacity = math.ceil(self.capacity_factor * len(token_index) / num_experts)
        first = counts.cumsum(0) - counts
        place = torch.arange(len(token_index), device=tokens.device) - first[sorted_experts]
        kept = (place < capacity) & (sorted_experts < num_experts)
        # Dropped assignments share one slot behind the experts' own.
        slot = torch.where(kept, sorted_experts * capacity + place, num_experts * capacity)
        slots = tokens.new_zeros(num_experts * capacity + 1, tokens.shape[-1])
        slots = slots.index_copy(0, slot, tokens[token_index])[:-1].view(num_experts, capacity, -1)
        hidden = self.dropout(F.silu(torch.baddbmm(self.up_bias.unsqueeze(1), slots, self._stacked(self.up))))
        outputs = torch.baddbmm(self.down_bias.unsqueeze(1), hidden, self._stacked(self.down)).flatten(0, 1)
        outputs = torch.cat((outputs, outputs.new_zeros(1, outputs.shape[-1])))
        return outputs[slot] * kept.unsqueeze(-1)

    def _all_experts(self, tokens: Tensor, token_index: Tensor, sorted_experts: Tensor) -> Tensor:
        """What `_dropless` gives, at the price of every expert on every token."""
        num_experts = self.router.out_features
        every = tokens.expand(num_experts, *tokens.shape)
        hidden = F.silu(torch.baddbmm(self.up_bias.unsqueeze(1), every, self._stacked(self.up)))
        outputs = torch.baddbmm(self.down_bias.unsqueeze(1), self.dropout(hidden), self._stacked(self.down))
        return outputs[sorted_experts.clamp(max=num_experts - 1), token_index]  # padding's weight is 0

    @torch.compiler.disable  # it would compile anew for every split
    def _dropless(self, tokens: Tensor, token_index: Tensor, counts: Tensor) -> Tensor:
        """Sorted assignments (N·k,) → their outputs (N·k, D). Reads the counts on the host: one wait per layer."""
        pieces = tokens[token_index].split(counts.tolist())
        outputs = [
            F.linear(self.dropout(F.silu(F.linear(piece, up.T, up_bias))), down.T, down_bias)
            for piece, up, up_bias, down, down_bias in zip(
                pieces,
                self._stacked(self.up),
                self.up_bias,
                self._stacked(self.down),
                self.down_bias,
                strict=False,
            )
        ]
        return torch.cat((*outputs, torch.zeros_like(pieces[-1], dtype=outputs[0].dtype)))


def balance_loss(counts: Tensor, prob_sums: Tensor) -> Tensor:
    """E · Σ_e f_e · P_e, averaged over layers (Switch Transformer, Fedus et al., 2021, eq. 4).

    f_e is the share of assignments that expert e got, P_e the mean router probability of e. 1 where the router is
    uniform, E/k where it has collapsed to k experts. Without a token the loss is 0.

    Args:
        counts: (layers, E) float32, assignments an expert.
        prob_sums: (layers, E) float32, router probabilities summed over tokens; carries the gradient.

    Returns:
        scalar.
    """
    tiny = torch.finfo(torch.float32).tiny
    fractions = counts / counts.sum(-1, keepdim=True).clamp(min=tiny)
    probs = prob_sums / prob_sums.sum(-1, keepdim=True).clamp(min=tiny)
    return counts.shape[-1] * (fractions * probs).sum(-1).mean()
