"""The anchor is the divergence from the reference, computed here by loops over probabilities in float64."""

import math

import pytest
import torch

from ugt_composer.config.load import load_config
from ugt_composer.errors import UserError
from ugt_composer.losses.anchor import AnchorLoss, divergence
from ugt_composer.losses.ntp import NextTokenPredictionLoss

SIZES = (7, 11, 5)
WEIGHTS = (0.5, 0.3, 0.2)


def make_case(rows=4, length=3, seed=0):
    """Logits of policy and reference without a few classes, and labels of which some are ignored."""
    generator = torch.Generator().manual_seed(seed)
    policy, reference = ([torch.randn(rows, length, size, generator=generator) for size in SIZES] for _ in range(2))
    for one, other in zip(policy, reference, strict=True):
        one[1, :, 2:4] = other[1, :, 2:4] = float("-inf")
    labels = torch.zeros(rows, length, 3, dtype=torch.long)
    labels[0, 1:] = -100
    labels[2, :, 1] = -100
    return [one.requires_grad_() for one in policy], reference, labels


def probabilities(logits: torch.Tensor) -> list[float]:
    weights = [math.exp(value) for value in logits.tolist()]
    return [weight / sum(weights) for weight in weights]


def test_it_is_the_weighted_sum_of_the_levels_mean_divergences():
    policy, reference, labels = make_case()
    loss, metrics = AnchorLoss(*WEIGHTS)(tuple(policy), tuple(reference), labels)
    expected = 0.0
    for level in range(3):
        values = []
        for row, place in (labels[..., level] != -100).nonzero().tolist():
            p, q = (probabilities(logits[level][row, place].double()) for logits in (reference, policy))
            values.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))
        mean = sum(values) / len(values)
        assert metrics[f"anchor_l{level + 1}_loss"].item() == pytest.approx(mean, rel=1e-5)
        expected += WEIGHTS[level] * mean
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [AnchorLoss(), NextTokenPredictionLoss(label_smoothing=0.1)])
def test_logits_of_labelled_tokens_only_give_the_loss_of_all(loss):
    policy, reference, labels = make_case()
    totals = torch.tensor([30.0, 20.0, 40.0, 0.0, 9.0, 4.0])
    batch = {"batch_totals": totals, "label_tokens": (labels != -100).any(-1).flatten().nonzero().squeeze(1)}
    assert len(batch["label_tokens"]) < labels[..., 0].numel()
    outputs = {f"l{level}_logits": logits for level, logits in enumerate(policy, start=1)}
    outputs |= {f"reference_l{level}_logits": logits for level, logits in enumerate(reference, start=1)}
    labelled = {name: logits.flatten(0, 1)[batch["label_tokens"]] for name, logits in outputs.items()}
    expected, _ = loss.of_batch(outputs, {"batch_totals": totals}, labels)
    found, _ = loss.of_batch(labelled, batch, labels)
    torch.testing.assert_close(found, expected)


def test_its_gradient_is_the_difference_of_the_probabilities():
    policy, reference, _ = make_case()
    for one, other in zip(policy, reference, strict=True):
        gradient = torch.autograd.grad(divergence(other, one).sum(), one)[0]
        torch.testing.assert_close(gradient, one.softmax(-1) - other.softmax(-1))


def test_a_policy_that_equals_its_reference_has_zero_and_no_gradient():
    policy, _, labels = make_case()
    loss, _ = AnchorLoss()(tuple(policy), tuple(one.detach().clone() for one in policy), labels)
    loss.backward()
    assert loss.item() == 0
    assert all(one.grad.abs().max() < 1e-7 for one in policy)


def test_ignored_labels_alone_give_zero():
    policy, reference, labels = make_case()
    loss, _ = AnchorLoss()(tuple(policy), tuple(reference), torch.full_like(labels, -100))
    loss.backward()
    assert loss.item() == 0
    assert all(torch.equal(one.grad, torch.zeros_like(one)) for one in policy)


def test_log_probabilities_stored_with_the_rows_do_not_suffice():
    with pytest.raises(UserError, match=r"reference_log_probs is data with loss.lambda_anchor"):
        load_config(
            overrides=[
                "loss.reference_log_probs=data",
                "loss.lambda_anchor=1",
                "loss.lambda_preference=1",
                "init_from=x",
            ]
        )


def test_it_needs_a_reference():
    with pytest.raises(UserError, match=r"loss.lambda_anchor > 0 needs a reference model.*loss.lambda_anchor=0"):
        load_config(overrides=["loss.lambda_anchor=1"])
