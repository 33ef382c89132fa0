import copy

import numpy as np
import pytest
import torch

from tests.conftest import CODEBOOKS
from ugt_composer.model.new_items import NEAREST, predictor, set_new_entries


@pytest.fixture
def items():
    """30 old and 6 new items with third-level ids of their own, vectors, and which are old."""
    random = np.random.default_rng(0)
    upper = np.stack([random.integers(5, size, 36) for size in CODEBOOKS[:2]], axis=1)
    last = np.arange(5, 35)
    ids = np.concatenate([upper, np.concatenate([last, np.arange(34, 28, -1)])[:, None]], axis=1)
    ids[30:, 2] = [35, 36, 37, 38, 39, 39]
    return ids, random.standard_normal((36, 4)), np.arange(36) < 30


def vectors_of(model, ids):
    with torch.no_grad():
        return model.item_embedding(torch.from_numpy(ids)).double().numpy()


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_item_gets_the_mean_of_the_nearest_old_ones_and_nothing_else_changes(tiny_model, items, tied):
    ids, vectors, is_old = items
    model = tiny_model(tie_embeddings=tied)
    with torch.no_grad():
        model.heads.heads[2].bias.normal_()
    before, sums, bias = copy.deepcopy(model.state_dict()), vectors_of(model, ids), model.heads.heads[2].bias.double()
    assert set_new_entries(model, ids, vectors, is_old) == 6
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = np.argsort(-unit @ unit[:30].T, axis=1)
    old = [[other for other in row if other != at][:NEAREST] for at, row in enumerate(nearest)]
    for values, now in ((sums, vectors_of(model, ids)), (bias.detach().numpy()[ids[:, 2], None], None)):
        centre = values[:30].mean(axis=0)
        means = np.stack([values[row].mean(axis=0) for row in old]) - centre
        ratio = np.linalg.norm(values[:30] - centre) / np.linalg.norm(means[:30])
        scale = np.sqrt(ratio)
        now = model.heads.heads[2].bias.detach().numpy()[ids[:, 2], None] if now is None else now
        assert now[30:34] == pytest.approx(centre + scale * means[30:34], abs=1e-5)
    changed = {name for name, weight in model.state_dict().items() if not weight.equal(before[name])}
    of_head = set() if tied else {"heads.heads.2.weight"}
    assert changed == {"item_embedding.levels.2.weight", "heads.heads.2.bias"} | of_head
    for name in changed:
        assert model.state_dict()[name][:35].equal(before[name][:35]), "old entries stay"


def test_predictions_do_not_depend_on_the_other_new_items():
    random = np.random.default_rng(0)
    old, new, values = random.standard_normal((40, 3)), random.standard_normal((9, 3)), random.standard_normal((40, 2))
    together = predictor(old, new)(values)
    for at in range(9):
        assert predictor(old, new[at : at + 1])(values) == pytest.approx(together[at : at + 1])


def test_with_one_old_item_all_new_ones_are_like_it():
    assert predictor(np.ones((1, 2)), np.eye(2))(np.full((1, 3), 7.0)) == pytest.approx(np.full((2, 3), 7.0))


def test_an_id_that_new_items_share_gets_the_mean_and_one_of_an_old_item_stays(tiny_model, items):
    ids, vectors, is_old = items
    ids[30, 2] = 7
    model, alone = tiny_model(), [tiny_model(), tiny_model()]
    old = model.item_embedding.levels[2].weight[7].clone()
    assert set_new_entries(model, ids, vectors, is_old) == 5
    assert model.item_embedding.levels[2].weight[7].equal(old)
    for one, left_out in zip(alone, (34, 35), strict=True):
        kept = np.arange(36) != left_out
        set_new_entries(one, ids[kept], vectors[kept], is_old[kept])
    entries = [one.item_embedding.levels[2].weight[39] for one in (model, *alone)]
    torch.testing.assert_close(entries[0], (entries[1] + entries[2]) / 2)


def test_without_new_ids_nothing_changes(tiny_model, items):
    ids, vectors, is_old = items
    ids[30:, 2] = 6
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    assert set_new_entries(model, ids, vectors, is_old) == 0
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())
