import pytest
import torch
import torch.nn.functional as F

from ugt_composer.losses.ntp import NextTokenPredictionLoss

SIZES = (7, 11, 13)


def make_case(rows=4, length=5, seed=0):
    """Logits and labels with ignored positions, some of them at one level only."""
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(rows, length, size, generator=generator, requires_grad=True) for size in SIZES]
    labels = torch.stack([torch.randint(size, (rows, length), generator=generator) for size in SIZES], dim=-1)
    labels[0, 3:] = -100
    labels[1, 0, 2] = -100
    labels[2, :, 1] = -100
    return logits, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_weighted_sum_of_the_levels_mean_cross_entropies(smoothing):
    logits, labels = make_case()
    loss, metrics = NextTokenPredictionLoss(0.5, 0.3, 0.2, smoothing)(*logits, labels)
    parts = [
        F.cross_entropy(level.flatten(0, 1), labels[..., i].flatten(), label_smoothing=smoothing)
        for i, level in enumerate(logits)
    ]
    expected = 0.5 * parts[0] + 0.3 * parts[1] + 0.2 * parts[2]
    torch.testing.assert_close(loss, expected)
    for i, part in enumerate(parts):
        torch.testing.assert_close(metrics[f"ntp_l{i + 1}_loss"], part.detach())
        assert not metrics[f"ntp_l{i + 1}_loss"].requires_grad
    for actual, wanted in zip(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(actual, wanted)


def test_accuracy_counts_only_labels_that_are_not_ignored():
    logits = [torch.zeros(1, 4, size) for size in SIZES]
    for level in logits:
        level[0, torch.arange(4), torch.tensor([1, 2, 3, 4])] = 5.0
    labels = torch.tensor([[[1, 1, 0], [2, 0, 0], [0, 0, 0], [-100, -100, 0]]])
    _, metrics = NextTokenPredictionLoss()(*logits, labels)
    found = [metrics[f"ntp_l{i}_acc"].item() for i in (1, 2, 3)]
    assert found == pytest.approx([2 / 3, 1 / 3, 0.0])


def test_only_ignored_labels_give_zero_and_zero_gradients():
    logits, labels = make_case()
    loss, metrics = NextTokenPredictionLoss(label_smoothing=0.1)(*logits, torch.full_like(labels, -100))
    loss.backward()
    assert loss.item() == 0
    assert all(value.item() == 0 for value in metrics.values())
    assert all(torch.equal(level.grad, torch.zeros_like(level)) for level in logits)


def test_an_all_ignored_level_does_not_change_the_others():
    logits, labels = make_case()
    _, before = NextTokenPredictionLoss()(*logits, labels)
    labels[..., 1] = -100
    loss, after = NextTokenPredictionLoss()(*logits, labels)
    assert after["ntp_l1_loss"] == before["ntp_l1_loss"]
    assert after["ntp_l2_loss"] == 0
    assert torch.isfinite(loss)


def test_half_precision_logits_give_a_float32_loss():
    logits, labels = make_case()
    loss, _ = NextTokenPredictionLoss()(*[level.bfloat16() for level in logits], labels)
    exact, _ = NextTokenPredictionLoss()(*[level.bfloat16().float() for level in logits], labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact)


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.3), (0.5, 0.3, 0.1), (1.5, -0.3, -0.2), (float("nan"), 0.3, 0.2)])
def test_level_weights_that_do_not_sum_to_one_are_an_error_that_names_them(weights):
    with pytest.raises(ValueError, match=r"l1_weight.*l2_weight.*l3_weight.*found") as error:
        NextTokenPredictionLoss(*weights)
    assert f"{weights[0]:g} + {weights[1]:g} + {weights[2]:g}" in str(error.value)


def test_level_weights_may_be_off_by_rounding():
    NextTokenPredictionLoss(0.1 + 0.2, 0.3, 0.4 + 5e-7)


def test_label_smoothing_out_of_range_is_an_error():
    with pytest.raises(ValueError, match=r"label_smoothing.*found 1"):
        NextTokenPredictionLoss(label_smoothing=1.0)
