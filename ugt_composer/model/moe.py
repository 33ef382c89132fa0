"""The decoder's mixture-of-experts feed-forward: top-k routing, sorted dispatch, stacked experts.

N tokens (B·T flattened), k experts per token, E experts, C slots per expert, D width, F expert width. An assignment is
a pair of a token and one of its k experts; assignment a belongs to token a // k.

Rows are moved by `take_rows`, so that the same inputs give the same bits.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt_composer.float32_product import float32_matmul
from ugt_composer.model.autocast import product_dtype
from ugt_composer.model.dropout import Dropout
from ugt_composer.model.grouped_product import grouped_linear, runs_without_waiting
from ugt_composer.model.row_moves import inverse_permutation, take_rows

READABLE_WITHOUT_SYNC = ("cpu",)  # devices whose values can be read without a synchronisation
FEW_TOKENS = 1024  # such as when items are scored, from one token per row


class RouterStats(NamedTuple):
    """Statistics of a layer for the balance loss: sums, which can be added over microbatches and ranks."""

    counts: Tensor  # (E,) float32, tokens sent to each expert (before any is dropped)
    prob_sums: Tensor  # (E,) float32, router probabilities summed over the tokens


class Router(nn.Linear):
    """Expert logits (N, E) of tokens (N, D), in float32 regardless of autocast, TF32 and the weights' dtype: near ties
    are decided in full precision."""

    def forward(self, tokens: Tensor) -> Tensor:
        return float32_matmul(tokens, self.weight.t())


class MoEFeedForward(nn.Module):
    """Each token goes through its k most probable experts, weighted by their renormalised probabilities.

    Tokens are sorted by expert, so that each expert computes one dense product. With a `capacity_factor` an expert
    takes at most C = ⌈factor · N·k / E⌉ tokens in training, and the others pass through the residual only (Switch
    Transformer, Fedus et al., 2021): shapes are static, so no synchronisation with the device is needed. Without a
    `capacity_factor`, and always in evaluation, no token is dropped, so a row's output does not depend on other rows.
    Nor is the first token of a row if `keep_first` is set, and it takes no other token's place.

    Experts are stacked parameters, (E, D, F) and (E, F, D), so each gets a gradient in every step, used or not. Their
    first two dimensions may be flattened into one.
    """

    def __init__(
        self, d_model: int, d_ff: int, num_experts: int, top_k: int, capacity_factor: float | None, dropout: float
    ):
        super().__init__()
        self.d_model, self.d_ff, self.num_experts = d_model, d_ff, num_experts
        self.top_k = top_k
        self.capacity_factor = capacity_factor
        self.router = Router(d_model, num_experts, bias=False)
        self.up = nn.Parameter(torch.empty(num_experts, d_model, d_ff))
        self.up_bias = nn.Parameter(torch.zeros(num_experts, d_ff))
        self.down = nn.Parameter(torch.empty(num_experts, d_ff, d_model))
        self.down_bias = nn.Parameter(torch.zeros(num_experts, d_model))
        self.dropout = Dropout(dropout)
        self.all_experts = False  # set for export, which needs shapes that do not depend on values

    def forward(self, x: Tensor, mask: Tensor, keep_first: bool = False) -> tuple[Tensor, RouterStats]:
        """x (B, T, D), mask (B, T) bool → (B, T, D), zero on padding, and the router's sums over valid tokens."""
        tokens, valid = x.flatten(0, 1), mask.flatten().unsqueeze(-1)
        probs = self.router(tokens).softmax(-1) * valid
        gates, experts = (values.unflatten(0, x.shape[:2]) for values in probs.topk(self.top_k, dim=-1))
        gates = gates / gates.sum(-1, keepdim=True).clamp(min=1e-9)
        capacity_factor = self.capacity_factor if self.training else None
        if capacity_factor is None or not keep_first:
            outputs, counts = self._of_experts(x, experts, mask, capacity_factor)
        else:
            outputs, counts = self._of_experts(x[:, :1], experts[:, :1], mask[:, :1], None)
            if x.shape[1] > 1:
                others = self._of_experts(x[:, 1:], experts[:, 1:], mask[:, 1:], capacity_factor)
                outputs, counts = torch.cat((outputs, others[0]), dim=1), counts + others[1]
        weighted = outputs * gates.to(outputs.dtype).unsqueeze(-1)
        return weighted.sum(2), RouterStats(counts.float(), probs.sum(0))

    def _of_experts(
        self, x: Tensor, experts: Tensor, mask: Tensor, capacity_factor: float | None
    ) -> tuple[Tensor, Tensor]:
        """The outputs (B, T, k, D) of the experts (B, T, k) of x (B, T, D), and how many tokens (E,) chose each expert.

        Args:
            capacity_factor: None: no token is dropped.
        """
        tokens, flat_experts = x.flatten(0, 1), experts.flatten(0, 1)
        # Padding is sorted after the last expert, so there are E + 1 counts.
        or_padding = flat_experts.masked_fill(~mask.flatten().unsqueeze(-1), self.num_experts)
        sorted_experts, order = or_padding.flatten().sort(stable=True)
        first = torch.searchsorted(sorted_experts, torch.arange(self.num_experts + 2, device=x.device))
        counts = first.diff()
        if capacity_factor is not None:
            outputs = self._with_capacity(tokens, order, sorted_experts, first, capacity_factor)
        elif self.all_experts:
            outputs = self._all_experts(tokens, flat_experts)
        elif self._can_group(tokens):
            outputs = self._grouped(tokens, order, sorted_experts, first)
        elif self._is_cheaper_than_waiting(tokens):
            outputs = self._all_experts(tokens, flat_experts)
        else:
            outputs = self._dropless(tokens, order, counts)
        return outputs.view(*experts.shape, x.shape[-1]), counts[:-1]

    def _can_group(self, tokens: Tensor) -> bool:
        """Whether tokens (N, D) can take `_grouped` without a wait, which is then the best path for few tokens too."""
        rows = len(tokens) * self.top_k
        sizes = (rows, self.num_experts, self.d_model, self.d_ff)
        return runs_without_waiting(tokens, product_dtype(tokens), *sizes)

    def _is_cheaper_than_waiting(self, tokens: Tensor) -> bool:
        """Whether computing all experts for these few tokens is faster than copying the counts to the CPU."""
        return tokens.device.type not in READABLE_WITHOUT_SYNC and len(tokens) <= FEW_TOKENS

    def _with_capacity(
        self, tokens: Tensor, order: Tensor, sorted_experts: Tensor, first: Tensor, capacity_factor: float
    ) -> Tensor:
        """Outputs (N·k, D) of all assignments; zero for those over an expert's capacity and on padding.

        Args:
            tokens: (N, D).
            order, sorted_experts: (N·k,) int64, the assignments sorted by expert, and their experts.
            first: (E + 2,) int64, where each expert's assignments begin in that order.
        """
        capacity = math.ceil(capacity_factor * len(order) / self.num_experts)
        place = torch.arange(len(order), device=tokens.device) - first[sorted_experts]
        kept = (place < capacity) & (sorted_experts < self.num_experts)
        inverse = inverse_permutation(order)
        slot = torch.where(kept, sorted_experts * capacity + place, 0)[inverse]
        kept = kept[inverse]
        place = torch.arange(capacity, device=tokens.device)
        filled = (place < first.diff()[:-1].unsqueeze(-1)).flatten()
        assignment = order[(first[:-2].unsqueeze(-1) + place).flatten().clamp(max=len(order) - 1)]
        slots = take_rows(tokens, (assignment, filled), (slot, kept), self.top_k)
        outputs = self._stacked_experts(slots.view(self.num_experts, capacity, -1))
        return take_rows(outputs.flatten(0, 1), (slot, kept), (assignment, filled))

    def _all_experts(self, tokens: Tensor, experts: Tensor) -> Tensor:
        """The outputs of `_dropless`, given tokens (N, D) and their experts (N, k), but every expert computes every
        token."""
        outputs = self._stacked_experts(tokens.expand(self.num_experts, *tokens.shape)).flatten(0, 1)
        count = tokens.shape[0]
        token = torch.arange(count, device=tokens.device).unsqueeze(-1)
        # The experts of a token are distinct, also on padding, so no row is used twice.
        row = (experts * count + token).flatten()
        choice = experts.unsqueeze(-1) == torch.arange(self.num_experts, device=tokens.device)  # (N, k, E)
        assignment = token * self.top_k + choice.int().argmax(1)
        return take_rows(outputs, (row, None), (assignment.T.flatten(), choice.any(1).T.flatten()))

    def _stacked_experts(self, x: Tensor) -> Tensor:
        """x (E, C, D) → (E, C, D); expert e computes x[e]."""
        up, down = self._weights()
        hidden = self._dropped(F.silu(torch.baddbmm(self.up_bias.unsqueeze(1), x, up)))
        return torch.baddbmm(self.down_bias.unsqueeze(1), hidden, down)

    @torch.compiler.disable  # it would recompile for every split
    def _dropless(self, tokens: Tensor, order: Tensor, counts: Tensor) -> Tensor:
        """Outputs (N·k, D) of all assignments of tokens (N, D). Copies counts to the CPU: one sync per layer.

        Args:
            order: (N·k,) int64, the assignments sorted by expert.
            counts: (E + 1,) int64, number of assignments of each expert, and of padding.
        """
        inverse = inverse_permutation(order)
        pieces = take_rows(tokens, (order, None), (inverse, None), self.top_k).split(counts.tolist())
        ups, downs = self._weights()
        outputs = [
            F.linear(self._dropped(F.silu(F.linear(piece, up.T, up_bias))), down.T, down_bias)
            for piece, up, up_bias, down, down_bias in zip(
                pieces, ups, self.up_bias, downs, self.down_bias, strict=False
            )
        ]
        outputs.append(torch.zeros_like(pieces[-1], dtype=outputs[0].dtype))
        return take_rows(torch.cat(outputs), (inverse, None), (order, None))

    def _grouped(self, tokens: Tensor, order: Tensor, sorted_experts: Tensor, first: Tensor) -> Tensor:
        """The outputs of `_dropless`, without its wait: the products read the counts on the device.

        Args:
            tokens: (N, D).
            order, sorted_experts: (N·k,) int64, the assignments sorted by expert, and their experts; E: padding.
            first: (E + 2,) int64, where each expert's assignments begin in that order.
        """
        inverse, ends = inverse_permutation(order), first[1:-1].int()
        # Rows of padding are undefined, in both directions: they are masked where they leave the products.
        computed = (inverse, sorted_experts[inverse] < self.num_experts)
        up, down = self._weights()
        rows = take_rows(tokens, (order, None), computed, self.top_k)
        hidden = self._dropped(F.silu(grouped_linear(rows, up, self.up_bias, sorted_experts, ends)))
        outputs = grouped_linear(hidden, down, self.down_bias, sorted_experts, ends)
        return take_rows(outputs, computed, (order, None))

    def _dropped(self, hidden: Tensor) -> Tensor:
        """Dropout, without a call of the module: how often it is needed depends on a rank's tokens, and ZeRO-3 of
        DeepSpeed ends a run whose ranks call different modules."""
        return self.dropout.forward(hidden)

    def _weights(self) -> tuple[Tensor, Tensor]:
        """The experts' matrices, (E, D, F) and (E, F, D)."""
        return (
            self.up.view(self.num_experts, self.d_model, self.d_ff),
            self.down.view(self.num_experts, self.d_ff, self.d_model),
        )


def balance_loss(counts: Tensor, prob_sums: Tensor) -> Tensor:
    """E · Σ_e f_e · P_e, averaged over layers (Switch Transformer, Fedus et al., 2021, eq. 4).

    f_e is the fraction of assignments that go to expert e, P_e the mean router probability of e. The loss is 1 if the
    router is uniform, E/k if it has collapsed to k experts, and 0 without tokens.

    Args:
        counts: (layers, E) float32, assignments per expert.
        prob_sums: (layers, E) float32, router probabilities summed over tokens; carries the gradient.

    Returns:
        scalar.
    """
    tiny = torch.finfo(torch.float32).tiny
    fractions = counts / counts.sum(-1, keepdim=True).clamp(min=tiny)
    probs = prob_sums / prob_sums.sum(-1, keepdim=True).clamp(min=tiny)
    return counts.shape[-1] * (fractions * probs).sum(-1).mean()
