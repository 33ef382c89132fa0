import numpy as np
import torch
from scipy import stats

from ugt_composer.row_random import RowNoise

ROWS, DRAWS, SIZE = 400, 8, 25


def gumbel(row_ids, step=3, seed=42, stream=0, draws=DRAWS, size=SIZE):
    return RowNoise(row_ids, torch.tensor(step), seed).gumbel(stream, draws, size)


def test_noise_has_the_gumbel_distribution():
    noise = gumbel(torch.arange(ROWS)).flatten().numpy()
    assert stats.kstest(noise, "gumbel_r").pvalue > 0.01


def test_noise_of_neighbouring_rows_steps_draws_slots_and_streams_is_uncorrelated():
    rows = torch.arange(ROWS)
    noise = gumbel(rows)
    for other in (
        gumbel(rows + 1),
        gumbel(rows, step=4),
        gumbel(rows, seed=43),
        gumbel(rows, stream=1),
        noise.roll(1, 1),
        noise.roll(1, 2),
    ):
        correlation = np.corrcoef(noise.flatten().numpy(), other.flatten().numpy())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(noise.numel())


def test_noise_of_a_row_does_not_depend_on_the_other_rows_nor_on_the_number_of_draws():
    rows = torch.tensor([7, 2**40 + 3, 5])
    noise = gumbel(rows)
    assert torch.equal(noise[[2, 0]], gumbel(rows[[2, 0]]))
    assert torch.equal(noise[:, :3, :9], gumbel(rows, draws=3, size=9))
    assert torch.isfinite(noise).all()
