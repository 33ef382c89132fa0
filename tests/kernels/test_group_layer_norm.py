"""The kernels of group layer norm compared with a plain form in float64.

N rows of width D, K types. Without a GPU they run under Triton's interpreter, which tests/conftest.py switches on.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from ugt_composer import kernels
from ugt_composer.kernels import group_layer_norm as module
from ugt_composer.kernels.group_layer_norm import group_layer_norm, supports, tile_of
from ugt_composer.model.activation_checkpointing import run_layer
from ugt_composer.model.norm import GroupLayerNorm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-3
ACTIVATIONS = {"silu": F.silu, "relu": F.relu}
NAMES = ("y", "x", "weight", "bias", "gate")
SIZES = [(1, 8, 4), (300, 8, 2), (37, 96, 4), (130, 96, 1), (45, 512, 4), (19, 640, 3), (9, 640, 1), (0, 96, 4)]


def make(n, d, k, gate=False, dtype=torch.float32, weights=torch.float32, gates=None):
    """x, weight, bias and gate with gradients; the gate is a slice of a tensor four times as wide."""
    numbers = torch.Generator().manual_seed(n + d + k)

    def tensor(*shape, scale=1.0, shift=0.0, dtype=dtype):
        values = scale * torch.randn(shape, generator=numbers) + shift
        return values.to(DEVICE, dtype)

    wide = tensor(n, 4 * d, scale=2.0, dtype=gates or dtype)
    return SimpleNamespace(
        x=tensor(n, d, scale=2.0, shift=1.0).requires_grad_(),
        weight=tensor(k, d, dtype=weights).requires_grad_(),
        bias=tensor(k, d, dtype=weights).requires_grad_(),
        gate=wide[:, 3 * d :].requires_grad_() if gate else None,
        types=torch.randint(k, (n,), generator=numbers).to(DEVICE),
        grad=tensor(n, d),
    )


def kernel(data, dtype, activation):
    return group_layer_norm(data.x, data.types, data.weight, data.bias, EPS, dtype, data.gate, activation)


def twin(data, dtype, activation):
    """y in float64, of (N, D)."""
    x, weight, bias = (tensor.double() for tensor in (data.x, data.weight, data.bias))
    centered = x - x.mean(-1, keepdim=True)
    normed = centered / (centered.square().mean(-1, keepdim=True) + EPS).sqrt()
    types = torch.zeros(x.shape[:-1], dtype=torch.long, device=DEVICE) if data.types is None else data.types
    y = normed * weight.view(-1, x.shape[-1])[types] + bias.view(-1, x.shape[-1])[types]
    return y if data.gate is None else y * ACTIVATIONS[activation](data.gate.double())


def results(form, data, dtype=torch.float32, activation="silu"):
    """y and the gradients of x, weight, bias and gate, by name."""
    y = form(data, dtype, activation)
    inputs = [tensor for name in NAMES[1:] if (tensor := vars(data)[name]) is not None]
    return dict(zip(NAMES, (y.detach(), *torch.autograd.grad(y, inputs, data.grad.to(y.dtype))), strict=False))


def assert_equal_to_twin(data, dtype=torch.float32, activation="silu", rtol=1e-5, atol=1e-5):
    found, exact = results(kernel, data, dtype, activation), results(twin, data, dtype, activation)
    assert found.keys() == exact.keys()
    for name, value in found.items():
        assert value.dtype == (dtype if name == "y" else vars(data)[name].dtype)
        # A sum over rows is as exact as the largest of what is added.
        largest = max(1.0, exact[name].abs().max().item()) if exact[name].numel() else 1.0
        torch.testing.assert_close(value.double(), exact[name].double(), rtol=rtol, atol=atol * largest, msg=name)


@pytest.mark.parametrize("gate", [None, "silu", "relu"])
@pytest.mark.parametrize(("n", "d", "k"), SIZES)
def test_values_and_gradients_equal_the_plain_form(n, d, k, gate):
    assert_equal_to_twin(make(n, d, k, gate is not None), activation=gate or "silu")


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize(("n", "d"), [(1, 96), (33, 512), (0, 8)])
@pytest.mark.parametrize("flat", [False, True])
def test_without_types_it_is_a_layer_norm(n, d, gate, flat):
    data = make(n, d, 1, gate)
    data.types = None
    if flat:
        data.weight, data.bias = (tensor.detach()[0].requires_grad_() for tensor in (data.weight, data.bias))
    assert_equal_to_twin(data)
    if flat and not gate:
        y = kernel(data, torch.float32, "silu")
        torch.testing.assert_close(y, F.layer_norm(data.x, (d,), data.weight, data.bias, EPS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("halves", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [torch.float32, None])
@pytest.mark.parametrize("out", [torch.float32, None])
def test_halves_are_rounded_once_at_the_end(halves, weights, out):
    data = make(45, 96, 4, gate=True, dtype=halves, weights=weights or halves)
    eps = torch.finfo(halves).eps
    assert_equal_to_twin(data, out or halves, rtol=eps, atol=eps if weights is None else eps / 8)


def test_the_gate_and_the_result_have_their_own_dtypes():
    data = make(45, 96, 1, gate=True, gates=torch.bfloat16)
    assert_equal_to_twin(data, torch.float16, rtol=1e-2, atol=2e-3)
    data = make(45, 96, 2, gate=True, dtype=torch.bfloat16, weights=torch.float32, gates=torch.float32)
    found, exact = results(kernel, data)["gate"], results(twin, data)["gate"]
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_only_the_sum_over_all_rows_is_rounded(weights, monkeypatch):
    monkeypatch.setattr(module, "_programs", lambda device: 3)
    rows = module.FEWEST_TILES * tile_of(8).rows
    data = make(3 * rows, 8, 1, dtype=torch.bfloat16, weights=weights)
    data.grad = (torch.arange(len(data.x), device=DEVICE) % rows < 257).bfloat16()[:, None].expand(-1, 8)
    expected = torch.full((1, 8), 3.0 * 257, device=DEVICE).to(weights)  # 257 itself is not a bfloat16
    assert torch.equal(results(kernel, data, torch.bfloat16)["bias"], expected)


def test_a_type_without_rows_gets_no_gradient():
    data = make(45, 96, 4, gate=True)
    data.types %= 3
    found = results(kernel, data)
    assert not found["weight"][3].any()
    assert not found["bias"][3].any()
    assert_equal_to_twin(data)


def test_a_type_that_does_not_exist_makes_its_row_nan():
    data = make(45, 96, 3)
    data.types[4], data.types[7] = 3, -1
    y = kernel(data, torch.float32, "silu")
    assert y.isnan().all(-1).nonzero().flatten().tolist() == [4, 7]
    assert y.isnan().sum() == 2 * 96


def test_any_strides_are_read_right():
    data = make(30, 96, 4, gate=True)
    data.x = data.x.detach().T.contiguous().T.requires_grad_()
    data.gate = data.gate.detach().T.contiguous().T.requires_grad_()
    data.types = data.types.repeat_interleave(2)[::2]
    data.grad = data.grad[:1].expand(30, 96)
    assert_equal_to_twin(data)


def test_dimensions_before_the_last_are_kept():
    data = make(30, 8, 4, gate=True)
    flat = results(kernel, data)
    wide = torch.randn(5, 6, 32, device=DEVICE)
    wide[..., 24:] = data.gate.detach().view(5, 6, 8)
    data.x, data.gate = data.x.detach().view(5, 6, 8).requires_grad_(), wide[..., 24:].requires_grad_()
    data.types, data.grad = data.types.view(5, 6), data.grad.view(5, 6, 8)
    for name, value in results(kernel, data).items():
        torch.testing.assert_close(value.flatten(0, -2), flat[name].flatten(0, -2), rtol=0, atol=0)


@pytest.mark.parametrize("tiles", [1, 4, 5, 17, 33])
def test_the_sums_contain_every_row_once(tiles, monkeypatch):
    monkeypatch.setattr(module, "_programs", lambda device: 4)
    rows = tiles * tile_of(640, 2).rows
    assert_equal_to_twin(make(rows, 640, 2))


def test_the_same_inputs_give_the_same_bits():
    data = make(300, 96, 4, gate=True)
    first, second = results(kernel, data), results(kernel, data)
    for name, value in first.items():
        assert torch.equal(value, second[name])


def test_the_backward_pass_keeps_inputs_and_two_numbers_per_row():
    data, kept = make(45, 96, 4, gate=True), []

    def keep(tensor):
        kept.append((tensor.untyped_storage().data_ptr(), tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kernel(data, torch.float32, "silu")
    inputs = {tensor.untyped_storage().data_ptr() for tensor in vars(data).values()}
    assert [tuple(shape) for pointer, shape in kept if pointer not in inputs] == [(45,), (45,)]


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("typed", [False, True])
def test_the_operators_pass_the_checks_of_pytorch(gate, typed):
    data = make(11, 8, 3 if typed else 1, gate)
    arguments = (data.x, data.types if typed else None, data.weight, data.bias, data.gate)
    torch.library.opcheck(module._normed, (*arguments, EPS, torch.float32, "silu"))
    arguments = tuple(None if one is None else one.detach() for one in arguments)
    _, mean, rstd = module._normed(*arguments, EPS, torch.float32, "silu")
    torch.library.opcheck(module._gradients, (data.grad, *arguments, mean, rstd, "silu"))


def test_what_is_not_supported():
    x, weight = torch.zeros(3, 96), torch.zeros(4, 96)
    assert supports(x, weight)
    assert supports(x.bfloat16(), weight[0])
    assert not supports(x.double(), weight)
    assert not supports(x, weight.double())
    assert not supports(x, torch.zeros(9, 96))
    assert not supports(torch.zeros(3, 4097), torch.zeros(1, 4097))


@pytest.mark.parametrize("width", [1, 8, 96, 512, 640, 4096])
@pytest.mark.parametrize("types", [1, 4, 8])
def test_tiles_are_powers_of_two_that_a_gpu_can_launch(width, types):
    tile = tile_of(width, types)
    assert tile.rows & (tile.rows - 1) == tile.warps & (tile.warps - 1) == 0
    assert 4 <= tile.warps <= 16


@pytest.mark.parametrize("width", [1, 3, 1025, 4096])
def test_uncommon_widths(width):
    assert_equal_to_twin(make(6, width, 8, gate=True))


@pytest.fixture
def on_kernels(monkeypatch):
    """The layer uses the kernels, on a CPU too. Yields the list of their calls."""
    calls = []
    original = module._norm_outputs.__class__.__getitem__
    monkeypatch.setattr(kernels, "are_usable", lambda x: True)
    monkeypatch.setattr(
        module._norm_outputs.__class__,
        "__getitem__",
        lambda self, grid: calls.append(self.fn.__name__) or original(self, grid),
    )
    return calls


def layer(dtype=torch.float32):
    torch.manual_seed(0)
    norm = GroupLayerNorm(32, 4).to(DEVICE, dtype)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(3, 7, 32, device=DEVICE, dtype=dtype, requires_grad=True)
    return norm, x, torch.randint(0, 3, (3, 7), device=DEVICE)


def layer_results(forward, norm, x, types):
    y = forward(x, types)
    return y.detach(), *torch.autograd.grad(y.square().sum(), (x, norm.weight, norm.bias))


@pytest.mark.parametrize(
    ("inputs", "weights", "autocast"),
    [
        (torch.float32, torch.float32, False),
        (torch.bfloat16, torch.bfloat16, False),
        (torch.bfloat16, torch.float32, False),
        (torch.bfloat16, torch.bfloat16, True),
    ],
)
def test_the_layer_gives_the_same_with_and_without_kernels(inputs, weights, autocast, monkeypatch, request):
    norm, x, types = layer()
    norm, x = norm.to(weights), x.detach().to(inputs).requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        monkeypatch.setattr(kernels, "are_usable", lambda x: False)
        plain = layer_results(norm, norm, x, types)
        calls = request.getfixturevalue("on_kernels")
        found = layer_results(norm, norm, x, types)
    assert calls == ["_norm_outputs", "_norm_gradients"]
    for mine, other in zip(found, plain, strict=True):
        eps = torch.finfo(mine.dtype).eps
        torch.testing.assert_close(mine, other, rtol=4 * eps, atol=64 * eps)  # the dtypes too


def test_float64_takes_the_plain_form(on_kernels):
    norm, x, types = layer(torch.float64)
    layer_results(norm, norm, x, types)
    assert on_kernels == []


def test_compiled_it_gives_the_same(on_kernels):
    norm, x, types = layer()
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (3, 2):
        part = x.detach()[:rows].requires_grad_(), types[:rows]
        plain, found = layer_results(norm, norm, *part), layer_results(compiled, norm, *part)
        assert all(map(torch.equal, found, plain))
    assert on_kernels == ["_norm_outputs", "_norm_gradients"] * 4


@pytest.mark.slow
def test_an_inductor_graph_with_a_gate_gives_the_same():
    data = make(37, 32, 1, gate=True)
    data.types = None

    def around(data, dtype, activation):
        return 2 * group_layer_norm(data.x * 2, None, data.weight[0], data.bias[0], EPS, dtype, data.gate, activation)

    plain, found = results(around, data), results(torch.compile(around, fullgraph=True), data)
    for name, value in found.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-5)


def test_checkpointed_it_gives_the_same(on_kernels):
    norm, x, types = layer()
    checkpointed = layer_results(lambda x, types: run_layer(norm, True, x, types), norm, x, types)
    assert all(map(torch.equal, checkpointed, layer_results(norm, norm, x, types)))
