import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.losses.loss_toy import WIDTH, ToyModel, make_batch
from ugt_composer.losses.normalization import batch_counts
from ugt_composer.losses.unified import UnifiedLoss

PARTS = tuple(term.name for _, term, _ in UnifiedLoss().terms)
KEYS = {"total_loss", *PARTS, "ntp_l1_loss", "ntp_l2_loss", "ntp_l3_loss", "metrics"}
ACCURACIES = {"ntp_l1_acc", "ntp_l2_acc", "ntp_l3_acc"}
ALL_ON = {
    "lambda_contrastive": 0.3,
    "lambda_preference": 0.2,
    "lambda_anchor": 0.4,
    "lambda_moe_balance": 0.1,
    "num_negatives": 20,
}


def test_total_is_the_weighted_sum_of_the_parts():
    losses = ToyModel(**ALL_ON)(make_batch(16))
    assert losses.keys() == KEYS | {"anchor_l1_loss", "anchor_l2_loss", "anchor_l3_loss"}
    ntp, contrastive, dpo, anchor, balance = (
        losses[f"{name}_loss"].item() for name in ("ntp", "contrastive", "dpo", "anchor", "moe_balance")
    )
    assert min(ntp, contrastive, dpo, anchor, balance) > 0
    expected = ntp + 0.3 * contrastive + 0.2 * dpo + 0.4 * anchor + 0.1 * balance
    assert losses["total_loss"].item() == pytest.approx(expected)
    levels = [losses[f"ntp_l{level}_loss"].item() for level in (1, 2, 3)]
    assert ntp == pytest.approx(0.5 * levels[0] + 0.3 * levels[1] + 0.2 * levels[2])


def test_values_are_float32_scalars_and_metrics_are_detached():
    losses = ToyModel(**ALL_ON)(make_batch(16))
    metrics = losses.pop("metrics")
    for value in (*losses.values(), *metrics.values()):
        assert value.shape == ()
        assert value.dtype == torch.float32
    assert not any(value.requires_grad for value in metrics.values())
    assert metrics.keys() == ACCURACIES | {
        "contrastive_u2i_acc",
        "contrastive_i2u_acc",
        "dpo_accuracy",
        "dpo_reward_margin",
    }


def test_parts_with_lambda_zero_are_zero_and_read_nothing():
    model, batch = ToyModel(lambda_moe_balance=0.0), make_batch(16)
    outputs = {name: value for name, value in model.outputs(batch).items() if name.endswith("logits")}
    losses = model.loss(outputs, {"labels": batch["labels"], "row_mask": batch["row_mask"]})
    assert losses.keys() == KEYS
    assert [losses[name].item() for name in PARTS[1:]] == [0] * len(PARTS[1:])
    assert losses["total_loss"] == losses["ntp_loss"]
    assert losses["metrics"].keys() == ACCURACIES


def test_scaling_the_total_in_place_leaves_the_parts_alone():
    losses = ToyModel(lambda_moe_balance=0.0)(make_batch(16))
    before = losses["ntp_loss"].item()
    with torch.no_grad():
        losses["total_loss"].mul_(0.25)
    assert losses["ntp_loss"].item() == before


def test_every_stage_has_the_same_state_dict():
    stages = (UnifiedLoss(repr_dim=WIDTH), UnifiedLoss(repr_dim=WIDTH, lambda_contrastive=0.1, lambda_preference=0.1))
    shapes = [{name: value.shape for name, value in stage.state_dict().items()} for stage in stages]
    assert shapes[0] == shapes[1]
    assert shapes[0]["contrastive.memory_vectors"] == (127, WIDTH)
    assert not list(stages[1].parameters())


@pytest.mark.parametrize("totals", [False, True])
def test_a_batch_of_filler_rows_gives_zeros_and_finite_gradients(totals):
    model, batch = ToyModel(**(ALL_ON | {"lambda_moe_balance": 0.0})), make_batch(16)
    batch["row_mask"][:] = False
    if totals:
        batch["batch_totals"] = batch_counts(batch)
    losses = model(batch)
    losses["total_loss"].backward()
    assert losses["total_loss"].item() == 0
    assert all(value.item() == 0 for value in losses["metrics"].values())
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_values_of_filler_rows_do_not_matter():
    batch = make_batch(16)
    values = []
    for filler in (0.0, 3.0):
        changed = {name: value.clone() for name, value in batch.items()}
        changed["features"][-2:, 0] = filler
        changed["labels"][-2:] = 7 if filler else -100
        changed["rejected_mask"][-2:] = bool(filler)
        losses = ToyModel(**(ALL_ON | {"lambda_moe_balance": 0.0}))(changed)
        values.append([losses[name].item() for name in PARTS] + [v.item() for v in losses["metrics"].values()])
    assert values[0] == pytest.approx(values[1])


def test_a_batch_without_rejected_items_has_no_preference_loss_and_the_same_metric_names():
    model, batch = ToyModel(**ALL_ON), make_batch(16)
    outputs = model.outputs(batch)
    with_items = model.loss(outputs, batch)["metrics"]
    batch["rejected_mask"] = batch["rejected_mask"][:, :0]
    outputs = {name: value for name, value in outputs.items() if not name.endswith("logps")}
    losses = model.loss(outputs, batch)
    assert losses["dpo_loss"] == 0
    assert losses["metrics"].keys() == with_items.keys()


@pytest.mark.parametrize("num_negatives", [5, 40])
def test_the_loss_reads_no_value_from_the_device(num_negatives):
    """Fake tensors have no values: any operation that would wait for a GPU raises an error."""
    batch = make_batch(16)
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        model = ToyModel(**(ALL_ON | {"num_negatives": num_negatives}))
        fake = {name: mode.from_tensor(value) for name, value in batch.items()}
        fake["batch_totals"] = batch_counts(fake)
        for _ in range(2):
            losses = model(fake)
            losses["total_loss"].backward()
        with pytest.raises(DataDependentOutputException):
            losses["total_loss"].item()


@pytest.mark.parametrize("key", ["lambda_contrastive", "lambda_preference", "lambda_moe_balance"])
def test_a_negative_lambda_is_an_error_that_names_it(key):
    with pytest.raises(ValueError, match=rf"loss\.{key} is -0.1; expected 0 or more"):
        UnifiedLoss(**{key: -0.1})
