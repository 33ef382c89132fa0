import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from ugt_composer.losses import catalogue_contrastive
from ugt_composer.losses.catalogue_contrastive import CatalogueContrastiveLoss
from ugt_composer.losses.normalization import ROWS, TARGETS

TEMPERATURE = 0.2
B, N, D = 7, 11, 4


@pytest.fixture(params=[1 << 28, 4 * B * 3, 1], ids=["at once", "in threes", "one by one"])
def pieces(request, monkeypatch):
    monkeypatch.setattr(catalogue_contrastive, "LOGITS_BYTES", request.param)


def make(seed=0, unknown=()):
    """Users, the vectors of their items, those of all items, the items' rows, validity."""
    generator = torch.Generator().manual_seed(seed)
    users, items = torch.randn(B, D, generator=generator), torch.randn(N, D, generator=generator)
    rows = torch.randint(N, (B,), generator=generator)
    own = items[rows]
    for row in unknown:
        rows[row], own[row] = -1, torch.randn(D, generator=generator)
    return users.requires_grad_(), own.requires_grad_(), items.requires_grad_(), rows, torch.ones(B, dtype=torch.bool)


def brute_force(users, own, items, rows, valid, similarity):
    """Loops over users and items, the item's own vector in the place of the catalogue's."""
    similar = torch.dot if similarity == "dot" else partial(F.cosine_similarity, dim=0)
    losses, right = [], []
    for b in range(B):
        if not valid[b]:
            continue
        logit = similar(users[b], own[b]) / TEMPERATURE
        others = [similar(users[b], items[n]) / TEMPERATURE for n in range(N) if n != rows[b]]
        losses.append(torch.stack([logit, *others]).logsumexp(0) - logit)
        right.append(all(logit > other for other in others))
    return torch.stack(losses).mean(), sum(right) / len(right)


@pytest.mark.parametrize("unknown", [(), (2,), tuple(range(B))])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_loss_accuracy_and_gradients_are_those_of_loops_over_all_items(pieces, unknown, similarity):
    ours, theirs = make(unknown=unknown), make(unknown=unknown)
    loss, metrics = CatalogueContrastiveLoss(TEMPERATURE, similarity)(*ours)
    expected, right = brute_force(*theirs, similarity)
    torch.testing.assert_close(loss, expected)
    assert metrics["contrastive_u2i_acc"].item() == pytest.approx(right)
    # The catalogue holds the item's own vector, so its gradient may come through either.
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


def test_dot_products_in_half_precision_are_the_softmax_of_a_half_precision_product():
    users, own, items, rows, valid = make()
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = CatalogueContrastiveLoss(1.0, "dot")(users, own, items, rows, valid)
    expected = F.cross_entropy((users.bfloat16() @ items.bfloat16().T).float(), rows)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.dtype == torch.float32
