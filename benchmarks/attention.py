"""Claim: the encoder's pointwise attention takes at most half the memory of a plain implementation at length 512, in no
more time.

The plain implementation keeps the (B, H, S, S) scores and weights for the backward pass. Both run forward and backward
on one core. Memory is the growth of a process's peak memory.

    python benchmarks/attention.py [--rows 8] [--length 512] [--repetitions 7]
"""

import argparse
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import Claim, in_turns, peak_bytes, report
from ugt_composer.model.attention import PointwiseAttention, merge_heads, split_heads
from ugt_composer.model.history_tokens import HistoryTokens

D_MODEL, HEADS = 128, 8


class PlainAttention(PointwiseAttention):
    """The formula, implemented literally."""

    def forward(self, x: Tensor, tokens: HistoryTokens, times: Tensor | None = None) -> Tensor:
        q, k, v, gate = self.in_proj(x).chunk(4, dim=-1)
        q, k, v = (split_heads(t, self.n_heads) for t in (q, k, v))
        scores = F.silu(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]))
        mask = tokens.mask
        weights = scores * (mask / mask.sum(-1, keepdim=True))[:, None, None, :]
        return self.out_proj(self.norm(merge_heads(weights @ v)) * F.silu(gate))


def make(kind: str, rows: int, length: int):
    """A function that runs forward and backward of one kind (ours, plain), and its layer."""
    torch.manual_seed(0)
    layer = {"ours": PointwiseAttention, "plain": PlainAttention}[kind](D_MODEL, HEADS, 0.0)
    x = torch.randn(rows, length, D_MODEL, requires_grad=True)
    mask = torch.ones(rows, length, dtype=torch.bool)
    return lambda: layer(x, HistoryTokens(mask)).sum().backward(), layer


PROGRAM = """
import torch
from benchmarks.attention import make
torch.set_num_threads(1)
kind, rows, length = sys.argv[1], *map(int, sys.argv[2:])
make(kind, 1, 16)[0]()
step, _ = make(kind, rows, length)
begin(); step(); end()
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    (ours, layer), (plain, plain_layer) = (make(kind, arguments.rows, arguments.length) for kind in ("ours", "plain"))
    ours(), plain()
    for parameter, expected in zip(layer.parameters(), plain_layer.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-3, atol=1e-3)
    ratio, seconds, _ = in_turns(ours, plain, arguments.repetitions)
    peaks = {kind: peak_bytes(PROGRAM, kind, arguments.rows, arguments.length) for kind in ("ours", "plain")}
    workload = f"pointwise attention, {arguments.rows} × {arguments.length} tokens, forward and backward"
    memory = f"{peaks['ours'] / 1e6:.0f} MB and {peaks['plain'] / 1e6:.0f} MB"
    return report(
        __file__,
        [
            Claim(
                f"{workload}: memory",
                "a plain implementation",
                peaks["ours"] / peaks["plain"],
                0.5,
                at_least=False,
                note=memory,
            ),
            Claim(
                f"{workload}: time",
                "a plain implementation",
                ratio,
                1.0,
                at_least=False,
                note=f"{1000 * seconds:.0f} ms",
            ),
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
