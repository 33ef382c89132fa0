"""The decoder's mixture-of-experts feed-forward: top-k routing, sorted dispatch, stacked experts.

N tokens (B·T flattened), k experts a token, E experts, C slots an expert, D width, F expert width. An assignment is one
of a token's k experts; assignment a is token a // k's.

Rows are moved by gathers, forward and backward. Where PyTorch would add gradients up by atomics, whose order differs
from run to run, the inverse gather is known: the same inputs give the same bits.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt_composer.float32_product import float32_matmul
from ugt_composer.model.autocast import product_dtype
from ugt_composer.model.dropout import Dropout

COUNTS_ARE_AT_HAND = ("cpu",)  # devices whose values the host reads without a wait
FEW_TOKENS = 1024  # such as the one of each row that items are scored from


class RouterStats(NamedTuple):
    """What the balance loss needs of one layer; sums, so that they add up over microbatches and ranks."""

    counts: Tensor  # (E,) float32, tokens sent to each expert (before any is dropped)
    prob_sums: Tensor  # (E,) float32, router probabilities summed over the tokens


class Router(nn.Linear):
    """Expert logits (N, E) of tokens (N, D) in float32, whatever autocast, TF32 and the weights' dtype say: near ties
    are decided in full precision."""

    def forward(self, tokens: Tensor) -> Tensor:
        return float32_matmul(tokens, self.weight.t())


class MoEFeedForward(nn.Module):
    """Each token goes through its k most probable experts, weighted by their renormalised probabilities.

    Tokens are sorted by expert, so that an expert's work is one dense product. With a `capacity_factor` an expert
    takes at most C = ⌈factor · N·k / E⌉ tokens while training and the rest pass through the residual only (Switch
    Transformer, Fedus et al., 2021): shapes are static and nothing waits for the device. Without one, and always in
    evaluation, no token is dropped, so that a row's output does not depend on the rows beside it.

    Experts are stacked parameters, (E, D, F) and (E, F, D): each gets a gradient in every step, used or not. Their
    leading dimensions may be flattened into one.
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
        self.all_experts = False  # an exported program needs shapes that no value decides

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, RouterStats]:
        """x (B, T, D), mask (B, T) bool → (B, T, D), zero on padding, and the router's sums over valid tokens."""
        tokens, valid = x.flatten(0, 1), mask.flatten().unsqueeze(-1)
        probs = self.router(tokens).softmax(-1) * valid
        gates, experts = probs.topk(self.top_k, dim=-1)
        gates = gates / gates.sum(-1, keepdim=True).clamp(min=1e-9)
        # Padding sorts behind the last expert: one count more than there are experts.
        sorted_experts, order = experts.masked_fill(~valid, self.num_experts).flatten().sort(stable=True)
        first = torch.searchsorted(sorted_experts, torch.arange(self.num_experts + 2, device=x.device))
        counts = first.diff()

        if self.training and self.capacity_factor is not None:
            outputs = self._with_capacity(tokens, order, sorted_experts, first)
        elif self.all_experts or self._is_cheaper_than_waiting(tokens):
            outputs = self._all_experts(tokens, experts)
        else:
            outputs = self._dropless(tokens, order, counts)
        weighted = outputs.unflatten(0, (-1, self.top_k)) * gates.to(outputs.dtype).unsqueeze(-1)
        return weighted.sum(1).view_as(x), RouterStats(counts[:-1].float(), probs.sum(0))

    def _is_cheaper_than_waiting(self, tokens: Tensor) -> bool:
        """Whether few tokens go through all experts sooner than the host knows how many each expert gets."""
        return tokens.device.type not in COUNTS_ARE_AT_HAND and len(tokens) <= FEW_TOKENS

    def _with_capacity(self, tokens: Tensor, order: Tensor, sorted_experts: Tensor, first: Tensor) -> Tensor:
        """Outputs (N·k, D) of all assignments; zero for those over an expert's capacity and on padding.

        Args:
            tokens: (N, D).
            order, sorted_experts: (N·k,) int64, the assignments sorted by expert, and their experts.
            first: (E + 2,) int64, where each expert's assignments begin in that order.
        """
        assert self.capacity_factor is not None
        capacity = math.ceil(self.capacity_factor * len(order) / self.num_experts)
        place = torch.arange(len(order), device=tokens.device) - first[sorted_experts]
        kept = (place < capacity) & (sorted_experts < self.num_experts)
        inverse = _inverse(order)
        slot = torch.where(kept, sorted_experts * capacity + place, 0)[inverse]
        kept = kept[inverse]
        place = torch.arange(capacity, device=tokens.device)
        filled = (place < first.diff()[:-1].unsqueeze(-1)).flatten()
        assignment = order[(first[:-2].unsqueeze(-1) + place).flatten().clamp(max=len(order) - 1)]
        slots = _take_rows(tokens, self.top_k, (assignment, filled), (slot, kept))
        outputs = self._stacked_experts(slots.view(self.num_experts, capacity, -1))
        return _take_rows(outputs.flatten(0, 1), 1, (slot, kept), (assignment, filled))

    def _all_experts(self, tokens: Tensor, experts: Tensor) -> Tensor:
        """What `_dropless` gives of tokens (N, D) and their experts (N, k), at the price of every expert on every
        token."""
        outputs = self._stacked_experts(tokens.expand(self.num_experts, *tokens.shape))
        # The experts of a token differ, also on padding: no row is used twice.
        token = torch.arange(tokens.shape[0], device=tokens.device).unsqueeze(-1)
        return outputs[experts, token].flatten(0, 1)

    def _stacked_experts(self, x: Tensor) -> Tensor:
        """x (E, C, D) → (E, C, D), an expert for each leading index."""
        up, down = self._weights()
        hidden = self.dropout(F.silu(torch.baddbmm(self.up_bias.unsqueeze(1), x, up)))
        return torch.baddbmm(self.down_bias.unsqueeze(1), hidden, down)

    @torch.compiler.disable  # it would compile anew for every split
    def _dropless(self, tokens: Tensor, order: Tensor, counts: Tensor) -> Tensor:
        """Outputs (N·k, D) of all assignments of tokens (N, D). Reads the counts on the host: one wait per layer.

        Args:
            order: (N·k,) int64, the assignments sorted by expert.
            counts: (E + 1,) int64, those of each expert, and of padding.
        """
        inverse = _inverse(order)
        pieces = _take_rows(tokens, self.top_k, (order, None), (inverse, None)).split(counts.tolist())
        ups, downs = self._weights()
        outputs = [
            F.linear(self.dropout(F.silu(F.linear(piece, up.T, up_bias))), down.T, down_bias)
            for piece, up, up_bias, down, down_bias in zip(
                pieces, ups, self.up_bias, downs, self.down_bias, strict=False
            )
        ]
        outputs.append(torch.zeros_like(pieces[-1], dtype=outputs[0].dtype))
        return _take_rows(torch.cat(outputs), 1, (inverse, None), (order, None))

    def _weights(self) -> tuple[Tensor, Tensor]:
        """The experts' matrices, (E, D, F) and (E, F, D)."""
        return (
            self.up.view(self.num_experts, self.d_model, self.d_ff),
            self.down.view(self.num_experts, self.d_ff, self.d_model),
        )


class _TakeRows(torch.autograd.Function):
    """See `_take_rows`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        repeats: int,
        dtype: torch.dtype,
        taken: Tensor,
        taken_valid: Tensor | None,
        back: Tensor,
        back_valid: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(back, back_valid)
        ctx.repeats, ctx.dtype = repeats, x.dtype
        return _gather(x.to(dtype), taken // repeats if repeats > 1 else taken, taken_valid)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        back, back_valid = ctx.saved_tensors
        rows = _gather(gradient, back, back_valid)
        if ctx.repeats > 1:
            rows = rows.unflatten(0, (-1, ctx.repeats)).sum(1, dtype=ctx.dtype)
        return rows.to(ctx.dtype), None, None, None, None, None, None


def _gather(x: Tensor, index: Tensor, valid: Tensor | None) -> Tensor:
    rows = x.index_select(0, index)
    # Not in place: a compiled function's output has to be a new tensor, see GroupLayerNorm.
    return rows if valid is None else rows.masked_fill(~valid.unsqueeze(-1), 0)


Rows = tuple[Tensor, Tensor | None]  # which rows (R,) int64, and where there is such a row (R,) bool; None: everywhere


def _take_rows(x: Tensor, repeats: int, taken: Rows, back: Rows) -> Tensor:
    """Rows of x (M, D), each repeated `repeats` times: (M·repeats, D) → (R, D), zero where there is none to take. None
    is taken twice.

    The gradient is a gather as well: `back` says where each of the M·repeats rows went.
    """
    return _TakeRows.apply(x, repeats, product_dtype(x), *taken, *back)


def _inverse(order: Tensor) -> Tensor:
    """The inverse of a permutation (N,) int64. Every place is written once, so the scatter has no order to choose."""
    return order.scatter(0, order, torch.arange(order.shape[0], device=order.device))


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
