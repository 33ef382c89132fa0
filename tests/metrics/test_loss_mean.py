import math

import torch

from ugt_composer.metrics.loss_mean import loss_mean


def test_what_nothing_was_counted_for_is_left_out():
    names = ["ntp_l1_loss", "ntp_l2_loss", "ntp_l3_loss", "dpo_loss"]
    sums = torch.arange(1.0, len(names) + 1).double()
    counts = torch.full_like(sums, 2)
    counts[names.index("ntp_l2_loss")] = 0
    weights = {"ntp_l1_loss": 0.5, "ntp_l2_loss": 0.3, "ntp_l3_loss": 0.2}
    assert loss_mean(names, weights, sums, counts).item() == 0.5 * 1 / 2 + 0.2 * 3 / 2
    assert math.isnan(loss_mean(names, {"ntp_l2_loss": 1.0}, sums, counts))
    assert math.isnan(loss_mean(names, {}, sums, counts))
