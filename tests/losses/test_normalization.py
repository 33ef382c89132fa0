import pytest
import torch

from tests.losses.loss_toy import ToyModel, make_batch, take
from ugt_composer.losses.normalization import batch_counts, batch_mean

ROWS = 16
PARTS = ("ntp_loss", "ntp_l1_loss", "ntp_l2_loss", "ntp_l3_loss", "dpo_loss", "anchor_loss", "total_loss")


def accumulate(sizes, loss_type="sigmoid"):
    """Gradients, losses and metrics of one batch in microbatches, weighted by rows as a trainer does."""
    model = ToyModel(lambda_preference=0.5, lambda_anchor=0.4, dpo_loss_type=loss_type, lambda_moe_balance=0.0)
    batch = make_batch(ROWS)
    totals = batch_counts(batch)
    values: dict[str, float] = {}
    start = 0
    for size in sizes:
        share = size / ROWS
        losses = model({**take(batch, slice(start, start + size)), "batch_totals": totals})
        (losses["total_loss"] * share).backward()
        named = {name: losses[name] for name in PARTS} | losses["metrics"]
        values = {name: values.get(name, 0.0) + share * value.item() for name, value in named.items()}
        start += size
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return gradients, values


@pytest.mark.parametrize("loss_type", ["sigmoid", "softmax"])
@pytest.mark.parametrize("sizes", [(8, 8), (4, 4, 4, 4), (11, 5), (1, 2, 13), (1,) * ROWS])
def test_microbatches_give_the_gradients_losses_and_metrics_of_the_whole_batch(sizes, loss_type):
    whole_gradients, whole = accumulate((ROWS,), loss_type)
    gradients, values = accumulate(sizes, loss_type)
    assert values == pytest.approx(whole, rel=1e-5)
    for name, gradient in whole_gradients.items():
        assert (gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_totals_of_the_batch_itself_change_nothing():
    model, batch = ToyModel(lambda_preference=0.5), make_batch(ROWS)
    plain, counted = model(batch), model({**batch, "batch_totals": batch_counts(batch)})
    for name in PARTS:
        torch.testing.assert_close(plain[name], counted[name])
    assert plain["metrics"].keys() == counted["metrics"].keys()


def test_counts_leave_out_filler_rows_and_ignored_labels_but_not_the_rows():
    batch = {
        "labels": torch.tensor([[[5, 5, 5], [5, 5, -100]], [[5, -100, -100], [-100] * 3], [[5, 5, 5], [5, 5, 5]]]),
        "row_mask": torch.tensor([True, True, False]),
        "rejected_mask": torch.tensor([[True, True], [False, False], [True, False]]),
        "preference_score": torch.tensor([0.25, 1.0, 1.0]),
    }
    assert batch_counts(batch).tolist() == [3, 2, 1, 0.25, 3, 1]


def test_counts_of_parts_add_up():
    batch = make_batch(ROWS)
    parts = batch_counts(take(batch, slice(0, 5))) + batch_counts(take(batch, slice(5, None)))
    torch.testing.assert_close(parts, batch_counts(batch))


def test_an_empty_sum_is_zero_and_keeps_its_gradient():
    total = torch.zeros((), requires_grad=True)
    for totals in (None, torch.tensor([0.0, 0, 0, 0, 4])):
        mean = batch_mean(total * 3, torch.tensor(0), 4, totals, 0)
        mean.backward()
        assert mean.item() == 0
        assert torch.isfinite(total.grad)


def test_counts_without_rejected_items():
    batch = make_batch(ROWS)
    batch["rejected_mask"] = batch["rejected_mask"][:, :0]
    assert batch_counts(batch)[3] == 0
