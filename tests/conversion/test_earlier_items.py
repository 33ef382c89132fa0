"""The optional key `earlier_items`: rows whose history was truncated before the conversion are counted."""

import json
import random

import pytest

from tests.conversion.conversion_cases import SMALL, main, recommend_row
from ugt_composer.data.manifest import read_manifest
from ugt_composer.errors import UserError

EARLIER = [0, 3, None, 1, 7, 0]
HISTORY = [4, 4, 4, 9, 9, 9]  # of at most six tokens, the last three rows are truncated by the conversion


def convert(tmp_path, rows):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    assert main([str(tmp_path / "rows.jsonl"), "--kind", "recommend", "--out", str(out), *SMALL]) == 0
    return json.loads((out / "manifest.json").read_text())["counts"], out


@pytest.mark.parametrize("irregular", [False, True])
def test_histories_that_lack_earlier_items_are_counted_once(tmp_path, capsys, irregular):
    rng = random.Random(0)
    rows = [recommend_row(rng, f"u{n}", history) for n, history in enumerate(HISTORY)]
    rows = [
        row if earlier is None else row | {"earlier_items": earlier} for row, earlier in zip(rows, EARLIER, strict=True)
    ]
    if irregular:  # an escaped quotation mark: these rows are converted one by one
        rows[0]["user_id"] = 'u"0'
    counts, out = convert(tmp_path, rows)
    assert (counts["truncated_histories"], counts["incomplete_histories"]) == (3, 4)
    assert counts["ignored_keys"] == {}
    assert read_manifest(out).incomplete_histories == 4
    assert "4  histories that lack earlier items (earlier_items or --max-history)" in capsys.readouterr().out


@pytest.mark.parametrize("value", [-1, "3", 1.5, None, True, 2**31, 10**30])
def test_another_value_is_named(tmp_path, value):
    row = recommend_row(random.Random(0)) | {"earlier_items": value}
    with pytest.raises(UserError, match=r"earlier_items: found .*, expected the number of earlier items"):
        convert(tmp_path, [row])


def test_a_manifest_of_an_earlier_version_counts_what_the_conversion_truncated(tmp_path):
    counts, out = convert(tmp_path, [recommend_row(random.Random(0), history=9)])
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["counts"]["incomplete_histories"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert read_manifest(out).incomplete_histories == counts["truncated_histories"] == 1
