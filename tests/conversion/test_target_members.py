"""The optional key `target_members` on its way from a row to a batch."""

import json
import random
import re

import numpy as np
import pytest
import torch

from tests.conversion.conversion_cases import SMALL, decoded_rows, main, recommend_row
from ugt_composer.data.codec import encode_row
from ugt_composer.data.collate import PackedRow, collate
from ugt_composer.errors import UserError


def convert(tmp_path, rows, name="out"):
    source, out = tmp_path / f"{name}.jsonl", tmp_path / name
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(source), "--kind", "recommend", "--out", str(out), *SMALL]) == 0
    return decoded_rows(out)


def rows_with_members(count, targets=3):
    rng = random.Random(1)
    rows = [recommend_row(rng, f"u{n}", targets=targets) for n in range(count)]
    return [row | {"target_members": [rng.randrange(9) for _ in range(targets)]} for row in rows]


@pytest.mark.parametrize("targets", [1, 3, 6])
def test_members_are_stored_with_their_labels(tmp_path, targets):
    rows = rows_with_members(5, targets)
    in_bulk = convert(tmp_path, rows)
    one_by_one = convert(tmp_path, [row | {"user_id": '"' + row["user_id"]} for row in rows], "irregular")
    for row, first, second in zip(rows, in_bulk, one_by_one, strict=True):
        assert first.members.tolist() == second.members.tolist() == row["target_members"][:4]  # --max-target 4
        np.testing.assert_array_equal(first.decoder, second.decoder)


def test_masked_positions_and_a_leading_bos_have_no_member(tmp_path):
    (row,) = rows_with_members(1)
    masked = row | {"decoder_mask": [1, 0, 1], "target_members": [4, 5, 6]}
    keys = [key for key in row if key.startswith(("decoder_l", "labels_l"))]
    bos = {**row, **{key: [1, *row[key]] for key in keys}, "target_members": [0, 4, 5, 6]}
    bos |= {"decoder_positions": [0, 1, 2, 3], "decoder_token_types": [1] * 4, "decoder_mask": [1] * 4}
    found = convert(tmp_path, [masked, bos])
    assert [each.members.tolist() for each in found] == [[4, 6], [4, 5, 6]]


def test_batches_have_minus_one_where_the_item_is_unknown(tmp_path):
    rows = rows_with_members(3, targets=2)
    del rows[1]["target_members"]
    found = convert(tmp_path, [*rows, recommend_row(random.Random(2), targets=3)])
    packed = [PackedRow(number, encode_row(row, 2)) for number, row in enumerate(found)]
    for longest_first in (False, True):
        batch = collate(packed, longest_first=longest_first)
        by_row = dict(zip(batch["row_ids"].tolist(), batch["label_members"].tolist(), strict=True))
        expected = [[*row.get("target_members", [-1, -1]), -1] for row in rows]
        assert [by_row[number] for number in range(4)] == [*expected, [-1, -1, -1]]
    without = collate([packed[1], packed[3]])
    assert "label_members" not in without
    torch.testing.assert_close(without["labels"], collate(packed)["labels"][[1, 3]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target_members": [0, 1]}, "target_members: found 2 values, expected 3"),
        ({"target_members": [0, -1, 2]}, "target_members[1]: found -1"),
        ({"target_members": ["a", 1, 2]}, "target_members[0]: found"),
        ({"target_members": 3}, "target_members: found 3, expected a list"),
        ({"labels_l3": [5, 5, 5], "decoder_l3_ids": [6, 6, 6]}, "target_members: found labels that differ"),
    ],
)
def test_a_mistake_is_named(tmp_path, change, words):
    (row,) = rows_with_members(1)
    with pytest.raises(UserError, match=re.escape(words)):
        convert(tmp_path, [row | change])
