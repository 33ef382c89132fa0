import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ugt_composer.float32_product import _matmul_without_tf32, allow_tf32, float32_matmul, tf32_is_allowed
from ugt_composer.generation import item_scores
from ugt_composer.losses import catalogue_contrastive, contrastive


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_product_is_float32_under_autocast(dtype):
    a, b = torch.randn(5, 7, dtype=dtype), torch.randn(7, 3, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        product = float32_matmul(a, b)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product, a.float() @ b.float())


def test_the_op_has_a_products_gradients():
    a = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    b = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_matmul_without_tf32, (a, b))


def test_the_op_is_registered_completely():
    a, b = torch.randn(4, 6, requires_grad=True), torch.randn(6, 3)
    torch.library.opcheck(_matmul_without_tf32, (a, b))


@pytest.fixture
def tf32_during_products(monkeypatch):
    """A list that gets a value for each product: whether TF32 was allowed while it ran. TF32 is off afterwards."""
    values, matmul = [], torch.Tensor.__matmul__

    def watched(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        values.append(tf32_is_allowed())
        return matmul(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    yield values
    allow_tf32(False)


def test_the_op_turns_tf32_off_and_on_again(tf32_during_products):
    allow_tf32(True)
    _matmul_without_tf32(torch.zeros(2, 2), torch.zeros(2, 2))
    assert torch.backends.cuda.matmul.allow_tf32
    assert tf32_during_products == [False]


@pytest.mark.skipif(torch.__version__ < "2.9", reason="PyTorch before 2.9 has one name for the setting")
def test_the_op_turns_tf32_off_where_it_was_allowed_by_its_newer_name(tf32_during_products):
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
        torch.backends.cuda.matmul.allow_tf32  # noqa: B018
    _matmul_without_tf32(torch.zeros(2, 2), torch.zeros(2, 2))
    assert tf32_during_products == [False]
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.allow_tf32


class Products(TorchDispatchMode):
    """Counts the matrix products that are computed."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "mm" in func.overloadpacket.__name__
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("module", [item_scores, catalogue_contrastive, contrastive])
def test_tf32_reaches_no_similarity(monkeypatch, module, similarity):
    calls = []

    def counted(a, b):
        calls.append(a)
        return float32_matmul(a, b)

    monkeypatch.setattr(module, "float32_matmul", counted)
    users, items, rows = torch.randn(4, 8), torch.randn(4, 8), torch.arange(4)
    with Products() as products:
        if module is item_scores:
            item_scores.ItemScores(users, items, 0.1, 1.0, similarity)(slice(0, 4))
        elif module is catalogue_contrastive:
            loss = catalogue_contrastive.CatalogueContrastiveLoss(0.1, similarity)
            loss(users, items, items, rows, rows >= 0)
        else:
            contrastive.ContrastiveLoss(0.1, 9, 8, 0, similarity)(users, items, rows[:, None].expand(-1, 3), rows)
    assert len(calls) == products.count > 0
