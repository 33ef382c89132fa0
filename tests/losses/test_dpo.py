import math

import pytest
import torch

from ugt_composer.losses.dpo import LOSS_TYPES, DPOLoss

BETA = 0.3


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def make_case(rows=5, rejected=3, seed=0):
    """Log-probabilities of rows with 3, 2, 1, 0 rejected items, and with one that is not in the first place."""
    generator = torch.Generator().manual_seed(seed)
    chosen, reference_chosen = -5 * torch.rand(2, rows, generator=generator)
    bad, reference_bad = -5 * torch.rand(2, rows, rejected, generator=generator)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]], dtype=torch.bool)[:rows, :rejected]
    weight = torch.tensor([1.0, 0.5, 0.25, 1.0, 0.75])[:rows]
    return chosen.requires_grad_(), bad.requires_grad_(), reference_chosen, reference_bad, mask, weight


def row_loss(loss_type, margins, smoothing=0.0):
    """The formulas as trl writes them (`dpo_loss`), on one row's list of margins, in plain Python."""
    if loss_type == "softmax":  # S-DPO: -log sigmoid(-log sum exp(beta * (rejected - chosen)))
        return -math.log(sigmoid(-math.log(sum(math.exp(-BETA * m) for m in margins))))
    if loss_type == "sigmoid":
        pairs = [
            -math.log(sigmoid(BETA * m)) * (1 - smoothing) - math.log(sigmoid(-BETA * m)) * smoothing for m in margins
        ]
    elif loss_type == "ipo":
        pairs = [(m - 1 / (2 * BETA)) ** 2 for m in margins]
    else:
        pairs = [max(0.0, 1 - BETA * m) for m in margins]
    return sum(pairs) / len(pairs)


def expected_values(case, loss_type, smoothing=0.0, reference_free=False):
    chosen, bad, reference_chosen, reference_bad, mask, weight = (value.tolist() for value in case)
    losses, accuracies, rewards, weights = [], [], [], []
    for i, row in enumerate(mask):
        margins = [
            chosen[i] - bad[i][n] - (0 if reference_free else reference_chosen[i] - reference_bad[i][n])
            for n, there in enumerate(row)
            if there
        ]
        if margins:
            losses.append(row_loss(loss_type, margins, smoothing))
            accuracies.append(sum(m > 0 for m in margins) / len(margins))
            rewards.append(BETA * sum(margins) / len(margins))
            weights.append(weight[i])

    def mean(values):
        return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)

    return mean(losses), mean(accuracies), mean(rewards)


@pytest.mark.parametrize("reference_free", [False, True])
@pytest.mark.parametrize(
    ("loss_type", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.2), ("ipo", 0.0), ("hinge", 0.0), ("softmax", 0.0)]
)
def test_loss_and_metrics_equal_the_closed_form(loss_type, smoothing, reference_free):
    case = make_case()
    loss, metrics = DPOLoss(BETA, smoothing, reference_free, loss_type)(*case)
    expected, accuracy, margin = expected_values(case, loss_type, smoothing, reference_free)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert metrics["dpo_accuracy"].item() == pytest.approx(accuracy)
    assert metrics["dpo_reward_margin"].item() == pytest.approx(margin, rel=1e-5)


def test_gradient_of_one_pair_is_minus_beta_sigmoid_of_minus_the_reward_margin():
    chosen, bad, reference_chosen, reference_bad, _, _ = make_case(rows=1, rejected=1)
    loss, _ = DPOLoss(BETA)(chosen, bad, reference_chosen, reference_bad)
    loss.backward()
    margin = (chosen - bad[:, 0] - reference_chosen + reference_bad[:, 0]).item()
    slope = BETA * sigmoid(-BETA * margin)
    assert chosen.grad.item() == pytest.approx(-slope, rel=1e-5)
    assert bad.grad.item() == pytest.approx(slope, rel=1e-5)


def test_softmax_over_one_rejected_item_is_the_sigmoid_loss():
    chosen, bad, reference_chosen, reference_bad, _, _ = make_case(rejected=1)
    losses = [
        DPOLoss(BETA, loss_type=kind)(chosen, bad, reference_chosen, reference_bad)[0]
        for kind in ("sigmoid", "softmax")
    ]
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_padding_of_rejected_items_reaches_neither_loss_nor_gradient(loss_type):
    chosen, bad, reference_chosen, reference_bad, mask, weight = make_case()
    loss, metrics = DPOLoss(BETA, loss_type=loss_type)(chosen, bad, reference_chosen, reference_bad, mask, weight)
    padded = bad.detach().masked_fill(~mask, float("-inf")).requires_grad_()
    other, other_metrics = DPOLoss(BETA, loss_type=loss_type)(
        chosen, padded, reference_chosen, reference_bad, mask, weight
    )
    assert loss == other
    assert metrics == other_metrics
    other.backward()
    assert torch.equal(padded.grad[~mask], torch.zeros_like(padded.grad[~mask]))
    assert torch.isfinite(padded.grad).all()
    assert chosen.grad[3] == 0  # the row without rejected items


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("rejected", [0, 3])
def test_no_preference_rows_give_exactly_zero_with_a_gradient(loss_type, rejected):
    chosen, bad, reference_chosen, reference_bad, _, weight = make_case(rejected=rejected)
    mask = torch.zeros_like(bad, dtype=torch.bool)
    loss, metrics = DPOLoss(BETA, loss_type=loss_type)(chosen, bad, reference_chosen, reference_bad, mask, weight)
    loss.backward()
    assert loss.item() == 0
    assert [value.item() for value in metrics.values()] == [0, 0]
    assert torch.equal(chosen.grad, torch.zeros_like(chosen))
    assert torch.equal(bad.grad, torch.zeros_like(bad))


def test_row_weights_are_relative():
    chosen, bad, reference_chosen, reference_bad, mask, weight = make_case()
    losses = [
        DPOLoss(BETA)(chosen, bad, reference_chosen, reference_bad, mask, scale * weight)[0] for scale in (1.0, 1e-3)
    ]
    torch.testing.assert_close(losses[0], losses[1])


def test_extreme_margins_stay_finite():
    chosen = torch.tensor([0.0, -1e6], requires_grad=True)
    bad = torch.tensor([[-1e6, -1e6], [0.0, 0.0]])
    for loss_type in ("sigmoid", "hinge", "softmax"):
        loss, _ = DPOLoss(BETA, reference_free=True, loss_type=loss_type)(chosen, bad)
        (gradient,) = torch.autograd.grad(loss, chosen)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_the_reference_gets_no_gradient():
    chosen, bad, reference_chosen, reference_bad, _, _ = make_case()
    reference_chosen.requires_grad_()
    DPOLoss(BETA)(chosen, bad, reference_chosen, reference_bad)[0].backward()
    assert reference_chosen.grad is None


def test_a_missing_reference_is_an_error_unless_reference_free():
    chosen, bad, *_ = make_case()
    with pytest.raises(ValueError, match="dpo_reference_free"):
        DPOLoss(BETA)(chosen, bad)
    DPOLoss(BETA, reference_free=True)(chosen, bad)


def test_unknown_loss_type_names_the_nearest():
    with pytest.raises(ValueError, match=r"loss_type.*'sigmoyd'.*did you mean sigmoid"):
        DPOLoss(loss_type="sigmoyd")


@pytest.mark.parametrize(
    "arguments", [{"beta": 0.0}, {"label_smoothing": 0.5}, {"label_smoothing": 0.1, "loss_type": "hinge"}]
)
def test_settings_that_mean_nothing_are_errors(arguments):
    with pytest.raises(ValueError, match=r"must be .*found"):
        DPOLoss(**arguments)
