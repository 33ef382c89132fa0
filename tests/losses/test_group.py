"""The group loss against a twin that sums over all 20 items of a catalogue, prefix by prefix."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.generation.head_tables import TableHeads, random_trie, users
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.generation.item_log_probs import score_items
from ugt_composer.generation.item_samples import distributions_at, draw_group, sample_items
from ugt_composer.losses.group import GroupLoss
from ugt_composer.losses.normalization import ROWS, TARGETS
from ugt_composer.row_random import RowNoise

SIZES, ITEMS, GROUP = (8, 9, 10), 20, 6
TRIE = random_trie(SIZES, ITEMS)
RETIRED = (TRIE.items[:, 0] == 5).numpy() | (np.arange(ITEMS) % 3 == 0)  # one prefix, and parts of others
PARTLY_RETIRED = ItemTrie.from_triples(TRIE.items, RETIRED)
GRADED = (0.1, 0.3, 1.0)
BETA = 0.3
VALUES = torch.linspace(-0.2, 0.4, ITEMS)


class Toy:
    """A policy of one user, whose logits are its parameters, and another one as reference.

    `items` are those that can be drawn, as rows of TRIE.
    """

    def __init__(self, target: int = 7, seed: int = 0, trie: ItemTrie = TRIE):
        self.trie = trie
        self.items = [n for n in range(ITEMS) if trie is TRIE or not RETIRED[n]]
        self.policy, self.reference = TableHeads(SIZES, 1, seed), TableHeads(SIZES, 1, seed)
        for table in self.reference.tables:
            table += 0.5 * torch.randn(table.shape, generator=torch.Generator().manual_seed(9))
        for table in self.policy.tables:
            table.requires_grad_()
        self.target = TRIE.items[target]

    def loss(self, rows: int, first_row: int = 0, values: Tensor | None = VALUES, step: int = 0, **settings):
        """Loss and metrics of rows that differ only in their noise."""
        hidden, target = users(1).expand(rows, -1), self.target.expand(rows, -1)
        row_ids = torch.arange(first_row, first_row + rows)
        noise = RowNoise(row_ids, torch.tensor(step), 3)
        group = draw_group(self.policy, hidden, target, self.trie, GROUP, noise)
        found = group["group_target_items"]
        return GroupLoss(**settings)(
            group["group_ids"],
            group["group_log_probs"],
            [group[f"group_l{level}_log_probs"] for level in (1, 2, 3)],
            target,
            group["group_target_log_probs"],
            torch.ones(rows),
            found >= 0,
            torch.ones(rows, dtype=torch.bool),
            distributions_at(self.reference, hidden, self.trie, group["group_ids"]),
            None if values is None else values[group["group_items"]],
            None if values is None else torch.where(found >= 0, values[found], 0),
        )

    def gradient(self, loss: Tensor, retain_graph: bool = False) -> Tensor:
        return torch.cat(
            [one.flatten() for one in torch.autograd.grad(loss, self.policy.tables, retain_graph=retain_graph)]
        )

    def probabilities(self, heads: TableHeads) -> Tensor:
        """p of each of `items`, one softmax after the other over the ids that they have below a prefix."""
        items = [tuple(item) for item in TRIE.items[self.items].tolist()]
        result = []
        for item in items:
            p = torch.ones(())
            for level, table in enumerate(heads.tables):
                siblings = sorted({other[level] for other in items if other[:level] == item[:level]})
                logits = table[(0, *item[:level])][siblings]
                p = p * logits.softmax(0)[siblings.index(item[level])]
            result.append(p)
        return torch.stack(result)

    def rewards(self, rewards=GRADED, values=VALUES) -> Tensor:
        graded = []
        for item in TRIE.items[self.items].tolist():
            shared = next((n for n in (3, 2, 1) if item[:n] == self.target[:n].tolist()), 0)
            graded.append(rewards[shared - 1] if shared else 0.0)
        return torch.tensor(graded) + (0 if values is None else values[self.items])

    def exact(self, beta: float, **settings) -> tuple[Tensor, Tensor, Tensor]:
        """Expected reward and KL, and the loss that they make."""
        p, q = self.probabilities(self.policy), self.probabilities(self.reference)
        reward, kl = (p * self.rewards(**settings)).sum(), (p * (p / q).log()).sum()
        return reward, kl, -reward + beta * kl


CHUNKS, CHUNK_ROWS = 24, 500


def sampled_gradients(toy: Toy, **settings) -> Tensor:
    return torch.stack(
        [toy.gradient(toy.loss(CHUNK_ROWS, chunk * CHUNK_ROWS, **settings)[0]) for chunk in range(CHUNKS)]
    )


@pytest.mark.parametrize("beta", [0.0, BETA])
def test_the_mean_of_sampled_gradients_is_the_exact_gradient(beta):
    toy = Toy()
    sampled = sampled_gradients(toy, rewards=GRADED, kl=beta, scale_rewards=False)
    exact = toy.gradient(toy.exact(beta)[2])
    error, bound = sampled.mean(0) - exact, sampled.std(0) / math.sqrt(CHUNKS)
    assert (error.abs() <= 5 * bound + 1e-3 * exact.abs().max()).all()  # some prefixes are hardly ever drawn
    assert error.norm() < 0.05 * exact.norm()  # so the bound is not met by noise alone


@pytest.mark.parametrize("target", [7, 6])  # the other one is retired too
def test_retired_items_have_no_part_in_the_gradient(target):
    toy = Toy(target, trie=PARTLY_RETIRED)
    assert len(toy.items) < ITEMS - 6
    assert (target in toy.items) == (target == 7)
    sampled = sampled_gradients(toy, rewards=GRADED, kl=BETA, scale_rewards=False)
    exact = toy.gradient(toy.exact(BETA)[2])
    error, bound = sampled.mean(0) - exact, sampled.std(0) / math.sqrt(CHUNKS)
    assert (error.abs() <= 5 * bound + 1e-3 * exact.abs().max()).all()
    assert error.norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("target", [-1, 3])
def test_without_a_target_in_the_catalogue_the_gradient_is_that_of_the_values(target):
    toy = Toy()
    toy.target = torch.tensor([5, 5, 5]) if target < 0 else TRIE.items[target]
    assert (TRIE.find(toy.target) < 0) == (target < 0)
    sampled = sampled_gradients(toy, rewards=(0.0, 0.0, 0.0), kl=0.0, scale_rewards=False)
    exact = toy.gradient(toy.exact(0.0, rewards=(0.0, 0.0, 0.0))[2])
    error, bound = sampled.mean(0) - exact, sampled.std(0) / math.sqrt(CHUNKS)
    assert (error.abs() <= 5 * bound + 1e-3 * exact.abs().max()).all()  # some prefixes are hardly ever drawn
    assert error.norm() < 0.1 * exact.norm()


def test_reward_kl_and_entropy_are_unbiased_and_recall_is_that_of_independent_draws():
    toy = Toy()
    rows = 20_000
    loss, metrics = toy.loss(rows, rewards=GRADED, kl=BETA)
    reward, kl, exact_loss = toy.exact(BETA)
    p = toy.probabilities(toy.policy)
    assert metrics["group_reward"].item() == pytest.approx(reward.item(), rel=0.01)
    assert metrics["group_kl"].item() == pytest.approx(kl.item(), rel=0.01)
    assert metrics["group_entropy"].item() == pytest.approx(-(p * p.log()).sum().item(), rel=0.01)
    assert metrics["group_recall"].item() == pytest.approx(1 - (1 - p[7].item()) ** GROUP, abs=0.01)
    assert loss.item() == pytest.approx(exact_loss.item(), rel=0.02)


def test_a_reward_of_the_target_alone_needs_no_luck():
    """The target joins with its exact probability, so a group without it has the reward and gradient of the limit."""
    toy = Toy()
    loss, metrics = toy.loss(1, values=None, kl=0.0, scale_rewards=False)
    assert metrics["group_recall"] == 0
    reward = toy.exact(0.0, rewards=(0, 0, 1), values=None)[0]
    assert metrics["group_reward"].item() == pytest.approx(reward.item(), rel=1e-5)
    assert -loss.item() == pytest.approx(reward.item(), rel=1e-5)


def test_a_policy_that_equals_the_reference_has_no_divergence_and_no_gradient_of_it():
    toy = Toy()
    toy.reference = toy.policy
    gradients = [toy.gradient(toy.loss(50, rewards=GRADED, kl=beta, scale_rewards=False)[0]) for beta in (0.0, 1.0)]
    assert toy.loss(50, rewards=GRADED, kl=1.0)[1]["group_kl"] == 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-6)


def twin_of_a_group(rewards: list[float], is_target: list[bool], p: float, target_reward: float) -> list[float]:
    """Weighted, scaled advantages of the drawn items and then of the target, as the docstring has them."""
    count = len(rewards)
    counted = [0.0 if hit else reward for reward, hit in zip(rewards, is_target, strict=True)]
    mean = p * target_reward + sum(counted) / count
    variance = p * (target_reward - mean) ** 2
    variance += sum((r - mean) ** 2 for r, hit in zip(rewards, is_target, strict=True) if not hit) / count
    scale = 1 / (math.sqrt(variance) + 1e-4)
    advantages = [
        0.0 if hit else (reward - (p * target_reward + (sum(counted) - own) / (count - 1))) * scale / count
        for reward, own, hit in zip(rewards, counted, is_target, strict=True)
    ]
    return [*advantages, p * (target_reward - mean) * scale]


def test_scaled_advantages_are_those_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    target = torch.tensor([[5, 6, 7], [5, 5, 8]])
    ids = torch.tensor([[[5, 6, 7], [5, 6, 8], [5, 7, 7], [6, 6, 7]], [[5, 5, 9], [6, 6, 6], [7, 6, 7], [8, 8, 8]]])
    log_probs = torch.randn(2, 4, 3, generator=generator).requires_grad_()
    target_log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    values, score = torch.rand(2, 4, generator=generator), torch.tensor([1.0, 0.5])
    target_values = torch.tensor([0.3, 0.1])
    loss, _ = GroupLoss(GRADED, kl=0.0)(
        ids,
        log_probs,
        [torch.zeros(2, 1, 1), torch.zeros(2, 4, 1), torch.zeros(2, 4, 1)],
        target,
        target_log_probs,
        score,
        torch.ones(2, dtype=torch.bool),
        torch.ones(2, dtype=torch.bool),
        values=values,
        target_values=target_values,
    )
    loss.backward()
    shared = [[3, 2, 1, 0], [2, 0, 0, 0]]
    for row in range(2):
        rewards = [
            score[row].item() * (0.0, *GRADED)[n] + value
            for n, value in zip(shared[row], values[row].tolist(), strict=True)
        ]
        target_reward = score[row].item() + target_values[row].item()
        p = math.exp(target_log_probs[row].item())
        *advantages, of_target = twin_of_a_group(rewards, [n == 3 for n in shared[row]], p, target_reward)
        expected = -torch.tensor(advantages)[:, None].expand(-1, 3) / 2  # the mean of two rows
        torch.testing.assert_close(log_probs.grad[row], expected)
        assert target_log_probs.grad[row].item() == pytest.approx(-of_target / 2, rel=1e-5)


@pytest.mark.parametrize("scale_rewards", [True, False])
def test_training_raises_the_exact_expected_reward(scale_rewards):
    toy = Toy()
    toy.reference = TableHeads(SIZES, 1)  # where the policy starts
    optimizer = torch.optim.SGD(toy.policy.tables, lr=1.0 if scale_rewards else 5.0)
    rewards = []
    for step in range(141):
        if step % 20 == 0:
            rewards.append(toy.exact(0.0)[0].item())
        loss, _ = toy.loss(16, step=step, rewards=GRADED, kl=0.02, scale_rewards=scale_rewards)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(later > earlier - 0.01 for earlier, later in itertools.pairwise(rewards))
    assert rewards[0] < 0.4
    assert rewards[-1] > 1.0  # the target has 1.02, every other item at most 0.4


def test_the_divergence_limits_how_far_training_goes():
    kls = []
    for beta in (0.0, 1.0):
        toy = Toy()
        toy.reference = TableHeads(SIZES, 1)
        optimizer = torch.optim.SGD(toy.policy.tables, lr=1.0)
        for step in range(60):
            loss, _ = toy.loss(16, step=step, rewards=GRADED, kl=beta, scale_rewards=False)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        kls.append(toy.exact(0.0)[1].item())
    assert kls[1] < 0.2 * kls[0]


def test_rows_without_a_target_contribute_nothing():
    toy = Toy()
    arguments = group_of(toy, rows=6)
    valid = torch.tensor([True, False, True, True, False, True])
    loss, metrics = GroupLoss(GRADED, BETA)(**arguments, valid=valid)
    kept = {name: taken(value, valid) for name, value in arguments.items()}
    expected, expected_metrics = GroupLoss(GRADED, BETA)(**kept, valid=valid[valid])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics, expected_metrics)


def test_microbatches_add_up_to_the_batch():
    toy = Toy()
    arguments, valid = group_of(toy, rows=6), torch.tensor([True, False, True, True, True, True])
    whole, _ = GroupLoss(GRADED, BETA)(**arguments, valid=valid)
    totals = torch.zeros(6)
    totals[TARGETS], totals[ROWS] = 5, 6
    parts = []
    for rows in (slice(0, 2), slice(2, 6)):
        piece = {name: taken(value, rows) for name, value in arguments.items()}
        loss, _ = GroupLoss(GRADED, BETA)(**piece, valid=valid[rows], batch_totals=totals)
        parts.append(loss * len(valid[rows]) / 6)
    total = toy.gradient(sum(parts), retain_graph=True)
    torch.testing.assert_close(total, toy.gradient(whole))


def taken(value, rows):
    return [one[rows] for one in value] if isinstance(value, list) else value[rows]


def group_of(toy: Toy, rows: int) -> dict:
    hidden, target = users(1).expand(rows, -1), toy.target.expand(rows, -1)
    samples = sample_items(toy.policy, hidden, TRIE, GROUP, RowNoise(torch.arange(rows), torch.tensor(0), 3))
    return {
        "ids": samples.ids,
        "log_probs": samples.log_probs,
        "distributions": list(samples.distributions),
        "target": target,
        "target_log_probs": score_items(toy.policy, hidden, target[:, None], TRIE)[:, 0],
        "score": torch.ones(rows),
        "in_catalogue": torch.ones(rows, dtype=torch.bool),
        "reference": list(distributions_at(toy.reference, hidden, TRIE, samples.ids)),
    }


def test_a_missing_reference_is_an_error_unless_kl_is_0():
    arguments = group_of(Toy(), rows=2) | {"reference": None, "valid": torch.ones(2, dtype=torch.bool)}
    GroupLoss(kl=0.0)(**arguments)
    with pytest.raises(ValueError, match="group_kl"):
        GroupLoss(kl=0.1)(**arguments)


@pytest.mark.parametrize("arguments", [{"rewards": (0.5, 0.2, 1.0)}, {"rewards": (0, 1)}, {"kl": -1.0}])
def test_settings_that_mean_nothing_are_errors(arguments):
    with pytest.raises(ValueError, match=r"must be .*found"):
        GroupLoss(**arguments)
