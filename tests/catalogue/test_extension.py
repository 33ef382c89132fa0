"""A catalogue that contains the one of a model or of shards, with the same semantic IDs, is accepted."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shop import shop_item
from ugt_composer.catalogue.catalogue import Catalogue, Item
from ugt_composer.catalogue.extension import catalogue_copy, find_catalogue, not_contained
from ugt_composer.catalogue.shard_items import check_shards
from ugt_composer.checkpoint.portable import check_portable
from ugt_composer.cli.main import main as ugt
from ugt_composer.data.integrity import CATALOGUE_COPY
from ugt_composer.data.manifest import read_manifest
from ugt_composer.errors import UserError

ids = st.text('abcé"\\ ', min_size=1, max_size=4)
triples = st.tuples(*[st.integers(5, 8)] * 3)
catalogues = st.dictionaries(ids, triples, min_size=1, max_size=8).map(
    lambda items: Catalogue([Item(item_id, *triple) for item_id, triple in items.items()])
)


@given(catalogues, catalogues)
def test_a_catalogue_contains_another_if_each_of_its_items_is_there_with_the_same_ids(old, new):
    pairs = {(item.item_id, item.triple) for item in new.items}
    different = [item for item in old.items if (item.item_id, item.triple) not in pairs]
    said = not_contained(old, new)
    assert (said is None) == (not different)
    if said is not None:
        assert f"{len(different)} of {len(old)} items differ" in said
        assert "is missing" in said or any(item.item_id in new for item in different)


@given(catalogues)
def test_a_copy_has_the_fingerprint_and_does_not_depend_on_order(tmp_path_factory, catalogue):
    path = tmp_path_factory.mktemp("copy") / CATALOGUE_COPY
    path.write_bytes(catalogue_copy(catalogue))
    assert catalogue_copy(Catalogue(catalogue.items[::-1])) == path.read_bytes()
    other = path.with_name("other")
    other.write_text("no catalogue")
    found = find_catalogue(catalogue.fingerprint, [None, other.with_name("none"), other, path])
    assert found is not None
    assert found.source == str(path)
    assert find_catalogue("another", [path]) is None


def test_the_first_differing_items_are_named():
    old = Catalogue([Item(f"i{n}", 5, 5, 5 + n) for n in range(6)])
    new = Catalogue([Item(f"i{n}", 5, 5, 5 + n + (n > 1)) for n in range(4)], "new.jsonl")
    assert not_contained(old, new) == (
        '4 of 6 items differ in new.jsonl: "i2" (5/5/7) is 5/5/8, "i3" (5/5/8) is 5/5/9, "i4" (5/5/9) is missing, …'
    )


@pytest.fixture
def larger(shop, tmp_path) -> Path:
    """The shop's items in another order, and five new ones among them."""
    lines = [json.loads(line) for line in (shop / "catalogue.jsonl").read_text().splitlines()]
    more = [dict(zip(("l1_id", "l2_id", "l3_id"), shop_item(n), strict=True)) for n in range(60, 65)]
    lines = [{"item_id": f"new-{n}", "name": "New", **item} for n, item in enumerate(more)] + lines[::-1]
    path = tmp_path / "larger.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def changed(larger, tmp_path) -> Path:
    """The larger catalogue, with another ID of one old item."""
    lines = [json.loads(line) for line in larger.read_text().splitlines()]
    lines = [line | ({"l3_id": 71} if line["item_id"] == "item-7" else {}) for line in lines]
    path = tmp_path / "changed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


CHANGE = r'1 of 60 items differ in .*changed.jsonl: "item-7" \(5/6/12\) is 5/6/71'


def test_shards_are_accepted_with_a_catalogue_that_contains_theirs(shop, larger, changed):
    manifests = {"--data": [read_manifest(shop / "eval"), read_manifest(shop / "train")]}
    assert check_shards(manifests, Catalogue.load(larger), 0.0) == []
    with pytest.raises(UserError, match=CHANGE):
        check_shards(manifests, Catalogue.load(changed), 1.0)


def test_shards_without_their_copy_are_compared_with_the_file_if_it_is_still_there(shop, larger, tmp_path):
    folder = shutil.copytree(shop / "eval", tmp_path / "eval")
    (folder / CATALOGUE_COPY).unlink()
    assert check_shards({"--data": [read_manifest(folder)]}, Catalogue.load(larger), 0.0) == []
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["catalogue"]["file"] = "gone.jsonl"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="its copy was not found, so it is not known which items differ"):
        check_shards({"--data": [read_manifest(folder)]}, Catalogue.load(larger), 0.0)


def test_folders_without_a_catalogue_may_be_of_catalogues_of_which_one_contains_the_other(
    shop, larger, changed, tmp_path
):
    from convert.jsonl_to_mds import main as convert

    folders = [read_manifest(shop / "train")]
    for name, catalogue in (("a", larger), ("b", changed)):
        options = ["--kind", "recommend", "--codebook-sizes", "24", "40", "72", "--catalogue", str(catalogue)]
        options += ["--max-fraction-outside-catalogue", "1", "--out", str(tmp_path / name)]
        assert convert([str(shop / "eval.jsonl"), *options]) == 0
        folders.append(read_manifest(tmp_path / name))
    assert check_shards({"data.train": folders[:1], "data.eval": folders[1:2]}, None, 1.0) == []
    assert check_shards({"data.train": folders[1:2], "data.eval": folders[:1]}, None, 1.0) == []
    with pytest.raises(UserError, match="was converted with another catalogue"):
        check_shards({"data.train": folders[:1], "data.eval": folders[2:]}, None, 1.0)


def test_a_trained_model_recommends_from_a_larger_catalogue(shop, stages, larger, changed, tmp_path, capsys):
    (tmp_path / "user.json").write_text('{"items": ["item-3", "new-0"]}')
    words = [
        "--checkpoint",
        str(stages / "stage1/best"),
        "--history",
        str(tmp_path / "user.json"),
        "--json",
        "-k",
        "64",
    ]
    assert ugt(["recommend", *words, "--catalogue", str(larger)]) == 0
    printed = capsys.readouterr()
    assert "trained with 60 of the 65 items of" in printed.err
    assert "ugt extend" in printed.err
    items = {entry["item_id"] for entry in json.loads(printed.out)["recommendations"]}
    assert {"new-1", "new-4"} <= items
    with pytest.raises(UserError, match=CHANGE):
        ugt(["recommend", *words, "--catalogue", str(changed)])


def test_old_rows_are_evaluated_and_scored_with_a_larger_catalogue(shop, stages, larger, tmp_path):
    best = ["--checkpoint", str(stages / "stage1/best"), "--catalogue", str(larger)]
    assert ugt(["evaluate", *best, "--data", str(shop / "eval"), "--json", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["catalogue"]["items"] == 65
    assert ugt(["reference", *best, "--data", str(shop / "preference"), "--out", str(tmp_path / "scored")]) == 0
    assert (tmp_path / "scored" / CATALOGUE_COPY).read_bytes() == (shop / "preference" / CATALOGUE_COPY).read_bytes()


def test_a_model_keeps_a_copy_of_its_catalogue(shop, stages, larger, tmp_path):
    for name in ("best", "latest"):
        copy = stages / "stage1" / name / CATALOGUE_COPY
        assert Catalogue.load(copy).fingerprint == Catalogue.load(shop / "catalogue.jsonl").fingerprint
        check_portable(copy.parent)
    model = shutil.copytree(stages / "stage1/best", tmp_path / "model")
    config = (model / "config.yaml").read_text().replace(str(shop / "catalogue.jsonl"), "gone.jsonl")
    (model / "config.yaml").write_text(config)
    (model / "record.json").unlink()
    words = ["--checkpoint", str(model), "--catalogue", str(larger), "--data", str(shop / "eval")]
    assert ugt(["evaluate", *words]) == 0
    (model / CATALOGUE_COPY).unlink()
    with pytest.raises(UserError, match="its items are not known, so they cannot be compared"):
        ugt(["evaluate", *words])
