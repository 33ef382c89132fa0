from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from ugt_composer.model import label_scores as module
from ugt_composer.model.label_scores import LabelScores, LevelSoftmax, divergences, label_scores

M, D, V, K = 7, 5, 11, 3


@pytest.fixture(params=[1 << 20, 3 * V * 4, 1], ids=["at once", "three rows", "one row"])
def pieces(request, monkeypatch):
    monkeypatch.setitem(module.PIECE_BYTES, "cpu", request.param)


def make(dtype=torch.float32, rows=M, width=D, classes=V, per_row=K, seed=0) -> tuple[Any, torch.Tensor]:
    """states, weight, bias; and ids, of which a row may have one more than once."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, width), (classes, width), (classes,))
    inputs = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    return inputs, torch.randint(classes, (rows, per_row), generator=generator)


def dense(states, weight, bias, ids):
    """The same by PyTorch's log_softmax of all logits."""
    logits = F.linear(states, weight).to(bias.dtype) + bias
    log_probs = logits.log_softmax(dim=1)
    return LabelScores(log_probs.gather(1, ids), logits.argmax(1)[:, None] == ids, log_probs.mean(dim=1))


def twin(inputs, dtype=None) -> Any:
    return [(x.detach() if dtype is None else x.detach().to(dtype)).clone().requires_grad_() for x in inputs]


def backward(scores, seed=1):
    """Gradients that differ from row to row, and are 0 in the first."""
    generator = torch.Generator().manual_seed(seed)
    total: Any = 0.0
    for values in (scores.logps, scores.mean_logps):
        factors = torch.randn(values.shape, generator=generator).to(values.dtype)
        factors[:1] = 0.0
        total = total + (values * factors).sum()
    total.backward()


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("per_row", [1, K])
def test_values_and_gradients_are_those_of_all_logits(per_row):
    ours, ids = make(per_row=per_row)
    theirs = twin(ours)
    found, expected = label_scores(*ours, ids=ids), dense(*theirs, ids=ids)
    assert torch.equal(found.is_best, expected.is_best)
    torch.testing.assert_close((found.logps, found.mean_logps), (expected.logps, expected.mean_logps))
    backward(found)
    backward(expected)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("used", [("logps",), ("mean_logps",), ("logps", "mean_logps")])
def test_gradients_are_those_of_finite_differences(used):
    inputs, ids = make(torch.float64)
    assert torch.autograd.gradcheck(lambda *x: [getattr(label_scores(*x, ids=ids), name) for name in used], inputs)


@settings(max_examples=40)
@given(
    rows=st.integers(0, 9),
    classes=st.integers(1, 40),
    width=st.integers(1, 6),
    piece=st.integers(1, 400),
    smoothing=st.sampled_from([0.0, 0.1]),
    ignored=st.floats(0, 1),
)
def test_cross_entropies_are_those_of_pytorch_for_any_size(rows, classes, width, piece, smoothing, ignored):
    inputs, ids = make(rows=rows, classes=classes, width=width, per_row=1)
    theirs, labels = twin(inputs), ids[:, 0].clone()
    labels[torch.rand(rows, generator=torch.Generator().manual_seed(2)) < ignored] = -100
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.PIECE_BYTES, "cpu", piece)
        scores = label_scores(*inputs, ids=labels[:, None].clamp(min=0))
        mixed = (1 - smoothing) * scores.logps[:, 0] + smoothing * scores.mean_logps
        loss = -torch.where(labels >= 0, mixed, 0.0).sum()
        loss.backward()
    expected = F.cross_entropy(F.linear(*theirs), labels, reduction="sum", label_smoothing=smoothing)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for mine, other in zip(inputs, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_products_and_no_sums(dtype):
    [states, weight, bias], ids = make(rows=64, width=48, classes=96)
    inputs = [states.detach().to(dtype).requires_grad_(), weight.detach().to(dtype).requires_grad_(), bias]
    theirs, exact = twin(inputs), twin(inputs, torch.float64)
    found, plain, wanted = label_scores(*inputs, ids=ids), dense(*theirs, ids=ids), dense(*exact, ids=ids)
    assert found.logps.dtype == torch.float32
    torch.testing.assert_close(found.logps, plain.logps)  # of the same rounded products
    assert torch.equal(found.is_best, plain.is_best)
    for scores in (found, plain, wanted):
        backward(scores)
    for mine, other, double in zip(inputs, theirs, exact, strict=True):
        assert mine.grad.dtype == mine.dtype
        errors = [(x.grad - double.grad).norm() / double.grad.norm() for x in (mine, other)]
        assert errors[0] < 1.1 * errors[1] + 1e-4


def test_under_autocast_products_have_its_dtype():
    [states, weight, bias], ids = make(rows=64, width=48, classes=96)
    theirs = twin([states, weight, bias])
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = label_scores(states, weight, bias, ids), dense(*theirs, ids=ids)
    torch.testing.assert_close(found.logps, expected.logps)
    backward(found)
    backward(expected)
    for mine, other in zip((states, weight, bias), theirs, strict=True):
        assert mine.grad.dtype == torch.float32
        assert (mine.grad - other.grad).norm() < 0.01 * other.grad.norm()


def test_of_equal_logits_the_first_is_the_best():
    ids = torch.arange(4)[:, None]
    scores = label_scores(torch.ones(4, 2), torch.ones(4, 2), torch.tensor([0.0, 1.0, 1.0, 0.0]), ids)
    assert scores.is_best[:, 0].tolist() == [False, True, False, False]


def test_a_row_scores_the_same_in_any_mode_of_autograd():
    inputs, ids = make(rows=40, width=32, classes=200)
    with torch.no_grad():
        frozen = label_scores(*inputs, ids=ids)
    assert torch.equal(label_scores(*inputs, ids=ids).logps, frozen.logps)


@pytest.mark.usefixtures("pieces")
def test_the_same_inputs_give_the_same_bits():
    gradients = []
    for _ in range(2):
        inputs, ids = make(rows=50, classes=30)
        backward(label_scores(*inputs, ids=ids[:, :1].expand(-1, K)))
        gradients.append([x.grad for x in inputs])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_neither_logits_nor_probabilities_are_kept_for_the_backward_pass():
    inputs, ids = make()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda x: x):
        label_scores(*inputs, ids=ids)
    assert max(shape.numel() for shape in kept) == V * D
    assert (M, V) not in kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_all_rows_never_exist_together(dtype, monkeypatch):
    rows, classes, width = 1024, 512, 4
    monkeypatch.setitem(module.PIECE_BYTES, "cpu", 16 * classes * 4)
    inputs, ids = make(rows=rows, classes=classes, width=width, per_row=1)

    def run(scores):
        states, weight, bias = inputs
        scores(states.to(dtype), weight.to(dtype), bias, ids).logps.sum().backward()

    assert largest_allocation(lambda: run(label_scores)) < rows * classes
    assert largest_allocation(lambda: run(dense)) >= rows * classes * 4


def largest_allocation(run):
    """Bytes of the largest tensor that is allocated during the call."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.parametrize("rows", [0, M])
def test_the_operators_are_what_they_promise_to_the_compiler(rows):
    inputs, ids = make(rows=rows)
    torch.library.opcheck(module._scores, (*inputs, ids))
    states, weight, bias = (x.detach() for x in inputs)
    log_sums = torch.randn(rows)
    torch.library.opcheck(module._gradients, (torch.randn(rows, K), None, None, states, weight, bias, ids, log_sums))


def test_operations_are_counted():
    inputs, ids = make()
    with FlopCounterMode(display=False) as counter:
        backward(label_scores(*inputs, ids=ids))
    assert counter.get_total_flops() == 4 * 2 * M * D * V


def test_an_exported_program_needs_no_operator_of_this_package():
    class Scores(torch.nn.Module):
        def forward(self, states, weight, bias, ids):
            return label_scores(states, weight, bias, ids)

    inputs, ids = make()
    inputs = [x.detach() for x in inputs]
    program = torch.export.export(Scores(), (*inputs, ids), strict=False)
    assert not any("ugt" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(tuple(program.module()(*inputs, ids)), tuple(label_scores(*inputs, ids=ids)))


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_divergences_and_their_gradients_are_those_of_whole_logits(rows, dtype, monkeypatch):
    monkeypatch.setitem(module.PIECE_BYTES, "cpu", 3 * 11 * 4)  # three rows at a time
    generator = torch.Generator().manual_seed(rows)
    bias_dtype = torch.promote_types(dtype, torch.float32)
    softmaxes = [
        LevelSoftmax(
            torch.randn(rows, 5, generator=generator).to(dtype).requires_grad_(),
            torch.randn(11, 5, generator=generator).to(dtype).requires_grad_(),
            torch.randn(11, generator=generator).to(bias_dtype).requires_grad_(),
        )
        for _ in range(2)
    ]
    weights = torch.randn(rows, generator=generator).double()
    found = divergences(*softmaxes)
    gradients = torch.autograd.grad((found.double() * weights).sum(), softmaxes[0])
    exact = [LevelSoftmax(*(one.detach().double().requires_grad_() for one in softmax)) for softmax in softmaxes]
    log_probs = [(s.states @ s.weight.T + s.bias).log_softmax(1) for s in exact]
    wanted = (log_probs[1].exp() * (log_probs[1] - log_probs[0])).sum(1)
    wanted_gradients = torch.autograd.grad((wanted * weights).sum(), exact[0])
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for mine, other in zip((found, *gradients), (wanted, *wanted_gradients), strict=True):
        assert (mine.double() - other).norm() <= bound * other.norm() + 1e-12
    assert not divergences(softmaxes[0], softmaxes[0]).any()
