"""Rows that are packed at once are the bytes of those packed one by one."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_collate import rows
from ugt_composer.data.codec import encode_row
from ugt_composer.data.row_batch import batch_of, encode_rows

OPTIONAL = {"encoder_actions": "<u2", "encoder_times": "<u4", "decoder_times": "<u4", "members": "<u4"}


@settings(max_examples=40)
@given(st.lists(rows(), min_size=1, max_size=4), st.sets(st.sampled_from(sorted(OPTIONAL))))
def test_many_rows_are_the_bytes_of_each(given_rows, present):
    kept = []
    for row in given_rows:
        lists = {name: np.arange(len(row.encoder if name.startswith("encoder") else row.decoder)) for name in OPTIONAL}
        lists = {name: values if name in present else None for name, values in lists.items()}
        kept.append(replace(row, reference=None, decoder=np.abs(row.decoder), **lists))
    batch = batch_of(kept)
    stored = {name: getattr(batch, name).astype("<u2") for name in ("encoder", "decoder", "rejected")}
    optional = {
        name: np.concatenate([getattr(row, name) for row in kept]).astype(OPTIONAL[name]) for name in sorted(present)
    }
    packed, sizes = encode_rows(replace(batch, **stored, **optional))
    single = [encode_row(row, 2) for row in kept]
    assert sizes.tolist() == [len(data) for data in single]
    assert packed == b"".join(len(data).to_bytes(4, "little") + data for data in single)
