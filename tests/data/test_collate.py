"""Collation compared with decoding one row at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt_composer.data.codec import LARGEST_ACTION, LARGEST_TIME, Row, decode_row, encode_row, with_reference
from ugt_composer.data.collate import PackedRow, collate

FLAG = st.booleans()
INPUT_LISTS = ("encoder_actions", "encoder_times", "decoder_times")


@st.composite
def rows(draw, largest=900):
    def table(least, columns):
        length = draw(st.integers(least, 6))
        return np.array(draw(st.lists(st.integers(0, largest), min_size=length * columns, max_size=length * columns)))

    decoder = table(1, 8).reshape(-1, 8)
    ignored = draw(st.lists(st.booleans(), min_size=3, max_size=3))
    decoder[0, 5:][ignored] = -100
    rejected = table(0, 3).reshape(-1, 3).astype(np.int64)
    encoder = table(1, 5).reshape(-1, 5)

    random = np.random.default_rng(draw(st.integers(0, 99)))

    def optional(smallest, most, length):
        return random.choice([smallest, *random.integers(0, most + 1, length), most], length) if draw(FLAG) else None

    numbers = st.floats(-50, 0, width=32)
    logps = draw(st.lists(numbers, min_size=1 + len(rejected), max_size=1 + len(rejected)))
    return Row(
        user_id=draw(st.text(max_size=12)),
        encoder=encoder,
        decoder=decoder,
        rejected=rejected,
        preference_score=draw(st.floats(0.0078125, 1, width=32)),
        reference=draw(st.sampled_from([None, np.array(logps, np.float32)])),
        encoder_actions=optional(0, LARGEST_ACTION, len(encoder)),
        encoder_times=optional(-1, LARGEST_TIME, len(encoder)),
        decoder_times=optional(-1, LARGEST_TIME, len(decoder)),
    )


@given(rows(), st.sampled_from([2, 4]))
def test_a_row_survives_encoding_and_decoding(row, width):
    back = decode_row(encode_row(row, width))
    assert (back.user_id, back.preference_score) == (row.user_id, row.preference_score)
    for name in ("encoder", "decoder", "rejected", "reference", *INPUT_LISTS):
        np.testing.assert_array_equal(getattr(back, name), getattr(row, name))


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("value", [-100, -1, "ignored", "ignored + 1"])
@pytest.mark.parametrize(("part", "column"), [("encoder", 0), ("decoder", 3), ("rejected", 2), ("decoder", 5)])
def test_a_value_that_would_read_back_as_another_is_refused(width, value, part, column):
    ignored = 2 ** (8 * width) - 1
    value = {"ignored": ignored, "ignored + 1": ignored + 1}.get(value, value)
    tables = {"encoder": np.full((2, 5), 7), "decoder": np.full((2, 8), 7), "rejected": np.full((2, 3), 7)}
    tables[part][1, column] = value
    row = Row("ann", **tables)
    if (value, column) == (-100, 5):
        assert decode_row(encode_row(row, width)).decoder[1, 5] == -100
    else:
        with pytest.raises(ValueError, match=rf"outside 0\.\.{ignored - 1}"):
            encode_row(row, width)


@given(rows(), st.sampled_from([2, 4]))
def test_log_probabilities_are_put_into_a_packed_row_and_replaced(row, width):
    logps = np.linspace(-1, -9, 1 + len(row.rejected), dtype=np.float32)
    packed = with_reference(encode_row(row, width), logps)
    assert packed == encode_row(replace(row, reference=logps), width)
    with pytest.raises(ValueError, match=f"expected {len(logps)}"):
        with_reference(packed, np.append(logps, 0))


@given(st.lists(st.tuples(rows(), st.booleans()), min_size=1, max_size=5), st.booleans())
def test_a_batch_holds_log_probabilities_where_all_pairs_carry_them(given_rows, longest_first):
    packed = [PackedRow(i, encode_row(row, 2), counts) for i, (row, counts) in enumerate(given_rows)]
    batch = collate(packed, min_rejected=1, longest_first=longest_first)
    missing = [row.reference is None and len(row.rejected) > 0 for row, _ in given_rows]
    assert ("reference_logps" in batch) == (not any(missing))
    if "reference_logps" not in batch:
        return
    assert batch["reference_logps"].shape == (len(packed), 1 + batch["rejected_ids"].shape[1])
    for place, at in enumerate(batch["row_ids"].tolist()):
        row, counts = given_rows[at]
        values = batch["reference_logps"][place]
        items = 1 + len(row.rejected) if counts else 0
        wanted = np.zeros(items, np.float32) if row.reference is None else row.reference[:items]
        np.testing.assert_array_equal(values[:items], wanted)
        if counts:
            assert (values[items:] == 0).all()


@given(st.lists(st.tuples(rows(), st.booleans()), min_size=1, max_size=5))
def test_a_batch_holds_each_row_and_padding_around_it(given_rows):
    batch = collate([PackedRow(100 + i, encode_row(row, 2), counts) for i, (row, counts) in enumerate(given_rows)])
    assert batch["row_ids"].tolist() == [100 + i for i in range(len(given_rows))]
    assert batch["row_mask"].tolist() == [counts for _, counts in given_rows]
    for i, (row, counts) in enumerate(given_rows):
        s, t, n = len(row.encoder), len(row.decoder), len(row.rejected) * counts
        assert batch["encoder_mask"][i].tolist() == [True] * s + [False] * (batch["encoder_mask"].shape[1] - s)
        assert batch["decoder_mask"][i].sum() == t
        assert batch["rejected_mask"][i].sum() == n
        np.testing.assert_array_equal(batch["encoder_ids"][i, :s], row.encoder[:, :3])
        np.testing.assert_array_equal(batch["encoder_positions"][i, :s], row.encoder[:, 3])
        np.testing.assert_array_equal(batch["encoder_token_types"][i, :s], row.encoder[:, 4])
        np.testing.assert_array_equal(batch["decoder_ids"][i, :t], row.decoder[:, :3])
        np.testing.assert_array_equal(batch["decoder_positions"][i, :t], row.decoder[:, 3])
        np.testing.assert_array_equal(batch["labels"][i, :t], row.decoder[:, 5:] if counts else np.full((t, 3), -100))
        np.testing.assert_array_equal(batch["rejected_ids"][i, :n], row.rejected[:n])
        for name, unknown in (("encoder_actions", 0), ("encoder_times", -1), ("decoder_times", -1)):
            wanted, values = np.full(batch[name].shape[1], unknown), getattr(row, name)
            if values is not None:
                wanted[: len(values)] = values
            assert batch[name][i].tolist() == wanted.tolist()
        assert (batch["labels"][i, t:] == -100).all()
        assert (batch["encoder_ids"][i, s:] == 0).all()
        assert batch["preference_score"][i] == row.preference_score


@given(st.lists(st.tuples(rows(), rows()), min_size=1, max_size=3))
@settings(max_examples=40)
def test_nothing_of_the_target_reaches_the_inputs_of_the_encoder(pairs):
    first = [row for row, _ in pairs]
    of_target = ("decoder", "rejected", "preference_score", "reference", "decoder_times")
    second = [replace(row, **{name: getattr(other, name) for name in of_target}) for row, other in pairs]
    batches = [collate([PackedRow(at, encode_row(row, 2)) for at, row in enumerate(some)]) for some in (first, second)]
    names = [name for name in batches[0] if name.startswith("encoder_")]
    assert {"encoder_ids", "encoder_actions", "encoder_times"} <= {*names}
    for name in names:
        assert batches[0][name].tolist() == batches[1][name].tolist()


def test_a_row_without_actions_and_times_is_the_same_bytes_as_in_version_1():
    tables = np.arange(10).reshape(2, 5), np.arange(8).reshape(1, 8), np.full((1, 3), 9)
    header = bytes([1, 2]) + np.array([3, 2, 1, 1, 2], "<u2").tobytes() + np.float32(1).tobytes()
    payload = np.concatenate([table.ravel() for table in tables]).astype("<u2").tobytes()
    expected = header + payload + b"ann\0" + np.array([7], "<u4").tobytes()
    row = Row("ann", *tables, members=np.array([7]))
    assert encode_row(row, 2) == expected
    times = {"encoder_actions": np.array([0, 3]), "encoder_times": np.array([-1, 5]), "decoder_times": np.array([6])}
    with_times = encode_row(replace(row, **times), 2)
    assert with_times[0] == 2
    assert len(with_times) == len(expected) + 2 * 2 + 4 * 2 + 4


@pytest.mark.parametrize("change", [{"encoder_actions": [1, 65535]}, {"encoder_times": [1]}, {"decoder_times": [-2]}])
def test_a_list_of_another_length_or_range_is_refused(change):
    row = Row("u", np.ones((2, 5), int), np.ones((1, 8), int), np.zeros((0, 3), int))
    with pytest.raises(ValueError, match="actions or times"):
        encode_row(replace(row, **{name: np.array(values) for name, values in change.items()}), 2)


def test_rows_of_different_widths_are_refused():
    row = Row("u", np.ones((1, 5), int), np.ones((1, 8), int), np.zeros((0, 3), int))
    with pytest.raises(ValueError, match="one width"):
        collate([PackedRow(0, encode_row(row, 2)), PackedRow(1, encode_row(row, 4))])


@pytest.mark.parametrize("damage", [lambda b: b[:-2], lambda b: b[:5], lambda b: b"\x02" + b[1:], lambda b: b + b"\0"])
def test_corrupted_bytes_are_refused(damage):
    row = Row("user", np.ones((2, 5), int), np.ones((1, 8), int), np.zeros((0, 3), int))
    packed = damage(encode_row(row, 2))
    with pytest.raises(ValueError):
        decode_row(packed)
    with pytest.raises(ValueError):
        collate([PackedRow(0, encode_row(row, 2)), PackedRow(1, packed)])


def test_an_id_that_does_not_fit_the_width_is_refused():
    row = Row("u", np.full((1, 5), 70_000), np.ones((1, 8), int), np.zeros((0, 3), int))
    with pytest.raises(ValueError, match="outside"):
        encode_row(row, 2)
    assert decode_row(encode_row(row, 4)).encoder[0, 0] == 70_000


def test_a_batch_without_rejected_items_has_room_for_one_if_requested():
    row = Row("u", np.zeros((1, 5), int), np.zeros((1, 8), int), np.zeros((0, 3), int), 1.0)
    rows = [PackedRow(0, encode_row(row, 2))]
    assert collate(rows)["rejected_ids"].shape[1] == 0
    batch = collate(rows, min_rejected=1)
    assert batch["rejected_ids"].shape == (1, 1, 3)
    assert not batch["rejected_mask"].any()
    assert batch["reference_logps"].tolist() == [[0, 0]]
    assert "reference_logps" not in collate(rows)


@given(st.lists(st.tuples(rows(), st.booleans()), min_size=1, max_size=7))
def test_longest_first_is_the_same_rows_in_the_order_of_their_lengths(given_rows):
    packed = [PackedRow(100 + i, encode_row(row, 2), counts) for i, (row, counts) in enumerate(given_rows)]
    plain, ordered = collate(packed), collate(packed, longest_first=True, with_lengths=True)
    lengths = list(zip(ordered.pop("encoder_lengths"), ordered.pop("decoder_lengths"), strict=True))
    assert lengths == sorted(((len(row.encoder), len(row.decoder)) for row, _ in given_rows), reverse=True)
    order = ordered["row_ids"] - 100
    assert sorted(order.tolist()) == list(range(len(packed)))
    assert torch.equal(ordered.pop("encoder_tokens"), ordered["encoder_mask"].flatten().nonzero().squeeze(1))
    is_labelled = (ordered["labels"] != -100).any(-1)
    assert torch.equal(ordered.pop("label_tokens"), is_labelled.flatten().nonzero().squeeze(1))
    assert ordered.pop("label_counts") == is_labelled.sum(1).tolist()
    for key, value in ordered.items():
        torch.testing.assert_close(value, plain[key][order])
