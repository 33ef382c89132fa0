"""Log-probabilities of given ids under a softmax over linear logits, and divergences of two such softmaxes, without
storing the logits: they are recomputed in the backward pass, some rows at a time.

M rows, D width, V classes, K ids of a row. Rows are independent, so computing them piece by piece is exact.

Forward and backward are custom operators (`torch.library`). Products have the dtype that F.linear would give them, the
softmax is float32. Every sum has a fixed order, so that the same inputs give the same bits.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ugt_composer.kernels import is_exporting
from ugt_composer.model.autocast import product_dtype

# Of one piece of logits in float32, besides which there is at most one copy in the products' dtype. Each piece reads
# all of the weight, so small ones are slow.
PIECE_BYTES = {"cpu": 32 << 20, "cuda": 128 << 20}


class LevelSoftmax(NamedTuple):
    """A softmax over the logits F.linear(states, weight) + bias.

    Attributes:
        states: (M, D) in the dtype of products.
        weight: (V, D) in the dtype of products.
        bias: (V,) float32.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor


class LabelScores(NamedTuple):
    """
    Attributes:
        logps: (M, K) log-probabilities of the ids.
        is_best: (M, K) bool, whether no class has a higher logit than the id; of equal ones the first is the best.
        mean_logps: (M,) mean log-probability of all classes.
        divergences: (M,) of the softmax from another one, see `divergences`; None without one.
    """

    logps: Tensor
    is_best: Tensor
    mean_logps: Tensor
    divergences: Tensor | None = None


def label_scores(states: Tensor, weight: Tensor, bias: Tensor, ids: Tensor) -> LabelScores:
    """The scores of ids int64 (M, K) with logits F.linear(states, weight) + bias, float32.

    states (M, D), weight (V, D), bias (V,) float32; float64 inputs are computed in float64.
    """
    if is_exporting():
        logits = F.linear(states, weight) + bias
        log_probs = logits - logits.logsumexp(dim=1, keepdim=True)
        best = logits.argmax(dim=1, keepdim=True)
        return LabelScores(log_probs.gather(1, ids), best == ids, log_probs.mean(dim=1))
    dtype = product_dtype(states)
    logits, log_sums, means, best = _scores(states.to(dtype), weight.to(dtype), bias, ids)
    return LabelScores(logits - log_sums[:, None], best[:, None] == ids, means - log_sums)


@torch.library.custom_op("ugt::label_scores", mutates_args=())
def _scores(states: Tensor, weight: Tensor, bias: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each row: the logits of its ids (M, K), the logarithm of the sum of all exponentials (M,), the mean logit (M,)
    and the class of the highest one (M,) int64."""
    of_ids, log_sums, means, best = _empty_scores(states, bias, ids)
    with torch.autocast(states.device.type, enabled=False):
        torch.mv(states.to(bias.dtype), weight.mean(dim=0, dtype=bias.dtype), out=means).add_(bias.mean())
        for piece in _pieces(states, weight):
            logits = _logits(states[piece], weight, bias)
            torch.gather(logits, 1, ids[piece], out=of_ids[piece])
            highest, best[piece] = logits.max(dim=1)
            sums = logits.sub_(highest[:, None]).exp_().sum(dim=1)
            torch.add(highest, sums.log_(), out=log_sums[piece])
    return of_ids, log_sums, means, best


@torch.library.custom_op("ugt::label_scores_backward", mutates_args=())
def _gradients(
    of_ids: Optional[Tensor],  # noqa: UP045 - the form that custom_op understands
    of_log_sums: Optional[Tensor],  # noqa: UP045
    of_means: Optional[Tensor],  # noqa: UP045
    states: Tensor,
    weight: Tensor,
    bias: Tensor,
    ids: Tensor,
    log_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of states, weight and bias."""

    def of_logits(piece: slice) -> Tensor:
        logits = _logits(states[piece], weight, bias)
        if of_log_sums is None:
            gradient = logits.zero_()
        else:
            gradient = logits.sub_(log_sums[piece, None]).exp_().mul_(of_log_sums[piece, None])
        if of_ids is not None:
            _add_at(gradient, ids[piece], of_ids[piece])
        if of_means is not None:
            gradient.add_(of_means[piece, None] / len(bias))
        return gradient

    return _linear_gradients(of_logits, states, weight, bias)


def _linear_gradients(
    of_logits: Callable[[slice], Tensor], states: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of states, weight and bias, given a function that computes those of a piece's logits, (n, V)."""
    grad_states = torch.empty_like(states, memory_format=torch.contiguous_format)
    grad_weight = torch.zeros(weight.shape, dtype=bias.dtype, device=weight.device)
    grad_bias = torch.zeros_like(bias)
    with torch.autocast(states.device.type, enabled=False):
        for piece in _pieces(states, weight):
            gradient = of_logits(piece)
            grad_bias += gradient.sum(dim=0)
            gradient = gradient.to(states.dtype)
            torch.mm(gradient, weight, out=grad_states[piece])
            if gradient.dtype == grad_weight.dtype:
                grad_weight.addmm_(gradient.t(), states[piece])
            else:
                grad_weight += gradient.t() @ states[piece]
    return grad_states, grad_weight.to(weight.dtype), grad_bias


def _logits(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(n, D) → (n, V) in the bias's dtype."""
    products = torch.mm(states, weight.t())
    return products.add_(bias) if products.dtype == bias.dtype else products + bias


def _add_at(values: Tensor, ids: Tensor, summands: Tensor) -> None:
    """values (n, V)[row, ids[row, k]] += summands[row, k], column by column: a row may have an id more than once."""
    rows = torch.arange(len(values), device=values.device)
    for column in range(ids.shape[1]):
        values[rows, ids[:, column]] += summands[:, column]


def _empty_scores(states: Tensor, bias: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = states.shape[0]
    of_ids = bias.new_empty(rows, ids.shape[1])
    return of_ids, bias.new_empty(rows), bias.new_empty(rows), ids.new_empty(rows)


@_scores.register_fake
def _(states: Tensor, weight: Tensor, bias: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_scores(states, bias, ids)


@_gradients.register_fake
def _(of_ids: Any, of_log_sums: Any, of_means: Any, states: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> Any:
    return _empty_gradients(states, weight, bias)


def _empty_gradients(states: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_states, grad_weight = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (states, weight))
    return grad_states, grad_weight, torch.empty_like(bias)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_gradients(*gradients[:3], *ctx.saved_tensors), None


_scores.register_autograd(_backward, setup_context=_save)


def divergences(softmax: LevelSoftmax, other: LevelSoftmax) -> Tensor:
    """KL(other ‖ softmax) of each row, (M,) float32; exactly 0 for equal ones. `other` gets no gradient."""
    return _divergences(*softmax, *(tensor.detach() for tensor in other))[0]


@torch.library.custom_op("ugt::divergences", mutates_args=())
def _divergences(
    states: Tensor, weight: Tensor, bias: Tensor, other_states: Tensor, other_weight: Tensor, other_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row, (M,): the divergence, and the logarithms of the sums of both softmaxes."""
    values, log_sums, other_log_sums = (bias.new_empty(states.shape[0]) for _ in range(3))
    with torch.autocast(states.device.type, enabled=False):
        for piece in _pieces(states, weight):
            log_probs = _log_probs(states[piece], weight, bias, log_sums[piece])
            other_log_probs = _log_probs(other_states[piece], other_weight, other_bias, other_log_sums[piece])
            difference = torch.sub(other_log_probs, log_probs, out=log_probs)
            torch.sum(other_log_probs.exp_().mul_(difference), dim=1, out=values[piece])
    return values, log_sums, other_log_sums


def _log_probs(states: Tensor, weight: Tensor, bias: Tensor, log_sums: Tensor) -> Tensor:
    """(n, V); writes the logarithms of the sums (n,)."""
    logits = _logits(states, weight, bias)
    torch.logsumexp(logits, dim=1, out=log_sums)
    return logits.sub_(log_sums[:, None])


@torch.library.custom_op("ugt::divergences_backward", mutates_args=())
def _divergence_gradients(
    gradient: Tensor,
    states: Tensor,
    weight: Tensor,
    bias: Tensor,
    other_states: Tensor,
    other_weight: Tensor,
    other_bias: Tensor,
    log_sums: Tensor,
    other_log_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of states, weight and bias: that of the logits is the difference of the probabilities."""

    def of_logits(piece: slice) -> Tensor:
        probs = _logits(states[piece], weight, bias).sub_(log_sums[piece, None]).exp_()
        others = _logits(other_states[piece], other_weight, other_bias).sub_(other_log_sums[piece, None]).exp_()
        return probs.sub_(others).mul_(gradient[piece, None])

    return _linear_gradients(of_logits, states, weight, bias)


@_divergences.register_fake
def _(states: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return bias.new_empty(states.shape[0]), bias.new_empty(states.shape[0]), bias.new_empty(states.shape[0])


@_divergence_gradients.register_fake
def _(gradient: Tensor, states: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> Any:
    return _empty_gradients(states, weight, bias)


def _save_for_divergences(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])


def _divergences_backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_divergence_gradients(gradient, *ctx.saved_tensors), None, None, None


_divergences.register_autograd(_divergences_backward, setup_context=_save_for_divergences)


def _pieces(states: Tensor, weight: Tensor) -> Iterator[slice]:
    """Slices of rows whose logits stay within PIECE_BYTES; at least one row each."""
    bytes_per_row = weight.shape[0] * torch.float32.itemsize
    size = max(1, PIECE_BYTES.get(states.device.type, PIECE_BYTES["cuda"]) // bytes_per_row)
    return (slice(start, start + size) for start in range(0, len(states), size))


@register_flop_formula(torch.ops.ugt.label_scores)
def _operations(states_shape: torch.Size, weight_shape: torch.Size, *_: Any, **__: Any) -> int:
    """One product, of states (M, D) and weight (V, D), for PyTorch's FlopCounterMode."""
    return 2 * states_shape.numel() * weight_shape[0]


@register_flop_formula(torch.ops.ugt.label_scores_backward)
def _backward_operations(a: Any, b: Any, c: Any, states: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """Three products: the logits again, and the gradients of states and weight."""
    return 3 * 2 * states.numel() * weight[0]


@register_flop_formula(torch.ops.ugt.divergences)
def _divergence_operations(states_shape: torch.Size, weight_shape: torch.Size, *_: Any, **__: Any) -> int:
    """Two products, for PyTorch's FlopCounterMode."""
    return 2 * 2 * states_shape.numel() * weight_shape[0]


@register_flop_formula(torch.ops.ugt.divergences_backward)
def _divergence_backward_operations(
    gradient: Any, states_shape: torch.Size, weight_shape: torch.Size, *_: Any, **__: Any
) -> int:
    """Four products: both logits again, and the gradients of states and weight."""
    return 4 * 2 * states_shape.numel() * weight_shape[0]
