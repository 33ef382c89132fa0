"""Attention compared with loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from ugt_composer.model.attention import PointwiseAttention
from ugt_composer.model.history_tokens import HistoryTokens


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_pointwise_attention_equals_loops(activation):
    torch.manual_seed(0)
    attention = PointwiseAttention(d_model=8, n_heads=2, dropout=0.0, activation=activation).eval()
    x, mask = torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]]).bool()
    phi = {"silu": F.silu, "relu": F.relu}[activation]
    q, k, v, gate = attention.in_proj(x).chunk(4, dim=-1)
    mixed = torch.zeros(2, 5, 8)
    for row in range(2):
        for head in (slice(0, 4), slice(4, 8)):
            for i in range(5):
                for j in range(5):
                    if mask[row, j]:
                        weight = phi(q[row, i, head] @ k[row, j, head] / math.sqrt(4))
                        mixed[row, i, head] += weight * v[row, j, head] / mask[row].sum()
    expected = attention.out_proj(attention.norm(mixed) * phi(gate))
    torch.testing.assert_close(attention(x, HistoryTokens(mask)), expected, rtol=1e-5, atol=1e-5)
