"""The three output heads, each conditional on the levels above it.

log p(item | h) = log p(l1 | h) + log p(l2 | h, l1) + log p(l3 | h, l1, l2). Independent heads would model
p(l1)·p(l2)·p(l3), which gives probability to items that do not exist.

Logits are computed for a whole codebook, or only for the ids that exist below a prefix. Log-probabilities of given ids
over a whole codebook are computed without storing its logits.
"""

import functools
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt_composer.model.autocast import product_dtype
from ugt_composer.model.embedding import ItemEmbedding
from ugt_composer.model.label_scores import LabelScores, LevelSoftmax, divergences, label_scores
from ugt_composer.model.pair_products import row_products
from ugt_composer.model.zero_embedding import ZeroEmbedding
from ugt_composer.row_random import mix


class LevelHead(nn.Module):
    """Logits of one level: products of the level's id vectors with the hidden state, conditioned on the ids above.

    An id's vector is the same below every prefix. With `pair_buckets` the second level adds a vector of its own to each
    pair of ids, so that an L2 id can mean something else below each L1 id. Pairs are hashed into that many buckets,
    like the n-grams of Pagnoni et al. 2024 (https://arxiv.org/abs/2412.09871). These vectors are zero at first. They
    are only used where ids to compute logits for are given, which softmaxes over the catalogue do.
    """

    def __init__(self, level: int, codebook_size: int, d_model: int, tied: bool, pair_buckets: int = 0):
        super().__init__()
        if level > 0:
            self.hidden_proj = nn.Linear(d_model, d_model)
            self.prefix_proj = nn.Linear(d_model, d_model, bias=False)
            self.out_proj = nn.Linear(d_model, d_model)
        self.level = level
        self.norm = nn.LayerNorm(d_model)
        self.bias = nn.Parameter(torch.zeros(codebook_size))
        self.weight = None if tied else nn.Parameter(torch.empty(codebook_size, d_model))
        self.pairs = ZeroEmbedding(pair_buckets, d_model) if level == 1 and pair_buckets else None

    def forward(
        self,
        hidden: Tensor,
        prefix: Tensor,
        beam: Tensor | None = None,
        ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        anchor: LevelSoftmax | None = None,
        as_softmax: bool = False,
        embedding: ItemEmbedding,
    ) -> Tensor | LabelScores | LevelSoftmax:
        """
        hidden: (..., D); (B, W, D) if ids are given, (M, D) if labels are or `as_softmax`
        prefix: (..., level) int64
        ids: (B, R) int64, the ids to compute logits for; None: all of the codebook
        beam: (B, R) int64, index (< W) of the prefix that each id extends; ascending in each row
        labels: (M, K) int64
        anchor: with labels, the softmax that theirs is compared with
        returns: logits (..., V_level), or (B, R); float32, though autocast rounds the products. With labels their
            scores over the codebook; `as_softmax` what the logits would be computed from, as copies, which stay when
            a strategy frees the weights
        """
        if self.level > 0:
            mixed = F.silu(self.hidden_proj(hidden) + self.prefix_proj(embedding(prefix)))
            hidden = hidden + self.out_proj(mixed)
        weight = embedding.output_weight(self.level) if self.weight is None else self.weight
        bias = self.bias.to(torch.promote_types(self.bias.dtype, torch.float32))
        if _rounds_products(weight):
            # A vector added to all rows of `weight` does not change the softmax, so training does not keep it small.
            # The mean row is subtracted first, because rounding errors grow with it.
            weight, bias = weight - weight.mean(dim=0), bias - bias.mean()
        states = self.norm(hidden)
        if labels is not None:
            scores = label_scores(states, weight, bias, labels)
            if anchor is None:
                return scores
            return scores._replace(divergences=divergences(_softmax(states, weight, bias), anchor))
        if as_softmax:
            return LevelSoftmax(*(one.detach().clone() for one in _softmax(states, weight, bias)))
        if beam is None or ids is None:
            return F.linear(states, weight) + bias
        owners = torch.arange(states.shape[0], device=ids.device).unsqueeze(1) * states.shape[1] + beam
        logits = self._of_ids(states, weight, bias, beam, ids, owners)
        if self.pairs is None:
            return logits
        rows = pair_bucket(prefix[..., 0].gather(1, beam), ids, len(self.pairs.weight))
        flat = states.flatten(0, 1)
        if _samples_products(self.pairs.weight):
            return logits + _sampled_products(flat.to(weight.dtype), self.pairs.weight, owners, rows)
        return logits + row_products(flat, self.pairs.weight, owners.flatten(), rows.flatten()).view_as(logits)

    @staticmethod
    def _of_ids(states: Tensor, weight: Tensor, bias: Tensor, beam: Tensor, ids: Tensor, owners: Tensor) -> Tensor:
        """The logits (B, R) of ids below prefixes, owners (B, R) of `states` (B · W, D) if these are flattened."""
        gathered_size, codebook_size = ids.shape[1] * weight.shape[1], states.shape[1] * weight.shape[0]
        if gathered_size >= codebook_size:  # gathering vectors would cost more than logits of the whole codebook
            logits = F.linear(states, weight) + bias
            return logits.flatten(1).gather(1, beam * weight.shape[0] + ids)
        bias, samples = F.embedding(ids, bias.unsqueeze(1)).squeeze(2), _samples_products(weight)
        states = states.flatten(0, 1)
        if samples:
            return _sampled_products(states.to(weight.dtype), weight, owners, ids) + bias
        # F.embedding copies whole vectors, unlike gather
        return (F.embedding(ids, weight) * F.embedding(owners, states)).sum(2) + bias


def pair_bucket(l1_ids: Tensor, l2_ids: Tensor, buckets: int) -> Tensor:
    """The bucket of each pair of ids, int64 (…) below 2^32; it does not depend on the sizes of the codebooks."""
    return mix(mix(l1_ids) ^ l2_ids) % buckets


def _softmax(states: Tensor, weight: Tensor, bias: Tensor) -> LevelSoftmax:
    dtype = product_dtype(states)
    return LevelSoftmax(states.to(dtype), weight.to(dtype), bias)


def _rounds_products(weight: Tensor) -> bool:
    """Whether products with `weight` may be less precise than float32: with autocast, in half precision, on any GPU.
    Otherwise its mean row is not subtracted: copying a large table would take longer than the products."""
    device = weight.device.type
    return device != "cpu" or weight.dtype != torch.float32 or torch.is_autocast_enabled(device)


def _samples_products(weight: Tensor) -> bool:
    """Whether to compute only the needed products, as PyTorch can on a CPU if nothing is traced. With gradients this
    would copy the vectors anyway."""
    on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    return on_cpu and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _sampled_products(states: Tensor, weight: Tensor, owners: Tensor, ids: Tensor) -> Tensor:
    """states[owners[b, r]] · weight[ids[b, r]], (B, R), without copying vectors.

    states (B · W, D), weight (V, D), owners int64 (B, R), ascending when flattened.
    """
    _pass_beta_warning()
    ends = F.pad(torch.bincount(owners.flatten(), minlength=len(states)).cumsum(0), (1, 0))
    zeros, shape = states.new_zeros(ids.numel()), (len(states), len(weight))
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        places = torch.sparse_csr_tensor(ends, ids.flatten(), zeros, shape)
    return torch.sparse.sampled_addmm(places, states, weight.t(), beta=0.0).values().view_as(ids)


@functools.cache
def _pass_beta_warning() -> None:
    """Triggers PyTorch's once-per-process warning that sparse CSR is in beta, and hides it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), (1, 1))


class LevelHeads(nn.Module):
    def __init__(self, codebook_sizes: Sequence[int], d_model: int, tied: bool, pair_buckets: int = 0):
        super().__init__()
        self.heads = nn.ModuleList(
            LevelHead(level, size, d_model, tied, pair_buckets) for level, size in enumerate(codebook_sizes)
        )

    def forward(
        self,
        level: int,
        *inputs: Tensor | None,
        labels: Tensor | None = None,
        anchor: LevelSoftmax | None = None,
        as_softmax: bool = False,
        embedding: ItemEmbedding,
    ) -> Tensor | LabelScores | LevelSoftmax:
        """Of level 0, 1 or 2; inputs and result as for LevelHead."""
        return self.heads[level](*inputs, labels=labels, anchor=anchor, as_softmax=as_softmax, embedding=embedding)
