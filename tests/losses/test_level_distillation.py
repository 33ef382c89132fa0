"""Soft targets and their loss against loops over the items, and the properties that training relies on."""

import math

import pytest
import torch
from torch import Tensor

from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.generation.item_log_probs import child_logits
from ugt_composer.generation.item_scores import ItemScores
from ugt_composer.losses import level_distillation
from ugt_composer.losses.level_distillation import LevelDistillationLoss, level_targets
from ugt_composer.losses.normalization import ROWS, TARGETS

ITEMS = torch.tensor(
    [[5, 5, 5], [5, 5, 6], [5, 7, 5], [6, 5, 5], [6, 5, 7], [6, 5, 8], [6, 6, 5], [8, 9, 9], [8, 9, 10], [8, 10, 5]]
)
TRIE = ItemTrie.from_triples(ITEMS)
B, D = 6, 4


def make(seed: int = 0) -> tuple[ItemScores, Tensor]:
    """Scores of B users and an item of each; the last but one is in no catalogue, the last not even at level 1."""
    generator = torch.Generator().manual_seed(seed)
    users, items = torch.randn(B, D, generator=generator), torch.randn(len(ITEMS), D, generator=generator)
    ids = ITEMS[torch.randint(len(ITEMS), (B,), generator=generator)]
    ids[-2], ids[-1] = torch.tensor([6, 9, 5]), torch.tensor([7, 5, 5])
    return ItemScores(users, items, temperature=0.5, weight=1.0, similarity="dot"), ids


def probabilities_below(probs: Tensor, prefix: list[int]) -> dict[int, float]:
    """The probability of each id that follows `prefix`, given the items that have the prefix."""
    level, masses = len(prefix), {}
    for item, prob in zip(ITEMS.tolist(), probs.tolist(), strict=True):
        if item[:level] == prefix:
            masses[item[level]] = masses.get(item[level], 0.0) + prob
    return {following: mass / sum(masses.values()) for following, mass in sorted(masses.items())}


@pytest.mark.parametrize("rows_at_once", [1, 4, 100])
def test_targets_are_the_marginals_of_the_items_below_each_prefix(monkeypatch, rows_at_once):
    monkeypatch.setattr(level_distillation, "PROBABILITIES_BYTES", 4 * len(ITEMS) * rows_at_once)
    scores, ids = make()
    targets = level_targets(scores, ids, TRIE)
    probs = scores(slice(None)).double().exp()
    for row in range(B):
        for level in range(3):
            expected = probabilities_below(probs[row], ids[row, :level].tolist())
            found = targets[f"l{level + 1}_targets"][row]
            assert found[: len(expected)].tolist() == pytest.approx(list(expected.values()), abs=1e-6)
            assert found[len(expected) :].eq(0).all()


def heads(level: int, hidden: Tensor, prefix: Tensor, beam: Tensor, ids: Tensor) -> Tensor:
    """Logits that depend on user, prefix and id."""
    user = hidden.sum(-1).gather(1, beam)
    above = (prefix.sum(-1).gather(1, beam) if level else torch.zeros_like(beam)).float()
    return torch.sin(user * (level + 1) + 0.7 * above + 1.3 * ids)


def make_levels() -> tuple[ItemScores, Tensor, list[Tensor], list[Tensor]]:
    """Scores and items as of `make`, logits of the levels and their targets, (B, C_l) each."""
    scores, ids = make()
    hidden = torch.randn(B, D, generator=torch.Generator().manual_seed(1))
    logits = [children.logits for children in child_logits(heads, hidden, ids, TRIE)]
    return scores, ids, logits, list(level_targets(scores, ids, TRIE).values())


def test_the_loss_is_the_divergence_summed_over_levels_and_averaged_over_rows_with_a_target():
    scores, ids, logits, targets = make_levels()
    valid = torch.tensor([True, True, False, True, True, True])
    loss, _ = LevelDistillationLoss()(logits, targets, valid)
    total = 0.0
    probs = scores(slice(None)).double().exp()
    for row in range(B):
        for level in range(3 if valid[row] else 0):
            wanted = probabilities_below(probs[row], ids[row, :level].tolist())
            exponentials = [math.exp(value) for value in logits[level][row, : len(wanted)].tolist()]
            total += sum(
                p * math.log(p / (e / sum(exponentials))) for p, e in zip(wanted.values(), exponentials, strict=True)
            )
    assert loss.item() == pytest.approx(total / 5, abs=1e-5)


def test_heads_that_agree_with_the_score_have_no_loss_and_no_gradient():
    scores, ids = make()
    targets = list(level_targets(scores, ids, TRIE).values())
    logits = [target.log().requires_grad_() for target in targets]  # log 0 = -inf: no child
    known = torch.tensor([True] * 4 + [False] * 2)
    loss, _ = LevelDistillationLoss()(logits, targets, known)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert all(logit.grad[:4].abs().max() < 1e-6 for logit in logits)


def test_the_score_learns_nothing_from_the_levels():
    users = torch.randn(B, D, requires_grad=True)
    scores = ItemScores(users, torch.randn(len(ITEMS), D, requires_grad=True), 1.0, 1.0, "cosine")
    assert not any(target.requires_grad for target in level_targets(scores, ITEMS[:B], TRIE).values())


def test_microbatches_add_up_to_the_batch():
    _, _, logits, targets = make_levels()
    valid = torch.tensor([True, False, True, True, True, True])
    whole, _ = LevelDistillationLoss()(logits, targets, valid)
    totals = torch.zeros(6)
    totals[ROWS], totals[TARGETS] = B, valid.sum()
    parts = [
        LevelDistillationLoss()([x[rows] for x in logits], [x[rows] for x in targets], valid[rows], totals)[0]
        * (len(valid[rows]) / B)
        for rows in (slice(0, 1), slice(1, 2), slice(2, 6))
    ]
    torch.testing.assert_close(sum(parts), whole)
