"""How likely a user takes an item of the history again: a bias that the model learns.

Books are rarely bought twice, songs are played every day. A model has to learn this for each item and user anew, unless
it is told which items the history has (Anderson et al. 2014, «The dynamics of repeat consumption»; RepeatNet, Ren et
al. 2019, models repeats apart from other items).

Let q be the model without the bias, and p(item) ∝ q(item) · e^b for items of the history, ∝ q(item) for others. Then a
node of the trie is multiplied by 1 − r + r · e^b, if the history has the fraction r of the probability below it. The
heads know a node before its items, so r is the fraction of its items instead. For a node with one item this is exact.

Shapes: B rows, T target tokens.
"""

import torch
from torch import Tensor

from ugt_composer.catalogue.seen_nodes import SeenNodes
from ugt_composer.generation.node_biases import NodeBiases
from ugt_composer.model.float32_linear import Float32Linear
from ugt_composer.vocabulary import LEVELS


class RepeatBias(Float32Linear):
    """b, one number for each of `outputs`, as a linear function of the user's state; 0 at first."""

    def __init__(self, d_model: int, outputs: int):
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = d_model, outputs
        self.weight = torch.nn.Parameter(torch.zeros(outputs, d_model))
        self.bias = torch.nn.Parameter(torch.zeros(outputs))


def level_biases(strengths: Tensor, seen: SeenNodes) -> NodeBiases:
    """log(1 − r + r · e^b) of the nodes of the history; exactly 0 where b is 0.

    Args:
        strengths: b, float32 (B, T, 3).
        seen: of B histories.

    Returns:
        biases of B · T rows.
    """
    tokens = strengths.shape[1]
    nodes, values = [], []
    for level in range(LEVELS):
        fraction = seen.fractions[level].unsqueeze(1)
        strength = strengths[..., level, None]
        large = torch.logaddexp(torch.log1p(-fraction), fraction.log() + strength)
        small = torch.log1p(fraction * torch.expm1(strength.clamp(-1, 1)))  # without clamp, 0 · inf in the gradient
        value = torch.where(strength.abs() < 1, small, large)
        nodes.append(seen.nodes[level].repeat_interleave(tokens, dim=0))
        values.append(value.flatten(0, 1))
    return NodeBiases(tuple(nodes), tuple(values))
