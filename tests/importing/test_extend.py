import argparse
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from convert.interactions_to_jsonl import main as import_interactions
from convert.semantic_ids import main
from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.neighbour_file import read_neighbours
from ugt_composer.catalogue.neighbours import load_neighbours
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.cli.extend import add_arguments
from ugt_composer.errors import UserError

COLOURS, THINGS = ("red", "blue", "green", "grey"), ("lipstick", "brush", "mirror", "soap", "comb", "oil")


def title(item: int) -> str:
    return f"{COLOURS[item % 4]} {THINGS[item // 4 % 6]} {item % 3}"


def table(path: Path, items) -> Path:
    pl.DataFrame({"item_id": [f"i{n}" for n in items], "title": [title(n) for n in items]}).write_csv(path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Ids of 60 items made from texts and interactions, with room for more."""
    folder = tmp_path_factory.mktemp("extend")
    lines = [f"u{user} " + " ".join(f"i{(user * 7 + step * step) % 60}" for step in range(9)) for user in range(50)]
    (folder / "sequences.txt").write_text("\n".join(lines))
    items = table(folder / "items.csv", range(60))
    options = ["--clusters", "6", "8", "--dimensions", "8", "--reserve", "0.5"]
    assert main([str(folder / "sequences.txt"), "--items", str(items), *options, "--out", str(folder / "ids")]) == 0
    return folder


def extend(base: Path, out: Path, *options: str | Path) -> dict:
    arguments = ["--extend", base / "ids" / "semantic_ids.json", *options, "--out", out]
    assert main([*map(str, arguments)]) == 0
    return json.loads((out / "semantic_ids.json").read_text())


def test_old_ids_stay_and_new_items_are_beside_those_with_the_same_words(base, tmp_path, capsys):
    old = json.loads((base / "ids" / "semantic_ids.json").read_text())
    new = extend(base, tmp_path / "more", "--items", table(tmp_path / "items.csv", range(40, 84)))
    assert "24 items were added to 60; 24 of them have a third-level id of their own" in capsys.readouterr().out
    assert list(new["items"].items())[:60] == list(old["items"].items())
    assert list(new["items"])[60:] == [f"i{n}" for n in range(60, 84)]
    assert new["codebook_sizes"] == old["codebook_sizes"]
    assert new["extends"] == [{"fingerprint": old["fingerprint"], "items": 60}]
    assert len({tuple(ids) for ids in new["items"].values()}) == 84
    twins = [
        (new["items"][f"i{n}"], [new["items"][f"i{m}"] for m in range(60) if title(m) == title(n)])
        for n in range(60, 84)
    ]
    near = np.mean([any(ids[0] == twin[0] for twin in of) for ids, of in twins if of])
    assert near > 0.7, "an item with the same text has the same first level"
    catalogue = Catalogue.load(tmp_path / "more" / "catalogue.jsonl")
    assert catalogue.fingerprint == new["fingerprint"]
    assert [catalogue.items[at].name for at in (0, 70)] == [title(0), title(70)], (
        "old names come from the old catalogue"
    )
    vectors = np.load(tmp_path / "more" / "item_vectors.npy")
    assert len(vectors) == 84
    assert (vectors[:60] == np.load(base / "ids" / "item_vectors.npy")).all()


def test_neighbours_beside_the_ids_get_those_of_the_new_items(base, tmp_path):
    ids = tmp_path / "ids"
    options = ["--items", str(base / "items.csv"), "--clusters", "6", "8", "--dimensions", "8", "--reserve", "0.5"]
    assert import_interactions([str(base / "sequences.txt"), *options, "--out", str(ids)]) == 0
    words = ["--extend", str(ids / "semantic_ids.json"), "--items", str(table(tmp_path / "items.csv", range(60, 70)))]
    assert main([*words, "--out", str(tmp_path / "more")]) == 0
    trie = ItemTrie.from_catalogue(Catalogue.load(tmp_path / "more" / "catalogue.jsonl"))
    found = load_neighbours(str(tmp_path / "more" / "item_neighbours.npz"), trie)
    triples, *_ = read_neighbours(str(tmp_path / "more" / "item_neighbours.npz"))
    assert len(triples) == 70
    rows = trie.find(torch.from_numpy(triples))
    is_new = torch.zeros(71, dtype=torch.bool)  # the last one: no neighbour
    is_new[rows[60:]] = True
    assert (found.probabilities[rows[60:]].sum(1) - 1).abs().max() < 1e-5
    assert is_new[found.neighbours[rows[:60]]].any(), "new items are neighbours of old ones"
    assert main([*words, "--out", str(tmp_path / "more"), "--overwrite"]) == 0
    shutil.copy(tmp_path / "more" / "item_neighbours.npz", ids / "item_neighbours.npz")
    assert main([*words, "--out", str(tmp_path / "stale")]) == 0
    assert "is not of the items of" in json.loads((tmp_path / "stale/report.json").read_text())["warnings"][-1]
    assert not (tmp_path / "stale/item_neighbours.npz").exists()


def test_a_new_item_without_a_known_word_gets_no_neighbours(base, tmp_path):
    ids = tmp_path / "ids"
    options = ["--items", str(base / "items.csv"), "--clusters", "6", "8", "--dimensions", "8", "--reserve", "0.5"]
    assert import_interactions([str(base / "sequences.txt"), *options, "--out", str(ids)]) == 0
    items = table(tmp_path / "items.csv", range(60, 70))
    items.write_text(items.read_text() + "i70,xyzzy plugh\n")
    words = ["--extend", str(ids / "semantic_ids.json"), "--items", str(items)]
    assert main([*words, "--out", str(tmp_path / "more")]) == 0
    bundle = json.loads((tmp_path / "more/semantic_ids.json").read_text())
    _, neighbours, _ = read_neighbours(str(tmp_path / "more/item_neighbours.npz"))
    unknown = list(bundle["items"]).index("i70")
    assert (neighbours[unknown] == -1).all()
    assert not (neighbours == unknown).any()
    assert (neighbours[60] >= 0).any()


def test_retired_items_stay_so_where_their_ids_are_used_again(base, tmp_path):
    ids = tmp_path / "ids"
    shutil.copytree(base / "ids", ids)
    lines = [json.loads(line) for line in (ids / "catalogue.jsonl").read_text().splitlines()]
    marked = [line | ({"retired": True} if line["item_id"] in ("i3", "i50") else {}) for line in lines]
    (ids / "catalogue.jsonl").write_text("".join(json.dumps(line) + "\n" for line in marked))
    items = str(table(tmp_path / "items.csv", range(60, 70)))
    bundle, fingerprint = str(ids / "semantic_ids.json"), Catalogue.load(base / "ids" / "catalogue.jsonl").fingerprint
    assert main(["--extend", bundle, "--items", items, "--out", str(tmp_path / "more")]) == 0
    assert main(["--codes", bundle, "--out", str(tmp_path / "again")]) == 0
    words = [str(base / "sequences.txt"), "--codes", str(tmp_path / "again" / "semantic_ids.json")]
    assert import_interactions([*words, "--out", str(tmp_path / "rows")]) == 0
    for folder in ("more", "again", "rows"):
        catalogue = Catalogue.load(tmp_path / folder / "catalogue.jsonl")
        assert [item.item_id for item in catalogue.items if item.retired] == ["i3", "i50"]
        assert json.loads((tmp_path / folder / "report.json").read_text())["retired_items"] == 2
    assert Catalogue.load(tmp_path / "again" / "catalogue.jsonl").fingerprint == fingerprint


def test_the_printed_command_gives_a_model_the_new_items(base, tmp_path, capsys):
    out = tmp_path / "more items"
    extend(base, out, "--items", table(tmp_path / "new.csv", range(55, 70)))
    line = capsys.readouterr().out.splitlines()[-1]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    program, command, *arguments = shlex.split(line)
    parsed = parser.parse_args(arguments)
    assert (program, command, parsed.catalogue) == ("ugt", "extend", str(out / "catalogue.jsonl"))
    assert len(np.load(parsed.item_vectors)) == len(Catalogue.load(parsed.catalogue)) == 70


def test_the_same_items_in_another_order_get_the_same_ids_and_an_extension_can_be_extended(base, tmp_path):
    first = extend(base, tmp_path / "a", "--items", table(tmp_path / "a.csv", range(60, 70)))
    again = extend(base, tmp_path / "b", "--items", table(tmp_path / "b.csv", range(69, 59, -1)))
    assert first == again
    (tmp_path / "c").mkdir()
    (tmp_path / "a").rename(tmp_path / "c" / "ids")
    second = extend(tmp_path / "c", tmp_path / "d", "--items", table(tmp_path / "d.csv", range(65, 75)))
    assert [entry["items"] for entry in second["extends"]] == [60, 70]
    assert list(second["items"].items())[:70] == list(first["items"].items())
    assert len({tuple(ids) for ids in second["items"].values()}) == 75


def test_without_room_the_third_codebook_grows_and_then_ids_are_shared(base, tmp_path, capsys):
    many = table(tmp_path / "many.csv", range(60, 300))
    grown = extend(base, tmp_path / "grown", "--items", many)
    assert grown["codebook_sizes"][2] > 128
    assert "the third codebook grows from 128 to 320 ids: a model" in capsys.readouterr().err
    shared = extend(base, tmp_path / "shared", "--items", many, "--codebook-sizes", "64", "64", "128")
    assert shared["codebook_sizes"][2] == 128
    assert "177 new items share a third-level id" in capsys.readouterr().err
    assert len({tuple(ids) for ids in shared["items"].values()}) == 300
    thousands = table(tmp_path / "thousands.csv", range(60, 9000))
    with pytest.raises(UserError, match="the third has room for 123; give --codebook-sizes with a third size of at le"):
        extend(base, tmp_path / "full", "--items", thousands, "--codebook-sizes", "64", "64", "128")
    assert not (tmp_path / "full").exists()


def test_new_interactions_are_imported_with_the_extended_ids(base, tmp_path):
    bundle = extend(base, tmp_path / "more", "--items", table(tmp_path / "items.csv", range(60, 84)))
    lines = [f"u{user} " + " ".join(f"i{(user * 5 + step * 13) % 84}" for step in range(8)) for user in range(40)]
    (tmp_path / "new.txt").write_text("\n".join(lines))
    codes = ["--codes", str(tmp_path / "more" / "semantic_ids.json"), "--out", str(tmp_path / "rows")]
    assert import_interactions([str(tmp_path / "new.txt"), *codes]) == 0
    made = json.loads((tmp_path / "rows" / "semantic_ids.json").read_text())
    assert {key: made[key] for key in made} == {key: bundle[key] for key in made}
    assert made["extends"]
    with pytest.raises(UserError, match=r"it has no centres of the levels: .* or copied by --codes; extend the file"):
        main(
            [
                "--extend",
                str(tmp_path / "rows" / "semantic_ids.json"),
                "--items",
                str(tmp_path / "items.csv"),
                "--out",
                "no",
            ]
        )


def test_ids_made_from_vectors_are_extended_by_vectors(tmp_path):
    random = np.random.default_rng(0)
    vectors, names = random.standard_normal((50, 4)), tmp_path / "names.txt"
    names.write_text("\n".join(f"i{n}" for n in range(50)))
    np.save(tmp_path / "old.npy", vectors)
    made = ["--vectors", tmp_path / "old.npy", "--vector-items", names, "--clusters", "4", "4"]
    assert main([*map(str, made), "--out", str(tmp_path / "ids")]) == 0
    (tmp_path / "new.txt").write_text("\n".join(f"n{n}" for n in range(50)))
    np.save(tmp_path / "new.npy", vectors)
    new = extend(tmp_path, tmp_path / "more", "--vectors", tmp_path / "new.npy", "--vector-items", tmp_path / "new.txt")
    assert all(new["items"][f"i{n}"][:2] == new["items"][f"n{n}"][:2] for n in range(50)), "equal vectors, equal prefix"
    np.save(tmp_path / "wide.npy", random.standard_normal((50, 5)))
    with pytest.raises(UserError, match=r"--vectors has 5 dimensions, but the ids in .* were made from vectors of 4"):
        extend(tmp_path, tmp_path / "x", "--vectors", tmp_path / "wide.npy", "--vector-items", tmp_path / "new.txt")
    with pytest.raises(UserError, match="its ids were made from --vectors; give those of the new items too"):
        extend(tmp_path, tmp_path / "x", "--items", table(tmp_path / "items.csv", range(60, 63)))


def test_what_cannot_be_extended_says_what_is_missing(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    items = ["--items", str(table(tmp_path / "items.csv", range(60, 70))), "--out", "never"]
    old = json.loads((base / "ids" / "semantic_ids.json").read_text())
    del old["assigner"]
    Path("old.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match="it has no centres of the levels: it was written by an earlier version"):
        main(["--extend", "old.json", *items])
    Path("semantic_ids.json").write_bytes((base / "ids" / "semantic_ids.json").read_bytes())
    with pytest.raises(UserError, match=r"semantic_ids\.npz is missing, which new items get their ids from; copy it"):
        main(["--extend", "semantic_ids.json", *items])
    Path("semantic_ids.npz").write_bytes((base / "ids" / "semantic_ids.npz").read_bytes())
    Path("item_vectors.npy").write_bytes(b"other")
    with pytest.raises(UserError, match=r"item_vectors\.npy was changed since the ids were made"):
        main(["--extend", "semantic_ids.json", *items])
    bundle = str(base / "ids" / "semantic_ids.json")
    with pytest.raises(UserError, match="--extend and --clusters: expected only one"):
        main(["--extend", bundle, *items, "--clusters", "2", "2"])
    with pytest.raises(UserError, match="has all 60 items already; nothing is to be added"):
        main(["--extend", bundle, "--items", str(base / "items.csv"), "--out", "never"])
    with pytest.raises(UserError, match="give a table with their texts by --items"):
        main(["--extend", bundle, "--out", "never"])
    Path("codes.json").write_text(json.dumps({"a": [1, 2, 3]}))
    assert main(["--codes", "codes.json", "--out", "by-codes"]) == 0
    with pytest.raises(UserError, match="its ids were read from a file of codes, so only what made those codes"):
        main(["--extend", "by-codes/semantic_ids.json", *items])


def test_items_of_which_nothing_is_known_are_spread_and_reported(base, tmp_path, capsys):
    pl.DataFrame({"item_id": [f"n{n}" for n in range(30)], "title": ["unheard-of"] * 30}).write_csv(tmp_path / "n.csv")
    new = extend(base, tmp_path / "more", "--items", tmp_path / "n.csv")
    assert "30 new items have no word that an old item has" in capsys.readouterr().err
    assert len({ids[0] for item, ids in new["items"].items() if item.startswith("n")}) > 2
