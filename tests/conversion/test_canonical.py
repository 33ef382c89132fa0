"""The model's input after the whole conversion, compared with an independent implementation of the rules."""

import json
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conversion.conversion_cases import SIDE, SIZES, SMALL, decoded_rows, main, write_rows

MAX_HISTORY, MAX_TARGET, MAX_POSITIONS = 6, 4, 40


@st.composite
def sides(draw, name, largest=10):
    size = draw(st.integers(1, largest))
    ids = [draw(st.lists(st.integers(0, limit - 1), min_size=size, max_size=size)) for limit in SIZES]
    if draw(st.booleans()):
        for level in range(3):
            ids[level][0] = 1
    positions = draw(st.one_of(st.lists(st.integers(0, 25), min_size=size, max_size=size), st.just(list(range(size)))))
    types = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    mask = draw(st.one_of(st.just([1] * size), st.lists(st.sampled_from([0, 1]), min_size=size, max_size=size)))
    mask[draw(st.integers(0, size - 1))] = 1
    if draw(st.booleans()):
        mask = [bool(value) for value in mask]
    return {f"{name}_{column}": values for column, values in zip(SIDE, [*ids, positions, types, mask], strict=True)}


@st.composite
def recommend_rows(draw):
    row = {"user_id": draw(st.text(min_size=1, max_size=5).filter(lambda text: text.isprintable()))}
    row |= draw(sides("encoder")) | draw(sides("decoder", 6))
    kind = draw(st.sampled_from(["own", "next", "some own", "any", "none"]))
    for level, limit in enumerate(SIZES):
        ids = row[f"decoder_l{level + 1}_ids"]
        choices = {
            "own": ids,
            "next": [*ids[1:], -100],
            "some own": [value if draw(st.booleans()) else -100 for value in ids],
            "any": [draw(st.sampled_from([-100, *range(limit)])) for _ in ids],
            "none": [-100] * len(ids),
        }
        row[f"labels_l{level + 1}"] = choices[kind]
    return row


def expected_encoder(row):
    table = np.array([row[f"encoder_{column}"] for column in SIDE], int).T
    table = table[table[:, 5] == 1][:, :5]
    if len(table) > MAX_HISTORY:
        user = table[:1] if table[0, 4] == 0 else table[:0]
        others = table[len(user) :]
        tail = others[::-1][: MAX_HISTORY - len(user)][::-1].copy()
        tail[:, 3] += others[:, 3].min() - tail[:, 3].min()
        table = np.concatenate([user, tail])
    return table


def expected_decoder(row):
    """(form, rows of 8), or None if the row has nothing to learn from."""
    table = np.array([row[f"decoder_{column}"] for column in SIDE], int).T
    labels = np.array([row[f"labels_l{level}"] for level in (1, 2, 3)], int).T
    labels, table = labels[table[:, 5] == 1], table[table[:, 5] == 1][:, :5]
    leading = (table[0, :3] == 1).all()
    counted = labels != -100
    aligned = counted.any() and (labels[counted] == table[:, :3][counted]).all()
    body = table[1:].copy() if leading else table.copy()
    if len(body):
        body[:, 3] += 1 - body[:, 3].min()
    bos = [[1, 1, 1, 0, 1]]
    if aligned:
        form, inputs, targets = "aligned", [*bos, *body.tolist()[:-1]], labels[1:] if leading else labels
        if not len(targets):
            return None
    elif leading:
        form, inputs, targets = "starts_with_bos", [*bos, *body.tolist()], labels
    else:
        first = [value if value > 4 else -100 for value in table[0, :3]]
        form, inputs, targets = "shifted", [*bos, *body.tolist()], [first, *labels.tolist()]
    return form, np.concatenate([np.array(inputs), np.array(targets)], axis=1)[:MAX_TARGET]


@settings(max_examples=80, deadline=None)
@given(st.lists(recommend_rows(), min_size=1, max_size=25), st.booleans())
def test_rows_come_out_as_the_rules_say(rows, compact):
    rows = [row for row in rows if expected_decoder(row) is not None]
    if not rows:
        return
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "rows.jsonl", Path(folder) / "out"
        separators = (",", ":") if compact else None
        text = "".join(json.dumps(row, separators=separators, ensure_ascii=compact) + "\n" for row in rows)
        source.write_text(text, "utf-8")
        assert main([str(source), "--kind", "recommend", "--out", str(out), *SMALL]) == 0
        found = decoded_rows(out)
        manifest = json.loads((out / "manifest.json").read_text())
    forms = {"aligned": 0, "starts_with_bos": 0, "shifted": 0}
    for row, packed in zip(rows, found, strict=True):
        form, decoder = expected_decoder(row)
        forms[form] += 1
        assert packed.user_id == row["user_id"]
        np.testing.assert_array_equal(packed.encoder, expected_encoder(row))
        np.testing.assert_array_equal(packed.decoder, decoder)
        assert len(packed.rejected) == 0
        assert packed.preference_score == 1
    check_manifest(manifest, rows, found, forms)


def check_manifest(manifest, rows, found, forms):
    counts = manifest["counts"]
    valid = [[sum(row[f"{name}_mask"]) for row in rows] for name in ("encoder", "decoder")]
    assert counts["rows"] == len(rows)
    assert counts["decoder_forms"] == forms
    assert counts["masked_encoder_positions"] == sum(len(row["encoder_mask"]) for row in rows) - sum(valid[0])
    assert counts["masked_decoder_positions"] == sum(len(row["decoder_mask"]) for row in rows) - sum(valid[1])
    assert counts["truncated_histories"] == sum(size > MAX_HISTORY for size in valid[0])
    assert counts["all_labels_ignored"] == sum((row.decoder[:, 5:] == -100).all() for row in found)
    assert manifest["largest_position"]["encoder"] == max(row.encoder[:, 3].max() for row in found)
    assert manifest["largest_position"]["decoder"] == max(row.decoder[:, 3].max() for row in found)
    for name in ("encoder", "decoder"):
        lengths = [len(getattr(row, name)) for row in found]
        assert manifest["lengths"][name] == {str(size): lengths.count(size) for size in sorted(set(lengths))}


def ids(item):
    return [item[f"l{level}_id"] for level in (1, 2, 3)]


@st.composite
def preference_rows(draw):
    def items(level1):
        return st.fixed_dictionaries(
            {"l1_id": level1, "l2_id": st.integers(0, SIZES[1] - 1), "l3_id": st.integers(0, SIZES[2] - 1)}
        )

    row = {"user_id": draw(st.text("abc", min_size=1)), "user_sequence": draw(sides("encoder"))}
    row["chosen_item"] = draw(items(st.just(5)))
    rejected = draw(st.lists(items(st.integers(6, 11)), min_size=1, max_size=3))
    key = draw(st.sampled_from(["rejected_item", "rejected_items"]))
    row[key] = rejected[0] if key == "rejected_item" and draw(st.booleans()) else rejected
    if draw(st.booleans()):
        row["preference_score"] = draw(st.one_of(st.just(1), st.floats(0.001, 1)))
    return row


@settings(max_examples=40, deadline=None)
@given(st.lists(preference_rows(), min_size=1, max_size=25))
def test_preference_rows_hold_the_chosen_item_as_the_label_of_bos(rows):
    with tempfile.TemporaryDirectory() as folder:
        source, out = write_rows(Path(folder) / "rows.jsonl", rows), Path(folder) / "out"
        assert main([str(source), "--kind", "preference", "--out", str(out), *SMALL]) == 0
        found = decoded_rows(out)
    for row, packed in zip(rows, found, strict=True):
        rejected = row.get("rejected_items", row.get("rejected_item"))
        rejected = rejected if isinstance(rejected, list) else [rejected]
        np.testing.assert_array_equal(packed.encoder, expected_encoder(row["user_sequence"]))
        np.testing.assert_array_equal(packed.decoder, [[1, 1, 1, 0, 1, *ids(row["chosen_item"])]])
        np.testing.assert_array_equal(packed.rejected, [ids(item) for item in rejected])
        assert packed.preference_score == np.float32(row.get("preference_score", 1))


def test_a_long_history_keeps_the_user_and_the_most_recent_from_position_one_on(tmp_path):
    size = 10
    row = {f"encoder_{column}": [5] * size for column in SIDE[:3]}
    row |= {"encoder_positions": list(range(size)), "encoder_token_types": [0] + [1] * (size - 1)}
    row |= {"encoder_mask": [True] * size, "encoder_l3_ids": list(range(5, 15)), "user_id": "u"}
    row |= {f"decoder_{column}": [6, 7] for column in SIDE[:3]} | {"decoder_positions": [100, 101]}
    row |= {"decoder_token_types": [1, 1], "decoder_mask": [1, 1]} | {f"labels_l{level}": [6, 7] for level in (1, 2, 3)}
    source = write_rows(tmp_path / "rows.jsonl", [row])
    assert main([str(source), "--kind", "recommend", "--out", str(tmp_path / "out"), *SMALL]) == 0
    (packed,) = decoded_rows(tmp_path / "out")
    assert packed.encoder[:, 2].tolist() == [5, 10, 11, 12, 13, 14]
    assert packed.encoder[:, 3].tolist() == [0, 1, 2, 3, 4, 5]
    assert packed.decoder.tolist() == [[1, 1, 1, 0, 1, 6, 6, 6], [6, 6, 6, 1, 1, 7, 7, 7]]
