import json
import multiprocessing
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ugt_composer.catalogue import item_columns, item_file
from ugt_composer.catalogue.catalogue import Catalogue, Item
from ugt_composer.catalogue.extension import catalogue_copy, find_catalogue
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.errors import UserError

RNG = np.random.default_rng(0)
TRIPLES = [(l1, l2, l3) for l1, l2, l3 in RNG.integers(5, 9, (300, 3)).tolist()]
ITEMS = [
    Item(f"é{n:03}" if n % 7 else f"B\0{n}", *TRIPLES[n], name=f"Näme {n}" if n % 3 else None, retired=n % 5 == 0)
    for n in RNG.permutation(300).tolist()
]


def line_of(item):
    ids = dict(zip(("l1_id", "l2_id", "l3_id"), item.triple, strict=True))
    return {"item_id": item.item_id, **ids, "name": item.name, "retired": item.retired}


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A file of which arrays are kept, read in small chunks; other places for arrays are empty."""
    monkeypatch.setattr(item_file, "KEPT_FROM", 0)
    monkeypatch.setattr(item_columns, "CHUNK", 32)
    (tmp_path / "data").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    path = tmp_path / "data/catalogue.jsonl"
    path.write_text("\n".join(json.dumps(line_of(item)) for item in ITEMS))
    return path


def is_parsed_no_more(monkeypatch):
    monkeypatch.setattr(item_file, "_chunks", None)


def check(catalogue):
    """Against the list of items, by loops."""
    by_id = sorted(ITEMS, key=lambda item: item.item_id)
    assert list(catalogue.items) == ITEMS
    assert catalogue.items[-1] == ITEMS[-1]
    assert catalogue.items[3:5] == ITEMS[3:5]
    assert [catalogue.items[row] for row in catalogue.columns.by_id.tolist()] == by_id
    assert catalogue.withheld.tolist() == [item.retired for item in ITEMS]
    assert catalogue.triples.tolist() == [list(item.triple) for item in ITEMS]
    for row, item in enumerate(ITEMS):
        assert catalogue.columns.row_of(item.item_id) == row
        assert catalogue.triple_of(item.item_id) == item.triple
        assert catalogue.items_of(item.triple) == [other for other in by_id if other.triple == item.triple]
    for unknown in ("", "é1", "é0001", "\ud800", "x"):
        assert unknown not in catalogue
    listed = [catalogue.items[row] for row in catalogue.columns.by_triple_and_id.tolist()]
    assert listed == sorted(ITEMS, key=lambda item: (item.triple, item.item_id))
    assert catalogue.fingerprint == Catalogue(ITEMS).fingerprint


def test_arrays_are_kept_beside_the_file_and_used_the_next_time(path, monkeypatch):
    check(Catalogue.load(path))
    assert sorted(file.name for file in path.parent.iterdir()) == [".catalogue.jsonl.arrays", "catalogue.jsonl"]
    is_parsed_no_more(monkeypatch)
    kept = Catalogue.load(path)
    check(kept)
    assert list(path.parents[1].glob("tmp/*/*")) == []
    assert catalogue_copy(kept) == catalogue_copy(Catalogue(ITEMS))


def test_the_trie_of_kept_arrays_is_that_of_the_triples(path):
    Catalogue.load(path)
    trie = ItemTrie.from_catalogue(Catalogue.load(path))
    by_id = sorted(ITEMS, key=lambda item: item.item_id)
    withheld = np.array([item.retired for item in by_id])
    expected = ItemTrie.from_triples(np.array([item.triple for item in by_id]), withheld)
    assert torch.equal(trie.items, expected.items)
    assert torch.equal(trie.open.items, expected.open.items)
    assert torch.equal(trie.open.numbers, expected.open.numbers)
    assert trie.catalogue_size == expected.catalogue_size
    for mine, other in zip(trie.levels, expected.levels, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.first, other.first)


def test_a_changed_file_is_parsed_again(path, monkeypatch):
    Catalogue.load(path)
    path.write_text(json.dumps(line_of(ITEMS[0])))
    assert len(Catalogue.load(path)) == 1
    is_parsed_no_more(monkeypatch)
    assert len(Catalogue.load(path)) == 1


@pytest.mark.parametrize("damage", [b"", b"\0" * 5000])
def test_arrays_that_are_not_valid_are_made_again(path, damage):
    Catalogue.load(path)
    (path.parent / ".catalogue.jsonl.arrays").write_bytes(damage)
    check(Catalogue.load(path))


def test_arrays_of_another_version_are_made_again(path, monkeypatch):
    Catalogue.load(path)
    monkeypatch.setattr(item_file, "VERSION", "other")
    check(Catalogue.load(path))
    is_parsed_no_more(monkeypatch)
    check(Catalogue.load(path))


@pytest.fixture
def unwritable(path, monkeypatch):
    """The file's folder cannot be written, by root neither."""
    write = item_file.write_arrays

    def refuse(place, *rest):
        if place.parent == path.parent:
            raise PermissionError(13, "Permission denied")
        write(place, *rest)

    monkeypatch.setattr(item_file, "write_arrays", refuse)


def test_where_the_folder_cannot_be_written_they_are_in_the_temporary_folder(path, unwritable, monkeypatch):
    check(Catalogue.load(path))
    assert [file.name for file in path.parent.iterdir()] == ["catalogue.jsonl"]
    (folder,) = (path.parents[1] / "tmp").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    is_parsed_no_more(monkeypatch)
    check(Catalogue.load(path))


def test_a_temporary_folder_that_others_can_write_is_not_used(path, unwritable):
    folder = path.parents[1] / f"tmp/ugt-catalogues-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    check(Catalogue.load(path))
    assert not list(folder.iterdir())


def test_without_any_folder_they_stay_in_memory(path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(item_file, "write_arrays", refuse)
    check(Catalogue.load(path))
    assert [file.name for file in path.parent.iterdir()] == ["catalogue.jsonl"]


def test_nothing_is_kept_of_small_files_copies_and_invalid_files(path, monkeypatch):
    Catalogue.load(path, keep_arrays=False)
    assert find_catalogue(Catalogue(ITEMS).fingerprint, [path]) is not None
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, "", lines[8]]))
    with pytest.raises(UserError, match=r"catalogue.jsonl:302: item_id: found .* a second time.*first at .*:9\)"):
        Catalogue.load(path)
    path.write_text("")
    with pytest.raises(UserError, match="found no item"):
        Catalogue.load(path)
    path.write_text("\n".join(lines))
    monkeypatch.setattr(item_file, "KEPT_FROM", 1 << 30)
    Catalogue.load(path)
    assert [file.name for file in path.parent.iterdir()] == ["catalogue.jsonl"]


def _load(path: Path) -> tuple[int, bool]:
    item_file.KEPT_FROM = 0
    read, parsed = item_file.read_columns, []
    item_file.read_columns = lambda path: parsed.append(1) or read(path)
    return len(Catalogue.load(path)), bool(parsed)


def test_of_processes_that_start_together_one_parses(path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(_load, [path] * 3, chunksize=1)
    assert [items for items, _ in found] == [300] * 3
    assert sum(parsed for _, parsed in found) == 1


def test_a_catalogue_can_be_pickled(path):
    Catalogue.load(path)
    kept = Catalogue.load(path)
    for catalogue in (kept, Catalogue(ITEMS)):
        check(catalogue)
        check(pickle.loads(pickle.dumps(catalogue)))


def test_ids_with_equal_hashes_are_told_apart(monkeypatch):
    monkeypatch.setattr(item_columns.xxhash, "xxh3_64_intdigest", lambda text: len(text) % 4 << 62)
    check(Catalogue(ITEMS))
    with pytest.raises(UserError, match=r"item 301: item_id: found .* a second time"):
        Catalogue([*ITEMS, ITEMS[4]])


def test_many_ids_are_sorted_as_few_are(monkeypatch):
    few = Catalogue(ITEMS).columns.by_id
    monkeypatch.setattr(item_columns, "FEW", 0)
    assert Catalogue(ITEMS).columns.by_id.tolist() == few.tolist()
