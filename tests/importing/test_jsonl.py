import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt_composer.data.history import decoder_lists, encoder_lists
from ugt_composer.importing import jsonl
from ugt_composer.importing.splits import Rows

IDS = np.array([[5 + n % 3, 6 + n % 7, 5 + n] for n in range(20)])
USERS = pl.Series(["u0", 'é "quoted"\n', "2"])


def triples(items) -> list[tuple]:
    return [tuple(IDS[item].tolist()) for item in items]


@st.composite
def stretches(draw) -> tuple[np.ndarray, Rows]:
    items = np.array(draw(st.lists(st.integers(0, 19), min_size=3, max_size=30)))
    cuts = draw(st.lists(st.tuples(*[st.integers(0, len(items))] * 3), min_size=1, max_size=6))
    rows = [(0, *sorted(cut)) for cut in cuts if len(set(cut)) == 3]
    rows = sorted((draw(st.integers(0, 2)), *row[1:]) for row in rows) or [(0, 0, 1, 2)]
    return items, Rows(*(np.array(column) for column in zip(*rows, strict=True)))


def objects(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


@settings(max_examples=50, deadline=None)
@given(stretches(), st.sampled_from([1, 7, 4_000_000]))
def test_rows_are_those_of_the_one_rule(tmp_path_factory, made, block):
    items, rows = made
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "BLOCK_TOKENS", block)
        jsonl.write_recommend(path, rows, items, USERS, IDS, np.zeros(4, int), None, lambda count: None)
    expected = [
        {"user_id": USERS[user], **encoder_lists(triples(items[start:stop])), **decoder_lists(triples(items[stop:end]))}
        for user, start, stop, end in zip(
            *(vars(rows)[name].tolist() for name in ("user", "start", "stop", "end")), strict=True
        )
    ]
    if rows.start.any():  # the users' first interaction is number 0
        expected = [row | {"earlier_items": start} for row, start in zip(expected, rows.start.tolist(), strict=True)]
    assert objects(path) == expected


def test_preference_rows(tmp_path):
    items = np.array([3, 4, 5, 6])
    rows = Rows(np.array([0, 1]), np.array([0, 1]), np.array([2, 4]), np.array([2, 4]))
    rejected = np.array([[8, 9], [10, -1]])
    path, counts = tmp_path / "p.jsonl", []
    jsonl.write_preferences(path, rows, np.array([7, 2]), rejected, items, USERS, IDS, counts.append)

    def item(number: int) -> dict:
        return dict(zip(("l1_id", "l2_id", "l3_id"), IDS[number].tolist(), strict=True))

    assert objects(path) == [
        {
            "user_id": "u0",
            "user_sequence": encoder_lists(triples([3, 4])),
            "chosen_item": item(7),
            "rejected_items": [item(8), item(9)],
        },
        {
            "user_id": USERS[1],
            "user_sequence": encoder_lists(triples([4, 5, 6])),
            "chosen_item": item(2),
            "rejected_items": [item(10)],
        },
    ]
    assert sum(counts) == 2


def test_no_rows_are_an_empty_file(tmp_path):
    nothing = np.zeros(0, int)
    jsonl.write_recommend(
        tmp_path / "r.jsonl", Rows(*[nothing] * 4), nothing, USERS, IDS, np.zeros(4, int), None, lambda count: None
    )
    assert (tmp_path / "r.jsonl").read_bytes() == b""
