"""Microbatches of similar lengths: less padding, the same batch."""

import numpy as np
import pytest
import torch
from composer.devices import DeviceCPU
from composer.utils import dist

from tests.conftest import CODEBOOKS
from ugt_composer.data.codec import Row, encode_row
from ugt_composer.data.collate import PackedRow, collate
from ugt_composer.job.cpu_all_reduce import CpuAllReduce
from ugt_composer.losses.normalization import batch_counts
from ugt_composer.losses.unified import UnifiedLoss
from ugt_composer.training.microbatch import GlobalCounts, split_batch

ROWS = 24


def make_batch(longest_first: bool):
    random = np.random.default_rng(0)

    def table(length: int, columns: int) -> np.ndarray:
        ids = np.stack([random.integers(5, CODEBOOKS[column % 3], length) for column in range(columns)], axis=1)
        ids[:, 3:5] = np.stack([np.arange(length), np.ones(length)], axis=1)
        if columns == 8:
            ids[:, 5:] = ids[:, :3]
            ids[1::3, 5:] = -100
        return ids

    none = np.zeros((0, 3), np.int64)
    rows = [Row(str(i), table(random.integers(1, 21), 5), table(random.integers(1, 5), 8), none) for i in range(ROWS)]
    packed = [PackedRow(i, encode_row(row, 2)) for i, row in enumerate(rows)]
    return collate(packed, longest_first=longest_first, with_lengths=True)


def test_a_microbatch_is_as_wide_as_its_longest_row():
    pieces = split_batch(make_batch(longest_first=True), 5)
    assert [len(piece["row_ids"]) for piece in pieces] == [5, 5, 5, 5, 4]
    widths = []
    for piece in pieces:
        for side in ("encoder", "decoder"):
            mask = piece[f"{side}_mask"]
            assert mask.shape[1] == mask.sum(1).max()
            assert piece[f"{side}_ids"].shape[:2] == piece[f"{side}_positions"].shape == mask.shape
        assert piece["labels"].shape[:2] == piece["decoder_mask"].shape
        assert "encoder_lengths" not in piece
        assert torch.equal(piece["encoder_tokens"], piece["encoder_mask"].flatten().nonzero().squeeze(1))
        is_labelled = (piece["labels"] != -100).any(-1)
        assert torch.equal(piece["label_tokens"], is_labelled.flatten().nonzero().squeeze(1))
        widths.append(piece["encoder_mask"].shape[1])
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0] / 2


def counted(batch):
    return GlobalCounts(lambda: 10.0).add(batch, DeviceCPU())


def test_microbatches_are_views_of_one_batch():
    batch = counted(make_batch(longest_first=True))
    for piece in split_batch(batch, 5):
        for name in piece.keys() - {"encoder_tokens", "label_tokens"}:
            assert piece[name].untyped_storage().data_ptr() == batch[name].untyped_storage().data_ptr(), name


def test_a_batch_goes_to_the_device_once_and_nothing_else_does():
    class Watched(DeviceCPU):
        moved = 0

        def batch_to_device(self, batch):
            self.moved += 1
            return super().batch_to_device(batch)

    device = Watched()
    pieces = split_batch(GlobalCounts(lambda: 10.0).add(make_batch(longest_first=True), device), 5)
    assert (device.moved, len(pieces)) == (1, 5)


def test_the_counts_are_those_of_the_batch():
    batch = make_batch(longest_first=True)
    counts = GlobalCounts(lambda: 10.0)
    torch.testing.assert_close(counts.add(batch, DeviceCPU())["batch_totals"], batch_counts(batch))
    assert counts.rows == ROWS


def test_ranks_with_different_numbers_of_rows_are_refused(monkeypatch):
    counts = GlobalCounts(lambda: 10.0)
    own = [9.0, 9.0, 9.0, 0.0, 4.0, 4.0, 16.0]
    other = [9.0, 9.0, 9.0, 0.0, 6.0, 6.0, 36.0]
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(CpuAllReduce, "result", lambda self: [a + b for a, b in zip(own, other, strict=True)])
    with pytest.raises(RuntimeError, match="rank 0 holds 24 rows of a batch, the 2 ranks together 10"):
        counts.add(make_batch(longest_first=False), DeviceCPU())
    monkeypatch.setattr(CpuAllReduce, "result", lambda self: [2 * a for a in own])
    counts.add(make_batch(longest_first=False), DeviceCPU())
    assert counts.rows == 8


@pytest.mark.parametrize("size", [5, 24])
def test_loss_and_gradients_are_those_of_the_plain_batch(tiny_model, size):
    model, loss = tiny_model(), UnifiedLoss(repr_dim=32, lambda_moe_balance=0.0)

    def step(batch, microbatch_size):
        model.zero_grad()
        total = 0.0
        for piece in split_batch(batch, microbatch_size):
            share = loss(model(piece), piece)["total_loss"] * len(piece["row_ids"]) / ROWS
            share.backward()
            total += share.item()
        return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    whole, gradients = step(counted(make_batch(longest_first=False)), ROWS)
    found, others = step(counted(make_batch(longest_first=True)), size)
    assert found == pytest.approx(whole, rel=1e-6)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6)
