import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt_composer.data.history import decoder_lists, encoder_lists
from ugt_composer.importing import jsonl
from ugt_composer.importing.preferences import PreferenceRows
from ugt_composer.importing.rows import write_rows
from ugt_composer.importing.splits import Ranges
from ugt_composer.importing.timeline import Tokens

IDS = np.array([[5 + n % 3, 6 + n % 7, 5 + n] for n in range(20)])
USERS = pl.Series(["u0", 'é "quoted"\n', "2"])


def triples(items) -> list[tuple]:
    return [tuple(IDS[item].tolist()) for item in items]


def tokens(items: np.ndarray, signals: bool) -> Tokens:
    if not signals:
        return Tokens(items)
    return Tokens(items, (items % 4).astype(np.uint16), (100 * np.arange(len(items))).astype(np.uint32))


@st.composite
def stretches(draw) -> tuple[np.ndarray, Ranges, Ranges]:
    """Items, and rows of them: ranges of histories and the ranges right after them."""
    items = np.array(draw(st.lists(st.integers(0, 19), min_size=3, max_size=30)))
    cuts = draw(st.lists(st.tuples(*[st.integers(0, len(items))] * 3), min_size=1, max_size=6))
    rows = [(0, *sorted(cut)) for cut in cuts if len(set(cut)) == 3]
    rows = sorted((draw(st.integers(0, 2)), *row[1:]) for row in rows) or [(0, 0, 1, 2)]
    user, start, stop, end = (np.array(column) for column in zip(*rows, strict=True))
    return items, Ranges(user, start, stop), Ranges(user, stop, end)


def objects(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


@settings(max_examples=50, deadline=None)
@given(stretches(), st.sampled_from([1, 7, 4_000_000]), st.booleans())
def test_rows_are_those_of_the_one_rule(tmp_path_factory, made, block, signals):
    items, histories, targets = made
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    known = tokens(items, signals)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "BLOCK_TOKENS", block)
        first = np.zeros(4, int) if histories.start.any() else None  # each user's first interaction is number 0
        rows = histories, known, targets, known, USERS, IDS, first, None
        with path.open("wb") as file:
            write_rows(jsonl.recommend_blocks(*rows), file)
    expected = []
    columns = histories.user, histories.start, targets.start, targets.stop
    for user, start, stop, end in zip(*(column.tolist() for column in columns), strict=True):
        row = {"user_id": USERS[user]}
        row |= encoder_lists(triples(items[start:stop])) | decoder_lists(triples(items[stop:end]))
        if signals:
            times = [100 * at for at in range(len(items))]
            row["encoder_actions"] = [0, *(int(item) % 4 for item in items[start:stop])]
            row["encoder_times"] = [times[start], *times[start:stop]]
            row["decoder_times"] = times[stop:end]
        expected.append(row)
    if histories.start.any():
        before = histories.start.tolist()
        expected = [row | {"earlier_items": start} for row, start in zip(expected, before, strict=True)]
    assert objects(path) == expected


@pytest.mark.parametrize("signals", [False, True])
def test_preference_rows(tmp_path, signals):
    items = np.array([3, 4, 5, 6])
    histories = Ranges(np.array([0, 1]), np.array([0, 1]), np.array([2, 4]))
    seconds = np.array([150, 350]) if signals else None
    rows = PreferenceRows(histories, np.array([7, 2]), np.array([[8, 9], [10, -1]]), seconds)
    path = tmp_path / "p.jsonl"
    with path.open("wb") as file:
        write_rows(jsonl.preference_blocks(rows, tokens(items, signals), USERS, IDS), file)

    def item(number: int) -> dict:
        return dict(zip(("l1_id", "l2_id", "l3_id"), IDS[number].tolist(), strict=True))

    def more(**lists: object) -> dict:
        return lists if signals else {}

    assert objects(path) == [
        {
            "user_id": "u0",
            "user_sequence": {
                **encoder_lists(triples([3, 4])),
                **more(encoder_actions=[0, 3, 0], encoder_times=[0, 0, 100]),
            },
            "chosen_item": item(7),
            "rejected_items": [item(8), item(9)],
            **more(decoder_times=150),
        },
        {
            "user_id": USERS[1],
            "user_sequence": {
                **encoder_lists(triples([4, 5, 6])),
                **more(encoder_actions=[0, 0, 1, 2], encoder_times=[100, 100, 200, 300]),
            },
            "chosen_item": item(2),
            "rejected_items": [item(10)],
            **more(decoder_times=350),
        },
    ]


def test_no_rows_are_an_empty_file(tmp_path):
    nothing = np.zeros(0, int)
    rows, known = Ranges(*[nothing] * 3), Tokens(nothing)
    path = tmp_path / "r.jsonl"
    with path.open("wb") as file:
        write_rows(jsonl.recommend_blocks(rows, known, rows, known, USERS, IDS, None, None), file)
    assert path.read_bytes() == b""
