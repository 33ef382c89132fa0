"""Which of the items that share a semantic ID an item is, as the import writes it."""

import json

import numpy as np
import polars as pl

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.importing.bundle import Bundle


def test_members_are_places_in_the_lists_of_the_catalogue(tmp_path):
    random = np.random.default_rng(0)
    names = [f"item-{n}" for n in random.permutation(40)]
    ids = random.integers(5, 8, (40, 3))
    bundle = Bundle(pl.Series(names), ids, (9, 9, 9), {})
    bundle.write_catalogue(tmp_path / "catalogue.jsonl", None)
    catalogue = Catalogue.load(tmp_path / "catalogue.jsonl")
    for name, triple, member in zip(names, ids.tolist(), bundle.members, strict=True):
        assert catalogue.items_of(triple)[member].item_id == name


def test_no_members_without_shared_ids():
    assert Bundle(pl.Series(["b", "a"]), np.array([[5, 5, 5], [5, 5, 6]]), (9, 9, 9), {}).members is None


def test_the_import_writes_them_for_rows_of_evaluations(tmp_path):
    from convert.interactions_to_jsonl import main

    lines = [f"u{user},i{(user + step) % 7},{1_600_000_000 + step},5" for user in range(6) for step in range(5)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,timestamp,rating", *lines]) + "\n")
    codes = {f"i{item}": [item % 2, 0, 0] for item in range(7)}
    (tmp_path / "codes.json").write_text(json.dumps(codes))
    out = tmp_path / "out"
    assert main([str(tmp_path / "log.csv"), "--codes", str(tmp_path / "codes.json"), "--out", str(out)]) in (0, None)
    catalogue = Catalogue.load(out / "catalogue.jsonl")
    assert catalogue.collisions.count == 2
    for line in (out / "test.jsonl").read_text().splitlines():
        row = json.loads(line)
        user = int(row["user_id"].removeprefix("u"))
        triple = [row[f"decoder_l{level}_ids"][0] for level in (1, 2, 3)]
        (member,) = row["target_members"]
        assert catalogue.items_of(triple)[member].item_id == f"i{(user + 4) % 7}"
    assert "target_members" not in (out / "train.jsonl").read_text()
