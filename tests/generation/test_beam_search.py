import itertools
import math

import numpy as np
import pytest
import torch

from tests.generation.head_tables import TableHeads, brute_force, random_trie, users
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.generation.beam_search import beam_search
from ugt_composer.generation.item_log_probs import UNKNOWN_LOG_PROB, score_items, score_over_codebooks
from ugt_composer.generation.item_scores import ItemScores

SIZES = (9, 10, 12)
B = 7


def check(result, ids, expected, k):
    for user, best in enumerate(expected):
        found = len(best)
        assert result.item_index[user].tolist() == [index for index, _ in best] + [-1] * (k - found)
        assert result.ids[user, :found].tolist() == [ids[index].tolist() for index, _ in best]
        torch.testing.assert_close(result.scores[user, :found], torch.tensor([score for _, score in best]))
        assert (result.ids[user, found:] == 0).all()
        assert (result.scores[user, found:] == -math.inf).all()


@pytest.mark.parametrize("items", [1, 3, 40, 140])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_equals_brute_force(items, seed):
    heads, trie = TableHeads(SIZES, B, seed), random_trie(SIZES, items, seed)
    result = beam_search(heads, users(B), trie, k=10, beam_width=200)
    check(result, trie.items, brute_force(heads, trie.items, 10), 10)
    assert result.ids.shape == (B, 10, 3)
    assert result.scores.dtype == torch.float32


@pytest.mark.parametrize("seed", range(4))
def test_equal_scores_are_ordered_by_item_index(seed):
    heads, trie = TableHeads(SIZES, B, seed, step=4.0), random_trie(SIZES, 100, seed)
    result = beam_search(heads, users(B), trie, k=20, beam_width=200)
    for scores, index in zip(result.scores.tolist(), result.item_index.tolist(), strict=True):
        assert list(zip(scores, index, strict=True)) == sorted(
            zip(scores, index, strict=True), key=lambda pair: (-pair[0], pair[1])
        )
    constant = TableHeads(SIZES, B, step=1e6)
    result = beam_search(constant, users(B), trie, k=20, beam_width=20)
    assert (result.item_index == torch.arange(20)).all()


def test_a_narrow_beam_returns_items_of_the_kept_prefixes_with_their_exact_scores():
    heads, trie = TableHeads(SIZES, B), random_trie(SIZES, 120)
    result = beam_search(heads, users(B), trie, k=4, beam_width=4)
    assert (result.item_index >= 0).all()
    assert (trie.items[result.item_index] == result.ids).all()
    torch.testing.assert_close(result.scores, score_over_codebooks(heads.of_ids, users(B), result.ids))
    exact = beam_search(heads, users(B), trie, k=4, beam_width=200)
    assert (result.scores <= exact.scores + 1e-6).all()
    level_1 = heads.tables[0].log_softmax(-1)[:, trie.levels[0].ids].topk(4).indices
    kept = trie.levels[0].ids[level_1]
    assert all(set(result.ids[user, :, 0].tolist()) <= set(kept[user].tolist()) for user in range(B))


@pytest.mark.parametrize("with_item_scores", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_lists_above_the_best_dropped_prefix_are_exact(seed, with_item_scores):
    heads, trie = TableHeads(SIZES, B, seed), random_trie(SIZES, 120, seed)
    scores = torch.randn(B, len(trie), generator=torch.Generator().manual_seed(seed)) if with_item_scores else None
    options = {} if scores is None else {"item_scores": lambda rows: scores[rows]}
    exact = beam_search(heads, users(B), trie, k=4, beam_width=200, **options)
    assert (exact.best_dropped == -math.inf).all()
    proven = 0
    for width in (4, 6, 10):
        result = beam_search(heads, users(B), trie, k=4, beam_width=width, **options)
        is_exact = result.scores[:, -1] > result.best_dropped
        assert torch.equal(result.item_index[is_exact], exact.item_index[is_exact])
        wrong = (result.item_index != exact.item_index).any(1)
        assert not (wrong & is_exact).any()
        proven += int(is_exact.sum())
    assert 0 < proven < 3 * B


@pytest.mark.parametrize("seed", range(4))
def test_excluded_items_are_never_recommended(seed):
    heads, trie = TableHeads(SIZES, B, seed), random_trie(SIZES, 60, seed)
    generator = torch.Generator().manual_seed(seed)
    exclude = trie.items[torch.randint(60, (B, 70), generator=generator)]
    exclude[:, :2] = torch.tensor([[1, 1, 1], [0, 0, 0]])  # a user token and padding
    exclude[:, 2] = torch.tensor([999, -100, 5])
    exclude[0, 10:] = 0
    banned = [{tuple(item) for item in row} for row in exclude.tolist()]
    result = beam_search(heads, users(B), trie, k=30, beam_width=200, exclude=exclude)
    check(result, trie.items, brute_force(heads, trie.items, 30, banned), 30)


def test_no_beam_is_spent_on_prefixes_whose_items_are_all_excluded():
    """A beam of width k finds k items whenever k are left, even if all items of the likeliest prefixes are excluded."""
    heads, trie = TableHeads(SIZES, B), random_trie(SIZES, 100)
    everything = beam_search(heads, users(B), trie, k=100, beam_width=200)
    result = beam_search(heads, users(B), trie, k=5, beam_width=5, exclude=everything.ids[:, :95])
    assert (result.item_index.sort().values == everything.item_index[:, 95:].sort().values).all()
    nothing = beam_search(heads, users(B), trie, k=5, beam_width=5, exclude=everything.ids)
    assert (nothing.item_index == -1).all()
    none_excluded = beam_search(heads, users(B), trie, k=5, beam_width=5, exclude=everything.ids[:, :0])
    assert (none_excluded.item_index == beam_search(heads, users(B), trie, k=5, beam_width=5).item_index).all()


def test_without_a_trie_every_triple_but_special_ids_can_come():
    heads = TableHeads(SIZES, B)
    everything = torch.cartesian_prod(*(torch.arange(5, size) for size in SIZES))
    width = 4 * 5 * 7
    result = beam_search(heads, users(B), None, k=width, beam_width=width)
    expected = brute_force(heads, everything, width)
    codes = (everything[:, 0] * SIZES[1] + everything[:, 1]) * SIZES[2] + everything[:, 2]
    for user, best in enumerate(expected):
        assert result.item_index[user].tolist() == [codes[index].item() for index, _ in best]
        assert result.ids[user].tolist() == [everything[index].tolist() for index, _ in best]
    seen = result.ids[:, :20].clone()
    seen[:, 19] = torch.tensor([0, -1, 2000])
    after = beam_search(heads, users(B), None, k=10, beam_width=width, exclude=seen)
    assert (after.item_index == result.item_index[:, 19:29]).all()


def test_users_searched_in_groups_get_the_same_items():
    heads, trie = TableHeads(SIZES, B), random_trie(SIZES, 120)
    exclude = trie.items[:B].unsqueeze(1)
    whole = beam_search(heads, users(B), trie, k=6, beam_width=8, exclude=exclude)
    heads.widths.clear()
    groups = beam_search(heads, users(B), trie, k=6, beam_width=8, exclude=exclude, memory_bound=10_000)
    assert max(shape[0] for _, shape in heads.widths) < B
    for one, other in zip(whole, groups, strict=True):
        assert torch.equal(one, other)
    assert beam_search(heads, users(0), trie, k=6, beam_width=8).ids.shape == (0, 6, 3)


def test_level_1_is_evaluated_once_a_user_and_no_level_more_often_than_the_beam():
    heads, trie = TableHeads(SIZES, B), random_trie(SIZES, 120)
    beam_search(heads, users(B), trie, k=6, beam_width=6)
    assert [(level, tuple(shape)) for level, shape in heads.widths if shape[0]] == [
        (0, (B, 1)),
        (1, (B, 4)),
        (2, (B, 6)),
    ]


def test_infinite_logits_give_no_nan_and_no_recommendation():
    heads, trie = TableHeads(SIZES, B), random_trie(SIZES, 100)
    heads.tables[0][:, 6] = -math.inf
    heads.tables[1][:, 7] = -math.inf  # no distribution at all below l1 = 7
    heads.tables[2][:, :, 8, 9:] = -math.inf
    result = beam_search(heads, users(B), trie, k=100, beam_width=200)
    possible = [i for i, (a, b, c) in enumerate(trie.items.tolist()) if a not in (6, 7) and not (b == 8 and c >= 9)]
    for index, scores in zip(result.item_index.tolist(), result.scores, strict=True):
        assert sorted(index) == [-1] * (100 - len(possible)) + possible
        assert not scores.isnan().any()


def test_half_precision_heads_are_normalised_in_float32():
    trie = random_trie(SIZES, 100)
    low = TableHeads(SIZES, B, dtype=torch.bfloat16)
    high = TableHeads(SIZES, B)
    high.tables = [table.float() for table in low.tables]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = beam_search(low, users(B), trie, k=10, beam_width=100)
    assert torch.equal(result.scores, beam_search(high, users(B), trie, k=10, beam_width=100).scores)


def test_scores_of_items_are_their_log_probabilities_and_pass_gradients_on():
    heads = TableHeads(SIZES, B)
    ids = torch.stack([torch.randint(size, (B, 6)) for size in SIZES], dim=-1)
    for table in heads.tables:
        table.requires_grad_()
    heads.widths.clear()
    scores = score_over_codebooks(heads.of_ids, users(B), ids)
    assert [tuple(shape) for _, shape in heads.widths] == [(B,), (6 * B,), (6 * B,)]
    every = heads.log_probs()
    expected = every[torch.arange(B).unsqueeze(1), ids[..., 0], ids[..., 1], ids[..., 2]]
    torch.testing.assert_close(scores, expected)
    weights = torch.randn(B, 6)
    ours = torch.autograd.grad((scores * weights).sum(), heads.tables)
    theirs = torch.autograd.grad((expected * weights).sum(), heads.tables)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert score_over_codebooks(heads.of_ids, users(B), ids[:, :0]).shape == (B, 0)


def test_arguments_that_cannot_be_met_are_refused():
    heads, trie = TableHeads(SIZES, B), random_trie(SIZES, 50)
    for k, width in ((0, 5), (6, 5)):
        with pytest.raises(ValueError, match="beam_width 5 must be at least k"):
            beam_search(heads, users(B), trie, k=k, beam_width=width)
    with pytest.raises(ValueError, match="l3 id 12, the codebook 12 ids"):
        beam_search(heads, users(B), ItemTrie.from_triples(np.array([[5, 5, 12]])), k=1, beam_width=1)


def added(items, seed):
    return torch.randn(B, items, generator=torch.Generator().manual_seed(seed + 100)) * 3


@pytest.mark.parametrize("memory_bound", [1 << 28, 10_000])
@pytest.mark.parametrize("items", [1, 40, 140])
@pytest.mark.parametrize("seed", range(3))
def test_item_scores_are_added_to_the_log_probabilities(items, seed, memory_bound):
    heads, trie, scores = TableHeads(SIZES, B, seed), random_trie(SIZES, items, seed), added(items, seed)
    exclude = trie.items[torch.randint(items, (B, 9), generator=torch.Generator().manual_seed(seed))]
    exclude[:, 0] = 0
    result = beam_search(heads, users(B), trie, 10, 200, exclude, lambda rows: scores[rows], memory_bound=memory_bound)
    log_probs = score_over_codebooks(heads.of_ids, users(B), trie.items.expand(B, -1, -1))
    for user in range(B):
        banned = {tuple(item) for item in exclude[user].tolist()}
        allowed = [n for n, item in enumerate(trie.items.tolist()) if tuple(item) not in banned]
        total = (log_probs + scores)[user]
        best = sorted(allowed, key=lambda n: -total[n].item())[:10]
        found = len(best)
        assert result.item_index[user].tolist() == best + [-1] * (10 - found)
        torch.testing.assert_close(result.scores[user, :found], total[best])
        torch.testing.assert_close(result.log_probs[user, :found], log_probs[user, best])
        assert (result.log_probs[user, found:] == -math.inf).all()


def test_a_narrow_beam_keeps_the_prefix_of_an_item_that_the_scores_lift():
    heads, trie = TableHeads(SIZES, B), random_trie(SIZES, 140)
    everything = beam_search(heads, users(B), trie, k=140, beam_width=200)
    last = everything.item_index[:, -1:]
    scores = torch.zeros(B, 140).scatter(1, last, 100.0)
    result = beam_search(heads, users(B), trie, k=1, beam_width=1, item_scores=lambda rows: scores[rows])
    assert torch.equal(result.item_index, last)


def test_item_scores_of_no_catalogue_are_refused():
    with pytest.raises(ValueError, match="trie"):
        beam_search(TableHeads(SIZES, B), users(B), None, 1, 1, item_scores=lambda rows: torch.zeros(B, 1)[rows])


def test_the_item_scores_are_weighted_log_probabilities_over_the_catalogue():
    generator = torch.Generator().manual_seed(0)
    people, items = torch.randn(4, 3, generator=generator), torch.randn(9, 3, generator=generator)
    dots = ItemScores(people, items, temperature=0.2, weight=0.5, similarity="dot")(slice(1, 3))
    torch.testing.assert_close(dots, 0.5 * (people[1:3] @ items.T / 0.2).log_softmax(-1))
    scores = ItemScores(people, items, temperature=0.2, weight=0.5)(slice(1, 3))
    cosines = torch.cosine_similarity(people[1:3, None], items[None], dim=-1)
    torch.testing.assert_close(scores, 0.5 * torch.log_softmax(cosines / 0.2, dim=-1))


def over_catalogue(heads, trie):
    """log p of each item, (users, n), by loops: each softmax is over the ids that the trie has below a prefix."""
    items = trie.items.tolist()
    found = torch.zeros(B, len(items))
    for user in range(B):
        for at, item in enumerate(items):
            for level in range(3):
                siblings = sorted({other[level] for other in items if other[:level] == item[:level]})
                logits = heads.tables[level][(user, *item[:level])].float()
                found[user, at] += logits[item[level]] - logits[siblings].logsumexp(0)
    return found


@pytest.mark.parametrize("memory_bound", [1 << 28, 10_000])
@pytest.mark.parametrize("items", [1, 40, 140])
def test_over_the_catalogue_probabilities_of_its_items_sum_to_one(items, memory_bound):
    heads, trie = TableHeads(SIZES, B, 1), random_trie(SIZES, items, 1)
    expected = over_catalogue(heads, trie)
    torch.testing.assert_close(expected.exp().sum(1), torch.ones(B))
    k = min(items, 20)
    exclude = (
        trie.items[torch.randint(items, (B, 5), generator=torch.Generator().manual_seed(1))] if items > 1 else None
    )
    result = beam_search(heads, users(B), trie, k, 200, exclude, over_catalogue=True, memory_bound=memory_bound)
    for user in range(B):
        banned = {tuple(item) for item in exclude[user].tolist()} if exclude is not None else set()
        allowed = [n for n, item in enumerate(trie.items.tolist()) if tuple(item) not in banned]
        best = sorted(allowed, key=lambda n: -expected[user, n].item())[:k]
        assert result.item_index[user, : len(best)].tolist() == best
        torch.testing.assert_close(result.scores[user, : len(best)], expected[user, best])
    scored = score_items(heads, users(B), trie.items.expand(B, -1, -1), trie)
    torch.testing.assert_close(scored, expected)


def test_items_outside_the_catalogue_are_improbable_and_get_no_gradient():
    heads, trie = TableHeads(SIZES, B), random_trie(SIZES, 40)
    known = set(map(tuple, trie.items.tolist()))
    unknown = [item for item in itertools.product(range(5, 9), range(5, 10), range(5, 12)) if item not in known]
    for table in heads.tables:
        table.requires_grad_()
    ids = torch.tensor([*unknown[:8], (1, 1, 1), (-100, -100, -100)]).expand(B, -1, -1)
    scores = score_items(heads, users(B), ids, trie)
    assert (scores == UNKNOWN_LOG_PROB).all()
    scores.sum().backward()
    assert all(table.grad is None or (table.grad == 0).all() for table in heads.tables)


def test_a_softmax_over_no_catalogue_is_refused():
    with pytest.raises(ValueError, match="trie"):
        beam_search(TableHeads(SIZES, B), users(B), None, 1, 1, over_catalogue=True)
