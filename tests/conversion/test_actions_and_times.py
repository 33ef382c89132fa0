"""Actions and times on their way from a row to the shards."""

import json
import random
import re

import numpy as np
import pytest

from tests.conversion.conversion_cases import SMALL, contents, decoded_rows, main, preference_row, recommend_row
from ugt_composer.conversion import partition
from ugt_composer.data.codec import LARGEST_TIME
from ugt_composer.data.manifest import read_manifest
from ugt_composer.errors import UserError

KINDS = ("recommend", "preference")
KEYS = ("encoder_actions", "encoder_times", "decoder_times")


def with_inputs(rng, row, keys=KEYS, floats=False):
    """The row with some of the three lists; times are sorted."""
    sequence = row.get("user_sequence", row)
    history = len(sequence["encoder_mask"])
    targets = len(row.get("decoder_mask", "1"))
    times = sorted(rng.randrange(1000) for _ in range(history + targets))
    if floats:
        times = [time + rng.choice([0, 0.5, 0.999]) for time in times]
    target_times = times[history:] if "decoder_mask" in row else rng.choice([times[-1], times[-1:]])
    lists = {"encoder_actions": [rng.randrange(4) for _ in range(history)], "encoder_times": times[:history]}
    sequence |= {key: values for key, values in lists.items() if key in keys}
    return row | {"decoder_times": target_times} if "decoder_times" in keys else row


def make_row(rng, kind, user="u", history=4, **options):
    make = recommend_row if kind == "recommend" else preference_row
    return with_inputs(rng, make(rng, user, history), **options)


def convert(tmp_path, rows, *options, kind="recommend", name="out"):
    source, out = tmp_path / "rows.jsonl", tmp_path / name
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    source.write_bytes(b"".join(line + b"\n" for line in lines))
    assert main([str(source), "--kind", kind, "--out", str(out), "--overwrite", *SMALL, *options]) == 0
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fewest", [2, 1 << 30])
@pytest.mark.parametrize("keys", [KEYS, ("encoder_actions",), ("encoder_times",), ("decoder_times",)])
def test_rows_are_stored_with_what_they_have(tmp_path, monkeypatch, kind, fewest, keys):
    monkeypatch.setattr(partition, "FEWEST_BULK_ROWS", fewest)
    rng = random.Random(f"{kind} {keys}")
    rows = [make_row(rng, kind, keys=keys, floats=at % 2 == 1) for at in range(6)]
    found = decoded_rows(convert(tmp_path, rows, kind=kind))
    for row, stored in zip(rows, found, strict=True):
        sequence = row.get("user_sequence", row)
        for name, values in {
            "encoder_actions": sequence.get("encoder_actions"),
            "encoder_times": [-1, *map(int, sequence["encoder_times"][1:])] if "encoder_times" in keys else None,
            "decoder_times": np.floor(np.atleast_1d(row["decoder_times"])) if "decoder_times" in keys else None,
        }.items():
            assert (values is None) == (getattr(stored, name) is None)
            if values is not None:
                assert getattr(stored, name).tolist() == list(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_bulk_and_single_rows_give_the_same_files(tmp_path, monkeypatch, kind, seed):
    rng = random.Random(f"{kind} {seed}")
    wrong = [-1, -0.5, 1e300, LARGEST_TIME, LARGEST_TIME + 1, LARGEST_TIME + 0.5, 10**40, "5", None, True, [], [1]]
    rows = []
    for at in range(150):
        row = make_row(rng, kind, f"u{at}", rng.randint(1, 9), floats=rng.random() < 0.2)
        sequence = row.get("user_sequence", row)
        if rng.random() < 0.3:
            sequence["encoder_mask"] = [rng.choice([0, 1]) for _ in sequence["encoder_mask"]]
        if rng.random() < 0.1:
            sequence["encoder_token_types"] = [rng.randrange(4) for _ in sequence["encoder_mask"]]
        if rng.random() < 0.1 and kind == "recommend":
            row["decoder_mask"] = [1, 0, 1]
        if rng.random() < 0.1:
            key = rng.choice(KEYS)
            holder = row if key in row else sequence
            if isinstance(holder[key], list) and rng.random() < 0.8:
                holder[key][rng.randrange(len(holder[key]))] = rng.choice([*wrong, 0, 500, 999])
            else:
                holder[key] = rng.choice([*wrong, {}, "[1]"])
        if rng.random() < 0.02:
            (row if kind == "recommend" else sequence).pop("encoder_times")
        rows.append(row)
    options = ["--on-error", "quarantine", "--max-error-rate", "1"]
    bulk = contents(convert(tmp_path, rows, *options, kind=kind))
    workers = contents(convert(tmp_path, rows, *options, "--range-bytes", "9000", kind=kind, name="parts"))
    monkeypatch.setattr(partition, "FEWEST_BULK_ROWS", 1 << 30)
    assert bulk == contents(convert(tmp_path, rows, *options, kind=kind, name="single"))
    assert bulk["quarantine.jsonl"] == workers["quarantine.jsonl"]
    counts = json.loads(bulk["manifest.json"])["counts"]
    assert 5 < counts["bad_rows"] < counts["rows"]
    assert sum("_times" in reason for reason in counts["bad_reasons"]) >= 2


def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    rng = random.Random(0)
    rows = [make_row(rng, "recommend", f"u{at}") for at in range(60)]
    rows[41]["decoder_times"][0] = -3
    options = ["--on-error", "quarantine", "--max-error-rate", "1", "--range-bytes", "9000"]
    one, three = (convert(tmp_path, rows, *options, "--workers", n, name=f"by {n}") for n in ("1", "3"))
    assert contents(one) == contents(three)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fewest", [2, 1 << 30])
def test_what_does_not_matter_changes_no_byte(tmp_path, monkeypatch, kind, fewest):
    monkeypatch.setattr(partition, "FEWEST_BULK_ROWS", fewest)
    rng = random.Random(kind)
    rows, changed = [], []
    for at in range(6):
        row = make_row(rng, kind, f"u{at}", 5)
        sequence = row.get("user_sequence", row)
        sequence["encoder_mask"] = [1, 1, 0, 1, 1, 0]
        other = json.loads(json.dumps(row))
        sequence = other.get("user_sequence", other)
        for place in (2, 5):  # padding
            sequence["encoder_times"][place] = rng.randrange(5000)
            sequence["encoder_actions"][place] = rng.randrange(9)
        sequence["encoder_times"][0] = 4999  # the user token
        if kind == "preference":
            other["user_sequence"] = dict(reversed(sequence.items()))
        rows.append(row)
        changed.append(dict(reversed(other.items())))
    first, second = (convert(tmp_path, each, kind=kind, name=name) for each, name in ((rows, "a"), (changed, "b")))
    files = contents(first), contents(second)
    manifests = [json.loads(each.pop("manifest.json")) for each in files]
    for each in manifests:
        del each["input"]  # the fingerprint of the file's bytes
    assert manifests[0] == manifests[1]
    assert files[0] == files[1]


def test_cut_histories_and_targets_keep_their_actions_and_times(tmp_path):
    row = make_row(random.Random(1), "recommend", history=9) | {"encoder_times": [0, *range(11, 20)]}
    row |= {"encoder_actions": [0, *range(1, 10)], "decoder_times": [20, 21, 22]}
    (stored,) = decoded_rows(convert(tmp_path, [row]))  # --max-history 6
    assert stored.encoder_times.tolist() == [-1, 15, 16, 17, 18, 19]
    assert stored.encoder_actions.tolist() == [0, 5, 6, 7, 8, 9]
    (stored,) = decoded_rows(convert(tmp_path, [row], "--max-target", "2"))
    assert stored.decoder_times.tolist() == [20, 21]


def test_a_leading_bos_and_masked_targets_have_no_time(tmp_path):
    row = make_row(random.Random(1), "recommend") | {"encoder_times": [0] * 5, "decoder_mask": [1, 0, 1]}
    row["decoder_times"] = [7, 1, 9]
    keys = [key for key in row if key.startswith(("decoder_l", "labels_l"))]
    bos = {**row, **{key: [1, *row[key]] for key in keys}, "decoder_times": [3, 7, 8, 9]}
    bos |= {"decoder_positions": [0, 1, 2, 3], "decoder_token_types": [1] * 4, "decoder_mask": [1] * 4}
    for rows in ([row, bos], [row, bos] * 8):
        found = decoded_rows(convert(tmp_path, rows))
        assert [each.decoder_times.tolist() for each in found[:2]] == [[7, 9], [7, 8, 9]]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("recommend", {"encoder_times": [0, 1, 2]}, "encoder_times: found 3 values, expected 5, as many as encoder_l1"),
        ("recommend", {"encoder_actions": [0] * 6}, "encoder_actions: found 6 values, expected 5"),
        ("recommend", {"encoder_actions": [0, 1, -1, 0, 0]}, "encoder_actions[2]: found -1, expected an action in 0.."),
        ("recommend", {"encoder_actions": [0, 1, 1.0, 0, 0]}, "encoder_actions[2]: found 1.0, expected an action in 0"),
        ("recommend", {"encoder_times": [0, 1, 5, 4, 6]}, "encoder_times[3]: found 4, expected at least 5"),
        ("recommend", {"encoder_times": [0, 1, 5, True, 6]}, "encoder_times[3]: found true, expected a time in"),
        ("recommend", {"encoder_times": [0, 1, 5, 6, -7]}, "encoder_times[4]: found -7, expected a time in seconds"),
        ("recommend", {"encoder_times": [1_700_000_000_000] * 5}, "[0]: found 1700000000000, expected a time"),
        ("recommend", {"encoder_times": 5}, "encoder_times: found 5, expected a list of numbers"),
        ("recommend", b"[1, 1, 1, 1, 1e999]", "encoder_times[4]: found Infinity, expected a time in seconds"),
        ("recommend", b"[1, 1, 1, 1, NaN]", "line: found NaN, which JSON does not have"),
        ("recommend", {"decoder_times": [1, 1, 1]}, "decoder_times[0]: found 1, expected at least 4, the time of the "
         "last history token: at the moment of prediction the history would hold an item of the future"),
        ("recommend", {"decoder_times": [9, 8, 9]}, "decoder_times[1]: found 8, expected at least 9"),
        ("recommend", {"decoder_times": [9, 9]}, "decoder_times: found 2 values, expected 3"),
        ("recommend", {"labels_l3": [5] * 3, "decoder_l3_ids": [6] * 3}, "decoder_times: found labels that differ"),
        ("recommend", {"encoder_time": [1] * 5}, "encoder_time: found an unknown key, expected encoder_times"),
        ("preference", {"decoder_times": 1}, "decoder_times: found 1, expected at least 4, the time of the last"),
        ("preference", {"decoder_times": [9, 9]}, "decoder_times: found 2 values, expected 1"),
        ("preference", {"decoder_times": "9"}, 'decoder_times: found "9", expected a time in seconds'),
        ("preference", {"user_sequence.encoder_times": [0, 9, 3, 4, 4]}, "user_sequence.encoder_times[2]: found 3"),
        ("preference", {"user_sequence.encoder_actions": [99_999] * 5}, "user_sequence.encoder_actions[0]: found 9"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(tmp_path, kind, change, message):
    rng = random.Random(0)
    rows = [make_row(rng, kind, f"u{at}") for at in range(9)]
    row = make_row(rng, kind, "wrong")
    sequence = row.get("user_sequence", row)
    sequence["encoder_times"] = [0, 1, 2, 3, 4]
    row["decoder_times"] = [4, 5, 6] if kind == "recommend" else 4
    if isinstance(change, bytes):
        row = json.dumps(row).encode().replace(b"[0, 1, 2, 3, 4]", b"X", 2)  # positions are the same list
        row = row.replace(b"X", b"[0, 1, 2, 3, 4]", 1).replace(b"X", change)
    else:
        for key, value in change.items():
            (sequence if "." in key else row)[key.rpartition(".")[2]] = value
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        convert(tmp_path, [*rows, row], kind=kind)
    assert str(caught.value).startswith(f"{tmp_path}/rows.jsonl:10: ")
    assert not (tmp_path / "out").exists()


def test_rows_without_them_keep_version_1(tmp_path):
    rng = random.Random(2)
    rows = [recommend_row(rng, f"u{at}") for at in range(10)]
    (tmp_path / "actions.json").write_text('["view", "buy", "like"]')
    plain = contents(convert(tmp_path, rows))
    manifest = json.loads(plain["manifest.json"])
    assert manifest["codec_version"] == 1
    assert not {"inputs", "actions"} & manifest.keys()
    mixed = decoded_rows(convert(tmp_path, [*rows[:5], with_inputs(rng, rows[5]), *rows[6:]]))
    assert [row.encoder_times is not None for row in mixed] == [at == 5 for at in range(10)]


def test_the_manifest_has_names_fractions_and_range(tmp_path, capsys):
    rng = random.Random(2)
    (tmp_path / "actions.json").write_text('["view", "buy"]')
    rows = [recommend_row(rng, f"u{at}") for at in range(3)]
    rows[0] |= {"encoder_actions": [0, 1, 1, 2, 1], "encoder_times": [0, 5, 6, 7, 8.5]}
    rows[1] |= {"decoder_times": [11, 11, 12]}
    out = convert(tmp_path, rows)
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["codec_version"], manifest["actions"]) == (2, ["view", "buy"])
    assert manifest["inputs"] == {
        "rows_with": {"encoder_actions": 1, "encoder_times": 1, "decoder_times": 1},
        "largest_action": 2,
        "times": [5, 12],
    }
    assert "1  rows with encoder_times" in capsys.readouterr().out
    read = read_manifest(out)
    assert (read.rows_with, read.largest_action) == (manifest["inputs"]["rows_with"], 2)
    assert (read.actions, read.times) == (("view", "buy"), (5, 12))


@pytest.mark.parametrize("option", [[], ["--actions", "named/actions.json"]])
def test_an_action_beyond_the_names_is_an_error(tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "named").mkdir()
    (tmp_path / ("named" if option else ".") / "actions.json").write_text('["view", "buy"]')
    row = recommend_row(random.Random(0)) | {"encoder_actions": [0, 1, 2, 3, 1]}
    with pytest.raises(UserError, match=r"encoder_actions\[3\]: found 3, expected a named action in 0\.\.2"):
        convert(tmp_path, [row], *option)
    manifest = json.loads((convert(tmp_path, [row], "--actions", "none") / "manifest.json").read_text())
    assert "actions" not in manifest
    assert manifest["inputs"]["largest_action"] == 3
