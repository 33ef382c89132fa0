import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.generation.catalogue_vectors import CatalogueVectors
from ugt_composer.generation.item_scores import SeenItems
from ugt_composer.losses import catalogue_contrastive
from ugt_composer.losses.catalogue_contrastive import CatalogueContrastiveLoss
from ugt_composer.losses.normalization import ROWS, TARGETS
from ugt_composer.model.float32_linear import Float32Linear

TEMPERATURE = 0.2
B, N, D = 7, 11, 4


@pytest.fixture(params=[1 << 28, 4 * B * 3, 1], ids=["at once", "in threes", "one by one"])
def pieces(request, monkeypatch):
    monkeypatch.setattr(catalogue_contrastive, "LOGITS_BYTES", request.param)


def make(seed=0, unknown=()):
    """User vectors, vectors of their items and of all items, the items' row numbers, validity."""
    generator = torch.Generator().manual_seed(seed)
    users, items = torch.randn(B, D, generator=generator), torch.randn(N, D, generator=generator)
    rows = torch.randint(N, (B,), generator=generator)
    own = items[rows]
    for row in unknown:
        rows[row], own[row] = -1, torch.randn(D, generator=generator)
    return users.requires_grad_(), own.requires_grad_(), items.requires_grad_(), rows, torch.ones(B, dtype=torch.bool)


def brute_force(users, own, items, rows, valid, similarity, temperature=TEMPERATURE):
    """Loops over users and items; the positive item's own vector replaces that of the catalogue."""
    similar = torch.dot if similarity == "dot" else partial(F.cosine_similarity, dim=0)
    losses, right = [], []
    for b in range(B):
        if not valid[b]:
            continue
        logit = similar(users[b], own[b]) / temperature
        others = [similar(users[b], items[n]) / temperature for n in range(N) if n != rows[b]]
        losses.append(torch.stack([logit, *others]).logsumexp(0) - logit)
        right.append(all(logit > other for other in others))
    return torch.stack(losses).mean(), sum(right) / len(right)


@pytest.mark.parametrize("unknown", [(), (2,), tuple(range(B))])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_loss_accuracy_and_gradients_are_those_of_loops_over_all_items(pieces, unknown, similarity):
    ours, theirs = make(unknown=unknown), make(unknown=unknown)
    loss, metrics = CatalogueContrastiveLoss(TEMPERATURE, similarity)(*ours)
    expected, right = brute_force(*theirs, similarity=similarity)
    torch.testing.assert_close(loss, expected)
    assert metrics["contrastive_u2i_acc"].item() == pytest.approx(right)
    # The catalogue contains the item's own vector, so the gradient may come through either of them.
    for rows_of in (ours, theirs):
        (loss if rows_of is ours else expected).backward()
    totals = []
    for users, own, items, rows, _ in (ours, theirs):
        known = rows >= 0
        whole = items.grad.clone().index_add_(0, rows[known], own.grad[known])
        totals.append((users.grad, own.grad[~known], whole))
    for mine, other in zip(*totals, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_user_who_points_at_the_item_is_right():
    items = torch.eye(4)
    loss, metrics = CatalogueContrastiveLoss(0.01)(
        items[:3] * 5, items[:3], items, torch.arange(3), torch.ones(3, dtype=torch.bool)
    )
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert metrics["contrastive_u2i_acc"].item() == 1


def test_equal_vectors_are_never_right_and_cost_the_logarithm_of_their_number():
    ones = torch.ones(N, D)
    loss, metrics = CatalogueContrastiveLoss()(ones[:B], ones[:B], ones, torch.arange(B), torch.ones(B) > 0)
    assert loss.item() == pytest.approx(math.log(N), rel=1e-6)
    assert metrics["contrastive_u2i_acc"].item() == 0


@pytest.mark.parametrize("sizes", [(4, 3), (1, 6), (1,) * B])
def test_microbatches_add_up_to_the_batch(sizes):
    rows = make(seed=1)
    valid = torch.tensor([True, False, True, True, False, True, True])
    loss_of = CatalogueContrastiveLoss(TEMPERATURE)
    whole, metrics = loss_of(*rows[:4], valid)
    totals = torch.zeros(6)
    totals[ROWS], totals[TARGETS] = B, valid.sum()
    users, own, items, item_rows, _ = rows
    loss = accuracy = 0.0
    for part in torch.arange(B).split(sizes):
        new, found = loss_of(users[part], own[part], items, item_rows[part], valid[part], totals)
        loss += new * len(part) / B
        accuracy += found["contrastive_u2i_acc"] * len(part) / B
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(accuracy, metrics["contrastive_u2i_acc"])


def test_no_row_with_a_target_is_no_loss():
    users, own, items, rows, _ = make()
    loss, metrics = CatalogueContrastiveLoss()(users, own, items, rows, torch.zeros(B, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert metrics["contrastive_u2i_acc"] == 0
    assert not users.grad.any()


def test_cosines_in_half_precision_are_computed_in_single():
    users, own, items, rows, valid = make()
    expected, _ = CatalogueContrastiveLoss(0.02)(users, own, items, rows, valid)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = CatalogueContrastiveLoss(0.02)(users, own, items, rows, valid)
    assert found == expected


def test_dot_products_in_half_precision_are_half_precision_products_with_centred_items():
    users, own, items, rows, valid = make()
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = CatalogueContrastiveLoss(1.0, "dot")(users, own, items, rows, valid)
    centred = (items - items.mean(0)).bfloat16()
    expected = F.cross_entropy((users.bfloat16() @ centred.T).float(), rows)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("offset", [0, 100, 10_000])
@pytest.mark.parametrize("temperature", [1.0, 0.07])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("unknown", [(), (2, 5)])
def test_a_common_offset_of_items_changes_nothing_in_half_precision(pieces, offset, temperature, dtype, unknown):
    """Compared with float64 without an offset. In float16 10,000 / 0.07 would overflow (largest value 65,504)."""
    users, own, items, rows, valid = (x.detach() for x in make(unknown=unknown))
    direction = F.normalize(torch.ones(D), dim=0)
    users = users - (users @ direction)[:, None] * direction + direction  # each user's product with it is 1
    users, spread = users * temperature, offset / temperature * direction  # logits of one size at any temperature
    expected = [x.double().requires_grad_() for x in (users, own, items)]
    loss, right = brute_force(*expected, rows=rows, valid=valid, similarity="dot", temperature=temperature)
    loss.backward()
    shifted = [x.requires_grad_() for x in (users.clone(), own + spread, items + spread)]
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found, metrics = CatalogueContrastiveLoss(temperature, "dot")(*shifted, rows, valid)
    found.backward()
    eps = max(torch.finfo(dtype).eps, (offset / temperature + 10) * torch.finfo(torch.float32).eps)
    assert found.item() == pytest.approx(loss.item(), abs=2 * eps)
    assert metrics["contrastive_u2i_acc"].item() == pytest.approx(right)
    scale = expected[0].grad.abs().max().item()
    torch.testing.assert_close(shifted[0].grad.double(), expected[0].grad, rtol=0, atol=4 * eps * scale)


class TwoTables(nn.Module):
    """Embedding tables of users and items, each with a projection, like the two sides that UGT compares."""

    def __init__(self, users: int, items: int, width: int, offset: float):
        super().__init__()
        torch.manual_seed(0)
        self.users, self.items = nn.Embedding(users, width), nn.Embedding(items, width)
        self.user_proj, self.item_proj = Float32Linear(width, width), Float32Linear(width, width)
        nn.init.constant_(self.user_proj.bias, 1.0)
        nn.init.constant_(self.item_proj.bias, offset / width)  # a user's product with it is about `offset`

    def forward(self, rows: Tensor, targets: Tensor) -> Tensor:
        items = self.item_proj(self.items.weight)
        loss_of, valid = CatalogueContrastiveLoss(1.0, "dot"), torch.ones_like(rows, dtype=torch.bool)
        return loss_of(self.user_proj(self.users(rows)), items[targets], items, targets, valid)[0]


@pytest.mark.parametrize("offset", [0, 2_000])
def test_training_in_half_precision_follows_single_and_does_not_push_the_offset(offset):
    losses, pushed = {}, {}
    for in_half in (False, True):
        model = TwoTables(users=64, items=200, width=16, offset=offset)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(1)
        losses[in_half], pushed[in_half] = [], 0.0
        for _ in range(300):
            rows = torch.randint(64, (32,), generator=generator)
            targets = (rows * 3 + torch.randint(3, (32,), generator=generator)) % 200  # each user has three items
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=in_half):
                loss = model(rows, targets)
            loss.backward()
            optimizer.step()
            pushed[in_half] = max(pushed[in_half], model.item_proj.bias.grad.abs().max().item())
            losses[in_half].append(loss.item())
    assert losses[False][0] > 4 * losses[False][-1]
    torch.testing.assert_close(torch.tensor(losses[True]), torch.tensor(losses[False]), rtol=0.02, atol=0.02)
    assert max(pushed.values()) < 1e-5  # 0 up to rounding in float32; in half precision it would be about 1e-3


SIZES = (7, 6, 8)


def make_tables(offset=0.0, dtype=torch.float32):
    """Three tables of which the vectors of items are sums, and a trie of N items."""
    generator = torch.Generator().manual_seed(3)
    tables = [torch.randn(size, D, generator=generator) for size in SIZES]
    tables[0] += offset
    ids = torch.cartesian_prod(torch.arange(5, 7), torch.arange(5, 6), torch.arange(5, 8))
    trie = ItemTrie.from_triples(ids[: N // 2].numpy())
    return [table.to(dtype).requires_grad_() for table in tables], trie


@pytest.mark.parametrize("unknown", [(), (2,)])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("with_seen", [False, True])
@pytest.mark.parametrize("offset", [0, 100])
def test_vectors_computed_in_blocks_give_the_loss_and_gradients_of_loops_in_float64(
    pieces, monkeypatch, unknown, similarity, with_seen, offset
):
    monkeypatch.setattr(catalogue_contrastive, "VECTORS_BYTES", 4 * D * 2)
    results = {}
    for dtype in (torch.float32, torch.float64):
        tables, trie = make_tables(offset, dtype)
        users, own, _, rows, valid = make(unknown=unknown)
        rows = rows.remainder(len(trie)).where(rows >= 0, rows)
        users, biases = users.detach().to(dtype).requires_grad_(), torch.linspace(-1, 2, B, dtype=dtype)[:, None]
        biases.requires_grad_()
        items = sum(table[trie.items[:, level]] for level, table in enumerate(tables))
        # The target's own vector is the catalogue's, or unknown.
        known = (rows >= 0)[:, None]
        own = torch.where(known, items[rows.clamp(min=0)], own.detach().to(dtype) + offset)
        seen = torch.tensor([[0, 3, len(trie)]] * B) if with_seen else None
        if dtype == torch.float32:
            vectors = CatalogueVectors.of(trie, tuple(tables))
            loss, metrics = CatalogueContrastiveLoss(TEMPERATURE, similarity)(
                users, own, vectors, rows, valid, seen=None if seen is None else SeenItems(seen, biases)
            )
            right = metrics["contrastive_u2i_acc"].item()
        else:
            logits = users @ items.T
            of_own = (users * own).sum(1)
            if similarity == "cosine":
                logits = F.normalize(users, dim=1) @ F.normalize(items, dim=1).T
                of_own = F.cosine_similarity(users, own)
            logits, of_own = logits / TEMPERATURE, of_own / TEMPERATURE
            if seen is not None:
                is_seen = torch.zeros(B, len(trie) + 1, dtype=torch.bool).scatter(1, seen, True)[:, :-1]
                logits = logits + is_seen * biases
            losses = []
            for row in range(B):
                if rows[row] < 0:
                    losses.append(torch.cat([logits[row], of_own[row : row + 1]]).logsumexp(0) - of_own[row])
                else:
                    losses.append(logits[row].logsumexp(0) - logits[row, rows[row]])
            loss = torch.stack(losses).mean()
            best = logits.argmax(1)
            beaten = logits.amax(1) < of_own
            right = torch.where(rows < 0, beaten, best == rows).double().mean().item()
        loss.backward()
        gradients = [users.grad, *(table.grad for table in tables)] + ([biases.grad] if with_seen else [])
        results[dtype] = [loss.detach().double(), *(gradient.double() for gradient in gradients)], right
    for mine, other in zip(results[torch.float32][0], results[torch.float64][0], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=2e-3 if offset else 1e-5)
    assert results[torch.float32][1] == pytest.approx(results[torch.float64][1])


def test_neither_vectors_nor_logits_of_all_items_are_kept(monkeypatch):
    """Of the forward pass remain the tables and numbers per row; of 4,000 items a block holds 40."""
    monkeypatch.setattr(catalogue_contrastive, "VECTORS_BYTES", 4 * D * 40)
    ids = torch.cartesian_prod(torch.arange(5, 15), torch.arange(5, 25), torch.arange(5, 25))
    trie = ItemTrie.from_triples(ids.numpy())
    tables = tuple(torch.randn(25, D, requires_grad=True) for _ in range(3))
    users, largest = torch.randn(B, D, requires_grad=True), []

    def pack(tensor):
        is_catalogue = tensor.untyped_storage().data_ptr() == trie.items.untyped_storage().data_ptr()
        largest.append(0 if is_catalogue else tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = CatalogueContrastiveLoss()(
            users,
            torch.randn(B, D),
            CatalogueVectors.of(trie, tables),
            torch.arange(B),
            torch.ones(B, dtype=torch.bool),
        )
    loss.backward()
    assert max(largest) <= 3 * len(ids) // 40 * B
    assert tables[2].grad.abs().sum() > 0
