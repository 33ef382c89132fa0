"""Every mistake raises UserError with file, line and field, and leaves nothing at --out."""

import copy
import json
import random

import pytest

from tests.conversion.conversion_cases import (
    SIDE,
    SIZES,
    SMALL,
    contents,
    decoded_rows,
    main,
    preference_row,
    recommend_row,
    siblings,
)
from ugt_composer.errors import UserError

ROWS = 20
WRONG_IDS = [-1, -100, 1 << 40, 10**50, 1.0, 1e3, True, None, "5", [5], {}, [[5]]]
WRONG_LISTS = [None, 5, "[1]", {}, True, []]


def lists_of(kind: str) -> list[str]:
    if kind == "preference":
        return [f"encoder_{column}" for column in SIDE]
    return [f"{side}_{column}" for side in ("encoder", "decoder") for column in SIDE] + [
        f"labels_l{level}" for level in (1, 2, 3)
    ]


def too_large(key: str) -> object:
    if "mask" in key:
        return 2
    if "types" in key:
        return 4
    if "positions" in key:
        return 40
    level = next(level for level in (1, 2, 3) if f"l{level}" in key)
    return SIZES[level - 1]


def corrupted_rows(kind: str):
    """(start of the message after FILE:LINE, text of the row) for each mistake."""
    make = recommend_row if kind == "recommend" else preference_row
    good = make(random.Random(0))

    def with_value(value, *path):
        row = copy.deepcopy(good)
        holder = row
        for key in path[:-1]:
            holder = holder[key]
        if value is with_value:
            del holder[path[-1]]
        else:
            holder[path[-1]] = value
        return json.dumps(row).encode()

    prefix = ("user_sequence",) if kind == "preference" else ()
    for key in lists_of(kind):
        name = ".".join([*prefix, key])
        holder = good[prefix[0]] if prefix else good
        first = "encoder_l1_ids" if "encoder" in key else "decoder_l1_ids"
        for value in WRONG_LISTS:
            yield (name if value != [] or key != first else name.rpartition(".")[0]), with_value(value, *prefix, key)
        for value in WRONG_IDS:
            if not ("mask" in key and value is True) and not ("labels" in key and value == -100):
                yield f"{name}[2]", with_value(value, *prefix, key, 2)
        index = "" if "positions" in key else "[0]"
        if key != "decoder_positions":  # positions are counted from their smallest
            yield name + index, with_value(too_large(key), *prefix, key, 0)
        longer, shorter = [*holder[key], holder[key][-1]], holder[key][:-1]
        yield "", with_value(longer, *prefix, key)
        yield "", with_value(shorter, *prefix, key)
        yield name, with_value(with_value, *prefix, key)
        if "mask" in key:
            yield name, with_value([0] * len(holder[key]), *prefix, key)
    for value in ["", None, 5, True, [], {}, "x" * 70_000, "\ud800"]:
        yield "user_id", with_value(value, "user_id")
    yield "user_id", with_value(with_value, "user_id")
    if kind == "preference":
        yield from corrupted_preferences(good, with_value)
    else:
        yield "decoder_positions", with_value([0, 100, 101], "decoder_positions")
    yield from corrupted_texts(json.dumps(good).encode())


def corrupted_preferences(good, with_value):
    for score in [0, -0.5, 1.5, 1e-60, True, None, "0.5", 10**400, [0.5]]:
        yield "preference_score", with_value(score, "preference_score")
    for key in ("preference_scor", "preferenceScore", "preference-score"):
        yield key, with_value(0.5, key)
    for value in [None, 5, [], "x", [{}], [5], [[]]]:
        yield "rejected_items", with_value(value, "rejected_items")
    yield "rejected_item", with_value(with_value, "rejected_items")
    yield "rejected_items", with_value(good["rejected_items"], "rejected_item")
    yield "chosen_item", with_value(good["rejected_items"][0], "chosen_item")
    for key in ("chosen_item", "user_sequence"):
        for value in [None, 5, [], {}, "x"]:
            yield key, with_value(value, key)
        yield key, with_value(with_value, key)
    for level, size in zip((1, 2, 3), SIZES, strict=True):
        for value in [size, *WRONG_IDS]:
            yield f"chosen_item.l{level}_id", with_value(value, "chosen_item", f"l{level}_id")
            yield f"rejected_items[1].l{level}_id", with_value(value, "rejected_items", 1, f"l{level}_id")
        yield f"chosen_item.l{level}_id", with_value(with_value, "chosen_item", f"l{level}_id")


def corrupted_texts(text: bytes):
    rng = random.Random(0)
    for _ in range(30):
        yield "line", text[: rng.randrange(1, len(text) - 1)]
    for edit in (b"NaN", b"Infinity", b"-Infinity", b"1.", b"01", b"+1", b"0x1", b"1_0", b"'a'", b"", b"nul", b"[1,]"):
        yield "line", text.replace(b"[1, ", b"[" + edit + b", ", 1)
    for other in (b"[]", b"5", b'"text"', b"null", b"true", b"[" + text + b"]", b"[" * 100_000, b'{"a":' * 100_000):
        yield "line", other
    yield "line", text + text
    yield "line", text + b"}"
    yield "line", text.replace(b'"u"', b'"\xff"')
    yield "line", text.replace(b'"u"', b'"\xed\xa0\x80"')
    yield "line", text.replace(b'"u"', b'"a\tb"')
    yield "line", text.replace(b'"u"', b'"a\0b"')
    yield "line", text.decode().encode("utf-16")
    yield "line", text.decode().encode("utf-16-be")
    yield "line", b"\0" * 50
    yield "user_id", text.replace(b"{", b'{"user_id": "v", ', 1)
    yield "user_id", text.replace(b"{", b'{"user\\u005fid": "v", ', 1)
    yield "encoder_mask", text.replace(b'"encoder_mask"', b'"encoder_mask": [1], "encoder_mask"', 1)
    yield "b", text.replace(b"{", b'{"a": [{"b": 1, "b": 2}], ', 1)
    yield "user_id", text.replace(b'"user_id"', b'"userid"', 1)


CASES = [(kind, field, text) for kind in ("recommend", "preference") for field, text in corrupted_rows(kind)]


def test_there_are_several_hundred_cases():
    assert len(CASES) > 500


@pytest.fixture(scope="module")
def good_lines():
    rng = random.Random(1)
    makers = {"recommend": recommend_row, "preference": preference_row}
    return {kind: [json.dumps(make(rng, f"u{at}")).encode() for at in range(ROWS)] for kind, make in makers.items()}


@pytest.mark.parametrize("chunk", range(10))
def test_a_bad_row_ends_the_conversion_with_its_place_and_leaves_nothing(tmp_path, good_lines, chunk):
    source, out = tmp_path / "rows.jsonl", tmp_path / "out"
    for number, (kind, field, text) in list(enumerate(CASES))[chunk::10]:
        at = number % ROWS
        lines = [*good_lines[kind]]
        lines[at] = text
        source.write_bytes(b"\n".join(lines) + b"\n")
        with pytest.raises(UserError) as error:
            main([str(source), "--kind", kind, "--out", str(out), *SMALL])
        message = str(error.value)
        assert message.startswith(f"{source}:{at + 1}: {field}"), (message, text[:200])
        assert ": found " in message
        assert ", expected " in message
        assert message.isascii()
        assert len(message) < 500
        assert "\n" not in message
        assert not out.exists()
        assert siblings(out) == []


def test_input_in_a_store_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match=r"^gs://bucket/rows: the input must be files, folders or s3://…; copy it"):
        main(["gs://bucket/rows", "--kind", "recommend", "--out", str(tmp_path / "out")])


def test_quarantine_holds_the_bad_rows_and_the_rest_is_converted(tmp_path, good_lines, capsys):
    cases = [(field, text) for kind, field, text in CASES if kind == "recommend" and b"\n" not in text]
    lines, bad = [], []
    for at, (_, text) in enumerate(cases):
        lines += [*good_lines["recommend"][: at % 5], text]
        bad.append(len(lines))
    source, out = tmp_path / "rows.jsonl", tmp_path / "out"
    source.write_bytes(b"\n".join(lines) + b"\n")
    options = ["--kind", "recommend", "--on-error", "quarantine", "--max-error-rate", "1", *SMALL]
    assert main([str(source), "--out", str(out), *options]) == 0
    entries = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in entries] == bad
    assert {entry["file"] for entry in entries} == {str(source)}
    for entry, (field, text) in zip(entries, cases, strict=True):
        assert entry["field"].startswith(field)
        if "raw" in entry:
            assert entry["raw"].encode() == text
        else:
            assert "raw_base64" in entry
    assert len(decoded_rows(out)) == len(lines) - len(bad)
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert counts["bad_rows"] == sum(counts["bad_reasons"].values()) == len(bad)
    printed = capsys.readouterr().out
    assert f"{len(bad):,}  bad rows" in printed
    assert "reason" in printed
    assert set(contents(out)) == {"index.json", "manifest.json", "quarantine.jsonl", "shard.00000.mds"}


def test_too_many_bad_rows_fail_and_are_kept(tmp_path, good_lines):
    source, out = tmp_path / "rows.jsonl", tmp_path / "out"
    source.write_bytes(b"\n".join([*good_lines["recommend"][:18], b"{}", b"5"]))
    options = ["--kind", "recommend", "--on-error", "quarantine", *SMALL]
    with pytest.raises(UserError, match=r"2 of 20 rows are bad \(--max-error-rate 0\.01\)") as error:
        main([str(source), "--out", str(out), *options])
    assert not out.exists()
    kept = tmp_path / "out.quarantine.jsonl"
    assert str(kept) in str(error.value)
    assert [json.loads(line)["line"] for line in kept.read_text().splitlines()] == [19, 20]
    assert main([str(source), "--out", str(out), *options, "--max-error-rate", "0.1"]) == 0
    source.write_bytes(b"\n".join([*good_lines["recommend"][:18], b"{}"]))
    with pytest.raises(UserError, match=r"1 of 19 rows is bad .*; it is in "):
        main([str(source), "--out", str(tmp_path / "other"), *options])


def test_only_bad_rows_fail_the_conversion(tmp_path):
    source, out = tmp_path / "rows.jsonl", tmp_path / "out"
    source.write_bytes(b"{}\n[]\n")
    options = ["--kind", "recommend", "--on-error", "quarantine", "--max-error-rate", "1", *SMALL]
    with pytest.raises(UserError, match="2 of 2 rows are bad"):
        main([str(source), "--out", str(out), *options])
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (b'{"user_id": "u', "may have been cut off here"),
        (b'{"user_id": "u", "user_sequence": {}}', "--kind recommend"),
        (
            b'{"item_id": "i", "l1_id": 5, "l2_id": 5, "l3_id": 5}',
            "an item of a catalogue, .* a recommend row of a user",
        ),
        ("é".encode("utf-16"), "UTF-16"),
    ],
)
def test_messages_name_the_likely_cause(tmp_path, text, hint):
    source = tmp_path / "rows.jsonl"
    source.write_bytes(text)
    with pytest.raises(UserError, match=hint):
        main([str(source), "--kind", "recommend", "--out", str(tmp_path / "out"), *SMALL])


def test_a_misspelt_key_is_named_with_the_right_one(tmp_path):
    row = preference_row(random.Random(0))
    row["preference_scor"] = row.pop("preference_score")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"rows\.jsonl:1: preference_scor: .*preference_score"):
        main([str(tmp_path / "rows.jsonl"), "--kind", "preference", "--out", str(tmp_path / "out"), *SMALL])
