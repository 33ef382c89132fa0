import json
import string

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.errors import UserError
from ugt_composer.importing.bundle import Bundle, is_bundle, parse_bundle

SIZES = (16, 32, 64)
names = st.text(string.ascii_letters + string.digits + ' "\\é–日\t', min_size=1, max_size=8)


@st.composite
def bundles(draw) -> Bundle:
    items = draw(st.lists(names, min_size=1, max_size=12, unique=True))
    triple = st.tuples(*(st.integers(5, size - 1) for size in SIZES))
    ids = draw(st.lists(triple, min_size=len(items), max_size=len(items)))
    return Bundle(pl.Series("item", items), np.array(ids), list(SIZES), {"method": "test", "seed": 1})


VERSION_1 = """{
"format": "ugt semantic ids",
"version": 1,
"fingerprint": "ed4f5781d61b8bce4248b7a33b31145e51e7ca364bcd2dd9537570847af12912",
"codebook_sizes": [32,64,128],
"made": {"method":"built"},
"items": {
"a": [5,6,7],
"b": [5,6,8]
}
}
"""


def test_a_bundle_of_version_1_is_read_and_written_as_before(tmp_path):
    content = json.loads(VERSION_1)
    assert is_bundle(content)
    bundle = parse_bundle(tmp_path / "semantic_ids.json", content)
    assert dict(zip(bundle.items, bundle.ids.tolist(), strict=True)) == content["items"]
    bundle.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text("utf-8") == VERSION_1


@settings(max_examples=60, deadline=None)
@given(bundles())
def test_a_bundle_survives_saving_and_loading(tmp_path_factory, bundle):
    path = tmp_path_factory.mktemp("bundle") / "semantic_ids.json"
    bundle.save(path)
    content = json.loads(path.read_text("utf-8"))
    assert is_bundle(content)
    again = parse_bundle(path, content)
    assert again.items.to_list() == bundle.items.to_list()
    assert (again.ids == bundle.ids).all()
    assert (list(again.codebook_sizes), again.made) == (list(bundle.codebook_sizes), bundle.made)
    assert again.fingerprint == bundle.fingerprint


@settings(max_examples=60, deadline=None)
@given(bundles(), st.booleans())
def test_the_fingerprint_is_that_of_the_catalogue_written_beside_it(tmp_path_factory, bundle, named):
    path = tmp_path_factory.mktemp("bundle") / "catalogue.jsonl"
    bundle.write_catalogue(
        path, pl.Series(["name", *[None] * (len(bundle.items) - 1)], dtype=pl.String) if named else None
    )
    catalogue = Catalogue.load(path)
    assert catalogue.fingerprint == bundle.fingerprint
    assert [item.item_id for item in catalogue.items] == bundle.items.to_list()
    assert catalogue.items[0].name == ("name" if named else None)
    catalogue.check(SIZES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda made: made["items"].update(a=[6, 6, 6]), "the ids do not match the fingerprint"),
        (lambda made: made["items"].update(a=[6, 6, 64]), "item 'a': found [6, 6, 64], expected 3 ids, each 5 to"),
        (lambda made: made["items"].update(a=[6, 6]), "item 'a': found [6, 6]"),
        (lambda made: made.update(version=2), "found version 2, expected 1"),
        (lambda made: made.update(codebook_sizes=[16]), "expected 3 codebook_sizes, and items"),
    ],
)
def test_a_changed_bundle_is_refused(tmp_path, change, said):
    path = tmp_path / "semantic_ids.json"
    Bundle(pl.Series("item", ["a", "b"]), np.array([[5, 5, 5], [5, 5, 6]]), list(SIZES), {}).save(path)
    made = json.loads(path.read_text())
    change(made)
    with pytest.raises(UserError) as error:
        parse_bundle(path, made)
    assert said in str(error.value)
