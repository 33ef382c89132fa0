import pytest
import torch

from ugt_composer.model import pointwise_product as module
from ugt_composer.model.pointwise_product import ACTIVATIONS, pointwise_product

N, S, D = 6, 5, 3


@pytest.fixture(params=[1 << 20, 2 * S * S * 4, 1], ids=["at once", "two heads", "one head"])
def pieces(request, monkeypatch):
    monkeypatch.setitem(module.PIECE_BYTES, "cpu", request.param)


def make(dtype=torch.float32, heads=N):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(heads, S, D, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_values_and_gradients_are_those_of_the_plain_form(activation):
    ours, theirs = make(), make()
    found = pointwise_product(*ours, activation=activation)
    expected = ACTIVATIONS[activation](theirs[0] @ theirs[1].transpose(1, 2)) @ theirs[2]
    torch.testing.assert_close(found, expected)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_gradients_are_those_of_finite_differences(activation):
    assert torch.autograd.gradcheck(lambda *x: pointwise_product(*x, activation=activation), make(torch.float64))


def test_a_missing_head_does_no_work():
    assert pointwise_product(*make(heads=0), activation="silu").shape == (0, S, D)


@pytest.mark.parametrize("rows", [0, 2])
def test_heads_of_several_rows_are_heads(rows):
    q, k, v = make(heads=rows * 3)
    of_rows = [x.unflatten(0, (rows, 3)) for x in (q, k, v)]
    torch.testing.assert_close(
        pointwise_product(*of_rows, activation="silu").flatten(0, 1), pointwise_product(q, k, v, "silu")
    )


def test_the_weights_are_not_kept_for_the_backward_pass():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda x: x):
        pointwise_product(*make(), activation="silu")
    assert set(kept) == {(N, S, D)}


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_the_operators_are_what_they_promise_to_the_compiler(activation):
    torch.library.opcheck(module._product, (*make(), activation))
    q, k, v = (tensor.detach() for tensor in make())
    torch.library.opcheck(module._gradients, (torch.randn(N, S, D), q, k, v, activation))


@pytest.mark.parametrize("compiled", [False, True])
def test_heads_in_any_memory_layout_give_the_same(compiled):
    forward = pointwise_product
    if compiled:
        forward = torch.compile(lambda q, k, v: pointwise_product(q, k, v, "silu"), backend="aot_eager", fullgraph=True)
    plain, turned = make(), [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in make()]
    pointwise_product(*plain, activation="silu").square().sum().backward()
    (forward(*turned) if compiled else forward(*turned, activation="silu")).square().sum().backward()
    for mine, other in zip(turned, plain, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_under_autocast_inputs_of_several_dtypes_are_multiplied_in_its_own():
    q, k, v = (tensor.detach().bfloat16() for tensor in make())
    mixed = [q.requires_grad_(), k.float().requires_grad_(), v.float().requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16):
        found = pointwise_product(*mixed, activation="silu")
        plain = ACTIVATIONS["silu"](mixed[0] @ mixed[1].transpose(1, 2)) @ mixed[2]
    assert found.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(found, plain)
    found.float().sum().backward()
    assert [tensor.grad.dtype for tensor in mixed] == [torch.bfloat16, torch.float32, torch.float32]
    exact = [tensor.detach().double().requires_grad_() for tensor in mixed]
    (ACTIVATIONS["silu"](exact[0] @ exact[1].transpose(1, 2)) @ exact[2]).sum().backward()
    for mine, other in zip(mixed, exact, strict=True):
        assert (mine.grad - other.grad).norm() < 0.02 * other.grad.norm()


def largest_allocation(run):
    """Bytes of the largest tensor that is allocated during the call."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.parametrize("compiled", [False, True])
def test_the_weights_of_all_heads_never_exist_together(compiled, monkeypatch):
    heads, length = 8, 128
    of_a_head = length * length * 4
    monkeypatch.setitem(module.PIECE_BYTES, "cpu", 2 * of_a_head)
    inputs = [torch.randn(heads, length, D, requires_grad=True) for _ in range(3)]
    for forward, expected in (
        (lambda q, k, v: pointwise_product(q, k, v, "silu"), 2 * of_a_head),
        (lambda q, k, v: torch.relu(q @ k.transpose(1, 2)) @ v, heads * of_a_head),
    ):
        run = torch.compile(forward, backend="aot_eager", fullgraph=True) if compiled else forward
        run(*inputs).sum().backward()  # compiles
        assert largest_allocation(lambda run=run: run(*inputs).sum().backward()) == expected


def test_an_exported_program_needs_no_operator_of_this_package():
    class Product(torch.nn.Module):
        def forward(self, q, k, v):
            return pointwise_product(q, k, v, "silu")

    # As in a layer: split in heads, of any number of rows and tokens.
    inputs = tuple(torch.randn(2, 5, 3, D).transpose(1, 2) for _ in range(3))
    sizes = {0: torch.export.Dim("rows", max=99), 2: torch.export.Dim("tokens", max=99)}
    program = torch.export.export(Product(), inputs, dynamic_shapes=[sizes] * 3, strict=False)
    assert not any("ugt" in str(node.target) for node in program.graph.nodes)
    for rows, tokens in ((2, 5), (1, 1), (7, 99)):
        inputs = tuple(torch.randn(rows, tokens, 3, D).transpose(1, 2) for _ in range(3))
        torch.testing.assert_close(program.module()(*inputs), pointwise_product(*inputs, activation="silu"))
