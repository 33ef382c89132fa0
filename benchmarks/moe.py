"""Claim: the mixture of experts is several times faster than a loop over experts, and close to one dense feed-forward.

The loop runs each expert over all tokens and masks those that are not routed to it. The dense feed-forward has the same
number of active operations: top_k times the width of an expert. All run forward and backward on one core, with 16
experts, top 4.

    python benchmarks/moe.py [--tokens 1024] [--repetitions 7]
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import Claim, in_turns, report
from ugt_composer.model.encoder import FeedForward
from ugt_composer.model.moe import MoEFeedForward

D_MODEL, D_FF, EXPERTS, TOP_K = 512, 2048, 16, 4
CAPACITY_FACTOR = 1.25  # the default


def looped(layer: MoEFeedForward, x: Tensor) -> Tensor:
    """The same layer without capacity, computed one expert at a time over all tokens."""
    tokens = x.flatten(0, 1)
    gates, experts = layer.router(tokens).softmax(-1).topk(TOP_K, dim=-1)
    gates = gates / gates.sum(-1, keepdim=True)
    mixed = torch.zeros_like(tokens)
    for expert in range(EXPERTS):
        hidden = F.silu(tokens @ layer.up[expert] + layer.up_bias[expert])
        outputs = hidden @ layer.down[expert] + layer.down_bias[expert]
        mixed = mixed + outputs * (gates * (experts == expert)).sum(-1, keepdim=True)
    return mixed.view_as(x)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = {
        name: MoEFeedForward(D_MODEL, D_FF, EXPERTS, TOP_K, factor, dropout=0.0)
        for name, factor in (("dropless", None), (f"capacity {CAPACITY_FACTOR}", CAPACITY_FACTOR))
    }
    for layer in layers.values():
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    dense = FeedForward(D_MODEL, TOP_K * D_FF, dropout=0.0)
    x = torch.randn(8, arguments.tokens // 8, D_MODEL, requires_grad=True)
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    dropless = layers["dropless"]
    torch.testing.assert_close(dropless(x, mask)[0], looped(dropless, x), rtol=1e-4, atol=1e-5)
    wider = torch.randn(8, int(CAPACITY_FACTOR * arguments.tokens) // 8, D_MODEL, requires_grad=True)
    wider_ratio, _, _ = in_turns(
        lambda: dense(wider).sum().backward(), lambda: dense(x).sum().backward(), arguments.repetitions
    )
    limits = {
        f"capacity {CAPACITY_FACTOR}": f"with a capacity the experts multiply {CAPACITY_FACTOR} × the rows of a dense "
        f"layer, filled or not; with as many rows the dense layer takes {wider_ratio:.2f} × its time."
    }
    claims = []
    what = f"{EXPERTS} experts, top {TOP_K}, {arguments.tokens} tokens, forward and backward"
    for name, layer in layers.items():
        ours = lambda layer=layer: layer(x, mask)[0].sum().backward()  # noqa: E731
        ratio, our_seconds, rival_seconds = in_turns(
            ours, lambda: looped(dropless, x).sum().backward(), arguments.repetitions
        )
        note = f"{1000 * our_seconds:.0f} ms and {1000 * rival_seconds:.0f} ms"
        claims.append(Claim(f"{what}, {name}: speed", "a loop over experts", 1 / ratio, 3, at_least=True, note=note))
        ratio, our_seconds, rival_seconds = in_turns(ours, lambda: dense(x).sum().backward(), arguments.repetitions)
        note = f"{1000 * our_seconds:.0f} ms and {1000 * rival_seconds:.0f} ms"
        claims.append(Claim(f"{what}, {name}: time", "a dense layer", ratio, 1.3, False, note, limits.get(name, "")))
    return report(__file__, claims)


if __name__ == "__main__":
    sys.exit(main())
