"""Buckets of time differences compared with integers of any size, and the differences with loops over tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ugt_composer.model.time_buckets import history_times, since_newest, since_previous, since_token, time_bucket
from ugt_composer.vocabulary import ITEM, USER

DAY = 86400


def bucket_by_integers(seconds, buckets):
    if seconds <= 0:
        return seconds + 1
    exponent = seconds.bit_length() - 1
    fraction = ((seconds << 20) >> exponent) - (1 << 20)
    return min(buckets, 2 + ((exponent << 20) + fraction) * (buckets - 1) // (31 << 20))


@given(st.lists(st.integers(-1, 2**52), min_size=1), st.integers(2, 1024))
def test_buckets_are_those_of_exact_integers(seconds, buckets):
    found = time_bucket(torch.tensor(seconds), buckets).tolist()
    assert found == [bucket_by_integers(one, buckets) for one in seconds]


@given(st.integers(0, 2**62), st.integers(0, 2**62), st.integers(2, 1024))
def test_a_longer_time_is_never_in_an_earlier_bucket(a, b, buckets):
    short, long = time_bucket(torch.tensor([min(a, b), max(a, b)]), buckets).tolist()
    assert 1 <= short <= long <= buckets


def test_with_32_buckets_each_begins_at_a_power_of_two():
    starts = [-1, 0, *(2**power for power in range(31))]
    assert time_bucket(torch.tensor(starts), 32).tolist() == list(range(33))
    ends = [0, *(2 ** (power + 1) - 1 for power in range(30)), 2**62]
    assert time_bucket(torch.tensor(ends), 32).tolist() == list(range(1, 33))


def test_neighbouring_seconds_differ_however_large_the_time_is():
    edge = 2**30  # float32 has no number between this and the next 128
    assert time_bucket(torch.tensor([edge - 1, edge]), 32).tolist() == [31, 32]


@pytest.fixture
def batch():
    """Four rows: usual; equal times and an unknown one; no prediction time; nothing known."""
    types = torch.full((4, 5), ITEM)
    types[:, 0] = USER
    return {
        "encoder_token_types": types,
        "encoder_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]).bool(),
        "encoder_times": torch.tensor(
            [
                [7, 100, 160, 160 + DAY, 10**9],
                [100, 100, 100, -1, 10**6],  # the last one is padding
                [50, 60, 70, 10**6, 10**6],
                [-1, -1, 5, 5, 5],
            ]
        ),
        "decoder_times": torch.tensor([[2 * 10**9, 3 * 10**9], [40, 120], [-1, 99], [10, -1]]),
    }


def test_differences_are_those_of_loops_over_tokens(batch):
    times = history_times(batch)
    since = since_token(times, batch["decoder_times"][:, :1])
    previous, elapsed = since_previous(times), since_newest(times, batch["decoder_times"])
    for row in range(4):
        known = [
            int(time) if mask and kind != USER and time >= 0 else None
            for time, mask, kind in zip(
                batch["encoder_times"][row], batch["encoder_mask"][row], batch["encoder_token_types"][row], strict=True
            )
        ]
        newest = max((time for time in known if time is not None), default=None)
        first, second = batch["decoder_times"][row].tolist()
        now = first if first >= 0 else newest
        for place, time in enumerate(known):
            before = known[place - 1] if place else None
            assert since[row, place] == (-1 if time is None else max(0, now - time))
            assert previous[row, place] == (-1 if None in (time, before) else max(0, time - before))
        for place, moment in enumerate((first, second)):
            assert elapsed[row, place] == (-1 if newest is None or moment < 0 else max(0, moment - newest))
    assert since[1].tolist() == [-1, 0, 0, -1, -1]  # predicted before the newest token, in data with such a mistake
    assert previous[0].tolist() == [-1, -1, 60, DAY, 10**9 - 160 - DAY]
