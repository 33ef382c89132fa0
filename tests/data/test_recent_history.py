"""Histories of a batch are cut like those of rows in the conversion."""

import json

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt_composer.conversion.canonical import canonical_row
from ugt_composer.conversion.counts import Counts
from ugt_composer.conversion.rows import check_row
from ugt_composer.conversion.settings import Settings
from ugt_composer.data.codec import encode_row
from ugt_composer.data.collate import PackedRow, collate
from ugt_composer.data.history import decoder_lists
from ugt_composer.data.recent_history import with_recent_history
from ugt_composer.jsonl.schema import ENCODER_KEYS


def row_of(token_types, first, step, seed):
    random = np.random.default_rng(seed)
    length = len(token_types)
    columns = [random.integers(5, 9, length).tolist() for _ in range(3)]
    columns += [[first + step * place for place in range(length)], token_types, [1] * length]
    inputs = {"encoder_actions": random.integers(0, 9, length).tolist(), "encoder_times": list(range(40, 40 + length))}
    return {"user_id": "u", **dict(zip(ENCODER_KEYS, columns, strict=True)), **inputs, **decoder_lists([(5, 5, 5)])}


ROWS = st.builds(
    row_of,
    st.one_of(st.just([0]), st.lists(st.integers(0, 3), min_size=1, max_size=12)),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(0, 99),
)


def batch_of(rows, max_history, min_rejected=0):
    sizes = Settings("recommend", (9, 9, 9), max_history=max_history, max_positions=64)
    packed = [encode_row(canonical_row(check_row(json.dumps(row).encode(), sizes), sizes, Counts()), 2) for row in rows]
    return collate([PackedRow(number, data) for number, data in enumerate(packed)], min_rejected)


@given(st.lists(ROWS, min_size=1, max_size=4), st.integers(1, 14))
@settings(max_examples=60, deadline=None)
def test_the_rows_are_those_that_the_conversion_cuts(rows, size):
    cut, expected = with_recent_history(batch_of(rows, 64), size), batch_of(rows, size)
    # `encoder_tokens` is left out of batches that are cut
    assert expected.keys() - {"encoder_tokens"} <= cut.keys() <= expected.keys()
    for name, values in cut.items():
        torch.testing.assert_close(values, expected[name], msg=name)


def test_rows_with_a_rejected_item_keep_their_history():
    rows = [row_of([0] + [1] * 5, 0, 1, seed) for seed in (1, 2)]
    batch = batch_of(rows, 64, min_rejected=1)
    batch["rejected_mask"][0] = True
    cut = with_recent_history(batch, 4)
    assert cut["encoder_mask"].sum(1).tolist() == [6, 4]
    assert cut["encoder_ids"][0].tolist() == batch["encoder_ids"][0].tolist()
    assert cut["encoder_ids"][1, 1:4].tolist() == batch["encoder_ids"][1, 3:].tolist()
