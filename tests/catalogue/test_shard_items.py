"""Shards and catalogue of different imports are refused by every command that reads both."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.shop import SIZES, shop_item
from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.id_set import SemanticIdSet
from ugt_composer.catalogue.shard_items import check_shards, sample_items
from ugt_composer.checkpoint.portable import load_portable, save_portable
from ugt_composer.cli.main import main as ugt
from ugt_composer.config.load import load_config
from ugt_composer.data.manifest import read_manifest
from ugt_composer.errors import UserError
from ugt_composer.training.build import build_trainer
from ugt_composer.training.dry_run import describe


def write_catalogue(path: Path, triples) -> Path:
    keys = ("l1_id", "l2_id", "l3_id")
    lines = [{"item_id": f"item-{at}", **dict(zip(keys, map(int, ids), strict=True))} for at, ids in enumerate(triples)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def shards(shop, tmp_path):
    """shards(name, *options) → one of the shop's files, converted with these options."""
    from convert.jsonl_to_mds import main as convert

    def make(name: str, *options: str | Path, part: str = "train") -> Path:
        kind = "preference" if "preference" in part else "recommend"
        words = [shop / f"{part}.jsonl", "--kind", kind, "--out", tmp_path / name, *options]
        assert convert([*map(str, words), "--codebook-sizes", *map(str, SIZES), "--max-positions", "32"]) == 0
        return tmp_path / name

    return make


@pytest.fixture
def swapped(tmp_path) -> Path:
    """The shop's items with the same semantic IDs in another order: each ID is another item."""
    return write_catalogue(tmp_path / "swapped.jsonl", [shop_item(59 - number) for number in range(60)])


@pytest.fixture
def other(tmp_path) -> Path:
    """A catalogue that has a fifth of the shop's items."""
    return write_catalogue(tmp_path / "other.jsonl", [shop_item(number) for number in range(12)])


def test_a_fingerprint_that_differs_is_refused_with_both_names(shards, shop, swapped):
    folder = shards("a", "--catalogue", shop / "catalogue.jsonl")
    catalogue = Catalogue.load(swapped)
    with pytest.raises(UserError) as error:
        check_shards({"data.train": [read_manifest(folder)]}, catalogue, 1.0)
    prints = Catalogue.load(shop / "catalogue.jsonl").fingerprint[:12], catalogue.fingerprint[:12]
    for words in (f"{folder} (data.train)", str(shop / "catalogue.jsonl"), str(swapped), *prints, "--catalogue"):
        assert words in str(error.value)


def test_the_same_items_in_another_order_and_with_other_names_are_the_same_catalogue(shards, shop, tmp_path):
    lines = [json.loads(line) for line in (shop / "catalogue.jsonl").read_text().splitlines()]
    path = tmp_path / "again.jsonl"
    path.write_text("".join(json.dumps({**line, "name": "new"}) + "\n" for line in lines[::-1]))
    folder = shards("a", "--catalogue", shop / "catalogue.jsonl")
    assert check_shards({"data.train": [read_manifest(folder)]}, Catalogue.load(path), 0.0) == []


def test_folders_of_different_imports_are_refused_without_a_catalogue_too(shards, shop, swapped):
    a, b = shards("a"), shards("b", "--catalogue", swapped)
    manifests = {"data.train": [read_manifest(a)], "data.eval": [read_manifest(b)]}
    with pytest.raises(UserError, match=r"b \(data.eval\) was converted with another catalogue .* than .*a \(data.tr"):
        check_shards(manifests, None, 1.0)
    manifests["data.eval"] = [read_manifest(shards("c", "--catalogue", "none"))]
    assert check_shards(manifests, None, 0.0) == []


def test_items_are_counted_where_no_fingerprint_is_recorded(shards, other):
    catalogue = Catalogue.load(other)
    unknown = {"data.train": [read_manifest(shards("a", "--catalogue", "none"))]}
    with pytest.raises(
        UserError, match=r"lacks [\d,]+ of [\d,]+ history items and [\d,]+ of 4\d\d targets in a sample"
    ):
        check_shards(unknown, catalogue, 0.05)
    (warning,) = check_shards(unknown, catalogue, 1.0)
    assert "they cannot be recommended" in warning


def test_rows_that_may_be_of_another_import_are_named(shards, swapped):
    folder = shards("a", "--catalogue", "none")
    (warning,) = check_shards({"data.train": [read_manifest(folder)]}, Catalogue.load(swapped), 0.05)
    assert f"{folder} (data.train) does not record the catalogue" in warning
    assert f"the items of {swapped}; convert them again with --catalogue FILE" in warning


def test_a_preferred_item_that_the_catalogue_lacks_is_counted_and_refused_above_a_fraction(shards, shop, tmp_path):
    rows = [json.loads(line) for line in (shop / "preference.jsonl").read_text().splitlines()]
    chosen = Counter(tuple(row["chosen_item"].values()) for row in rows)
    gone, times = chosen.most_common()[-1]
    path = write_catalogue(tmp_path / "c.jsonl", [ids for ids in map(shop_item, range(60)) if ids != gone])
    folder = shards("p", "--catalogue", "none", part="preference")
    manifests, catalogue = {"data.train": [read_manifest(folder)]}, Catalogue.load(path)
    (warning,) = check_shards(manifests, catalogue, 0.2)
    assert f"{times:,} of {len(rows):,} chosen items" in warning
    with pytest.raises(UserError, match="chosen items"):
        check_shards(manifests, catalogue, 0.0)


def test_what_the_conversion_accepted_is_a_warning_of_the_training(shards, other):
    folder = shards("a", "--catalogue", other, "--max-fraction-outside-catalogue", "1")
    manifest = read_manifest(folder)
    (warning,) = check_shards({"data.train": [manifest]}, Catalogue.load(other), 0.0)
    assert f"{manifest.outside['targets']:,} of {manifest.items['targets']:,} targets" in warning


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_the_sample_is_spread_over_the_folder(shards, shop, monkeypatch, compression):
    folder = shards("a", "--catalogue", "none", "--size-limit", "4096", "--compression", compression)
    manifest = read_manifest(folder)
    known = SemanticIdSet(np.array([shop_item(number) for number in range(60)]))
    rows = [json.loads(line) for line in (shop / "train.jsonl").read_text().splitlines()]
    if compression == "none":
        counts = sample_items(manifest, known)
        assert counts.items["history items"] == sum(row["encoder_token_types"].count(1) for row in rows)
    monkeypatch.setattr("ugt_composer.catalogue.shard_items.MOST_ROWS", 20)
    counts = sample_items(manifest, known)
    assert 20 <= counts.items["targets"] / 2 < 60
    assert not counts.outside.total()


def test_shards_that_are_missing_or_corrupted_are_left_to_the_reader(shards):
    folder = shards("a", "--catalogue", "none")
    manifest = read_manifest(folder)
    known = SemanticIdSet(np.array([[5, 5, 5]]))
    data = bytearray((folder / "shard.00000.mds").read_bytes())
    data[200:400] = bytes(200)
    (folder / "shard.00000.mds").write_bytes(data)
    assert not sample_items(manifest, known).outside.total()
    (folder / "shard.00000.mds").unlink()
    assert not sample_items(manifest, known).items.total()


def overrides(shop: Path, train: Path, catalogue: Path | None, out: Path) -> list[str]:
    from tests.shop import SMALL

    return [
        *SMALL,
        f"data.train.local={train}",
        f"data.eval.local={shop / 'eval'}",
        f"data.catalogue={catalogue or 'null'}",
        f"save_folder={out}",
    ]


@pytest.mark.parametrize("begin", [describe, build_trainer])
def test_training_and_its_dry_run_refuse(shards, shop, swapped, other, tmp_path, begin):
    for catalogue, words in ((swapped, "another catalogue"), (other, "in a sample of the rows")):
        options = () if catalogue == swapped else ("--catalogue", "none")
        train = shards(catalogue.stem, *options)
        words_of_run = [*overrides(shop, train, catalogue, tmp_path / "run"), "data.eval.local=null"]
        config = load_config(overrides=words_of_run)
        with pytest.raises(UserError, match=words):
            begin(config)
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_catalogue_remembers_that_of_its_shards(shards, shop, swapped, tmp_path):
    config = load_config(overrides=[*overrides(shop, shop / "train", None, tmp_path / "run"), "max_duration=1ba"])
    trainer = build_trainer(config)
    trainer.train()
    trainer.close()
    best = ["--checkpoint", str(tmp_path / "run/best")]
    assert ugt(["evaluate", *best, "--data", str(shop / "eval")]) == 0
    wrong = str(shards("wrong", "--catalogue", swapped, part="eval"))
    with pytest.raises(UserError, match=f"that of {wrong} has"):
        ugt(["evaluate", *best, "--data", wrong])
    with pytest.raises(UserError, match="was trained with a catalogue of fingerprint"):
        ugt(["evaluate", *best, "--data", str(shop / "eval"), "--catalogue", str(swapped)])


def test_the_commands_refuse_and_inspect_shows(shards, shop, stages, swapped, tmp_path, capsys):
    wrong = str(shards("wrong", "--catalogue", swapped, part="preference"))
    best = ["--checkpoint", str(stages / "stage2/best")]
    for words in (
        ["evaluate", *best, "--data", wrong],
        ["reference", *best, "--data", wrong, "--out", str(tmp_path / "out")],
        ["inspect", wrong, "--catalogue", str(shop / "catalogue.jsonl")],
    ):
        with pytest.raises(UserError, match="was converted with another catalogue"):
            ugt(words)
    capsys.readouterr()
    assert ugt(["inspect", wrong, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["catalogue"] == str(swapped)
    assert shown["catalogue's fingerprint"] == Catalogue.load(swapped).fingerprint
    words = ["--data", str(shop / "preference"), "--out", str(tmp_path / "scored")]
    assert ugt(["reference", *best, *words]) == 0
    assert read_manifest(tmp_path / "scored").catalogue == Catalogue.load(shop / "catalogue.jsonl").fingerprint


def test_the_report_of_an_evaluation_has_the_warning(shards, shop, stages, tmp_path, capsys):
    seen = [shop_item(number) for number in range(60)]
    rows = [json.loads(line) for line in (shop / "eval.jsonl").read_text().splitlines()]
    gone = Counter(ids for row in rows for ids in zip(*(row[f"labels_l{level}"] for level in (1, 2, 3)), strict=True))
    ids, times = gone.most_common()[-1]
    catalogue = write_catalogue(tmp_path / "c.jsonl", [item for item in seen if item != ids])
    accepted = ["--catalogue", catalogue, "--max-fraction-outside-catalogue", "1"]
    folder, report = shards("eval", *accepted, part="eval"), tmp_path / "report.json"
    config = load_config(stages / "stage1/best/config.yaml")
    model = shutil.copytree(stages / "stage1/best", tmp_path / "model")
    weights, *_ = load_portable(model)
    save_portable(model, weights.state_dict(), config, {})
    words = ["--checkpoint", str(model), "--data", str(folder), "--catalogue", str(catalogue), "--json", str(report)]
    assert ugt(["evaluate", *words]) == 0
    warnings = json.loads(report.read_text())["warnings"]
    assert any(f"{times} of {gone.total()} targets" in warning for warning in warnings)
    assert "they cannot be recommended" in capsys.readouterr().err


def test_a_folder_of_an_earlier_version_still_works(shards, shop, tmp_path):
    folder = shutil.copytree(shards("a"), tmp_path / "earlier")
    facts = json.loads((folder / "manifest.json").read_text())
    del facts["catalogue"], facts["warnings"]
    (folder / "manifest.json").write_text(json.dumps(facts))
    manifest = read_manifest(folder)
    assert manifest.catalogue is None
    (warning,) = check_shards({"data.train": [manifest]}, Catalogue.load(shop / "catalogue.jsonl"), 0.0)
    assert "does not record the catalogue" in warning
