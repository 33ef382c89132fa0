"""The catalogue of a conversion: what it lacks is counted and refused, and its fingerprint is recorded."""

import json
import random
import shutil
from pathlib import Path

import pytest

from tests.conversion.conversion_cases import SMALL, contents, main, packed_rows, preference_row, recommend_row
from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.data.codec import decode_row
from ugt_composer.data.manifest import read_manifest
from ugt_composer.errors import UserError
from ugt_composer.jsonl.schema import ITEM_KEYS
from ugt_composer.vocabulary import ITEM, NUM_SPECIAL_IDS

EVERY = ["--max-fraction-outside-catalogue", "1"]


def items_of(row) -> list[tuple[str, tuple]]:
    """The items of a decoded row, found one by one."""
    target = "chosen items" if len(row.rejected) else "targets"
    found = [("history items", token[:3]) for token in row.encoder.tolist() if token[4] == ITEM]
    found += [(target, token[5:]) for token in row.decoder.tolist()]
    found += [("rejected items", ids) for ids in row.rejected.tolist()]
    return [(kind, tuple(ids)) for kind, ids in found if min(ids) >= NUM_SPECIAL_IDS]


def write_catalogue(path: Path, triples) -> Path:
    lines = [{"item_id": str(at), **dict(zip(ITEM_KEYS, ids, strict=True))} for at, ids in enumerate(sorted(triples))]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def convert(source: Path, out: Path, *options, kind: str = "recommend") -> dict:
    assert main([str(source), "--kind", kind, "--out", str(out), *SMALL, *map(str, options)]) == 0
    return json.loads((out / "manifest.json").read_text())


@pytest.fixture(params=["recommend", "preference"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def source(tmp_path, kind) -> Path:
    """Rows, among which some that cannot be converted in bulk."""
    rng = random.Random(1)
    rows = [(recommend_row if kind == "recommend" else preference_row)(rng, f"u{at}") for at in range(60)]
    rows[7] = {"note": "an unknown key", **rows[7]}
    (tmp_path / "rows").mkdir()
    path = tmp_path / "rows" / "part.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def rows_of(source: Path, kind: str):
    out = source.parent.parent / "unchecked"
    convert(source, out, "--catalogue", "none", kind=kind)
    rows = [decode_row(row) for row in packed_rows(out)]
    shutil.rmtree(out)
    return rows


@pytest.mark.parametrize("workers", [1, 2])
def test_the_items_that_the_catalogue_lacks_are_counted(source, tmp_path, kind, workers, capsys):
    rows = rows_of(source, kind)
    every = [(at, item) for at, row in enumerate(rows, start=1) for item in items_of(row)]
    gone = {ids for _, (_, ids) in every[10:14]}
    catalogue = write_catalogue(tmp_path / "ids/items.jsonl", {ids for _, (_, ids) in every} - gone)
    options = ["--catalogue", catalogue, *EVERY, "--workers", workers, "--range-bytes", 6000]
    manifest = convert(source, tmp_path / "out", *options, kind=kind)
    counted = manifest["catalogue"]
    assert counted["fingerprint"] == Catalogue.load(catalogue).fingerprint
    for name, wanted in (
        ("items", [item for _, item in every]),
        ("outside", [item for _, item in every if item[1] in gone]),
    ):
        assert counted[name] == {k: sum(found == k for found, _ in wanted) for k in counted["items"]}
    first = min(at for at, (_, ids) in every if ids in gone)
    assert f"first in {source}:{first} (" in manifest["warnings"][0]
    shown = capsys.readouterr().out
    assert f"warning: {catalogue} lacks" in shown
    assert contents(tmp_path / "out") == contents(one_worker(source, tmp_path, catalogue, kind))
    folder = read_manifest(tmp_path / "out")
    assert (folder.catalogue, folder.catalogue_file) == (counted["fingerprint"], str(catalogue))
    assert (folder.items, folder.outside) == (counted["items"], counted["outside"])


def one_worker(source: Path, tmp_path: Path, catalogue: Path, kind: str) -> Path:
    convert(source, tmp_path / "one", "--catalogue", catalogue, *EVERY, "--range-bytes", 6000, kind=kind)
    return tmp_path / "one"


def test_too_many_are_refused_and_nothing_is_written(source, tmp_path, kind):
    catalogue = write_catalogue(tmp_path / "other.jsonl", [(5, 5, 5)])
    with pytest.raises(UserError) as error:
        convert(source, tmp_path / "out", "--catalogue", catalogue, kind=kind)
    message = str(error.value)
    assert f"{catalogue} lacks 2" in message
    assert ("targets" in message) == (kind == "recommend")
    assert ("chosen items and" in message) == (kind == "preference")
    for words in (f"first in {source}:1 (history item ", "--max-fraction-outside-catalogue 0.05", "another import"):
        assert words in message
    assert not (tmp_path / "out").exists()


def test_a_complete_catalogue_beside_the_input_is_used(source, tmp_path, kind, capsys):
    rows = rows_of(source, kind)
    catalogue = write_catalogue(source.with_name("catalogue.jsonl"), {ids for row in rows for _, ids in items_of(row)})
    manifest = convert(source, tmp_path / "out", kind=kind)
    assert manifest["catalogue"]["fingerprint"] == Catalogue.load(catalogue).fingerprint
    assert manifest["warnings"] == []
    assert f"all in {catalogue} (found beside the input)" in capsys.readouterr().out


def test_one_beside_the_input_that_lacks_items_is_only_warned_of(source, tmp_path, kind, capsys):
    catalogue = write_catalogue(source.with_name("catalogue.jsonl"), [(5, 5, 5)])
    manifest = convert(source, tmp_path / "out", kind=kind)
    assert manifest["catalogue"]["fingerprint"] is None
    assert "its fingerprint is not recorded" in manifest["warnings"][0]
    assert f"warning: {catalogue} lacks" in capsys.readouterr().out
    assert read_manifest(tmp_path / "out").catalogue is None


def test_none_switches_the_check_off(source, tmp_path, kind):
    write_catalogue(source.with_name("catalogue.jsonl"), [(5, 5, 5)])
    manifest = convert(source, tmp_path / "out", "--catalogue", "none", kind=kind)
    assert "catalogue" not in manifest


def test_files_beside_the_input_that_cannot_be_used_are_named(source, tmp_path, kind, capsys):
    source.with_name("catalogue.jsonl").write_text("not a catalogue\n")
    assert "catalogue" not in convert(source, tmp_path / "out", kind=kind)
    assert "the file beside the input is not used" in capsys.readouterr().out
    write_catalogue(source.with_name("catalogue.jsonl"), [(5, 5, 5)])
    write_catalogue(tmp_path / "more/catalogue.jsonl", [(5, 5, 5)])
    (tmp_path / "more/part.jsonl").write_bytes(source.read_bytes())
    both = [str(source), str(tmp_path / "more/part.jsonl"), "--kind", kind, "--out", str(tmp_path / "both"), *SMALL]
    assert main(both) == 0
    assert "there is more than one beside the input" in capsys.readouterr().out


def test_a_catalogue_that_cannot_be_read_is_an_error(source, tmp_path, kind):
    with pytest.raises(UserError, match=r"--catalogue nowhere.jsonl: found no such file"):
        convert(source, tmp_path / "out", "--catalogue", "nowhere.jsonl", kind=kind)
    with pytest.raises(UserError, match=r"--max-fraction-outside-catalogue 5.0 is outside 0..1"):
        convert(source, tmp_path / "out", "--max-fraction-outside-catalogue", 5, kind=kind)
