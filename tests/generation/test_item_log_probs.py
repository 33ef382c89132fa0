"""Log-probabilities of given items."""

import pytest
import torch

from tests.conftest import make_batch, random_ids
from ugt_composer.model.reference import Reference


def test_a_policy_and_an_equal_reference_agree_to_the_last_bit(tiny_model):
    batch = make_batch(rows=24, history=30, target=6, rejected=3, seed=5)
    for capacity in (None, 0.5, 1.25):
        policy, reference = (tiny_model(seed=1, expert_capacity_factor=capacity).train() for _ in range(2))
        outputs, logps = policy(batch), Reference(reference).train()(batch)["logps"]
        ours = torch.cat((outputs["chosen_logps"][:, None], outputs["rejected_logps"]), dim=1)
        assert ours.requires_grad
        assert not logps.requires_grad
        assert torch.equal(ours, logps), capacity


@pytest.mark.parametrize("capacity", [0.1, 0.5, 1.25])
def test_a_pairs_scores_depend_neither_on_other_rows_nor_on_the_capacity(tiny_model, capacity):
    batch = make_batch(rows=24, history=30, target=6, rejected=3, seed=5)
    outputs = tiny_model(seed=1, expert_capacity_factor=capacity).train()(batch)
    alone = tiny_model(seed=1)
    for row in range(0, 24, 5):
        wanted = alone({name: values[row : row + 1] for name, values in batch.items()})
        for name in ("chosen_logps", "rejected_logps"):
            torch.testing.assert_close(outputs[name][row : row + 1], wanted[name])


def test_the_logits_of_items_are_not_kept_for_the_backward_pass(tiny_model):
    model, kept = tiny_model(codebook_sizes=(64, 512, 2048)), []
    hidden, ids = torch.randn(8, 32, requires_grad=True), random_ids(torch.Generator().manual_seed(0), 8, 40)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        assert model.item_logps(hidden, ids).requires_grad
    assert max(kept) == 2048 * 32  # the weight; logits of the 8 · 40 items would be ten times as many


def test_scores_are_the_sums_of_the_three_conditional_log_probabilities(tiny_model):
    model, ids = tiny_model(seed=1), random_ids(torch.Generator().manual_seed(0), 4, 3)
    hidden = torch.randn(4, 32)
    scores = model.item_logps(hidden, ids)
    for row in range(4):
        for item in range(3):
            expected = sum(
                model.level_logits(level, hidden[row], ids[row, item, :level]).log_softmax(-1)[ids[row, item, level]]
                for level in range(3)
            )
            torch.testing.assert_close(scores[row, item], expected)
