"""Runs whose item embeddings are initialised from item vectors."""

import numpy as np
import pytest
import torch

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.errors import UserError
from ugt_composer.training.build import build_trainer
from ugt_composer.training.dry_run import describe

ITEMS = 60


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "vectors.npy"
    np.save(path, np.random.default_rng(0).standard_normal((ITEMS, 12)))
    return path


def test_items_are_as_near_to_each_other_as_their_vectors(stage_config, shop, vectors, tmp_path):
    trainer = build_trainer(stage_config(tmp_path / "run", 1, None, f"init_item_vectors={vectors}"))
    items = torch.from_numpy(Catalogue.load(shop / "catalogue.jsonl").triples)
    sums = trainer.state.model.model.item_embedding(items).detach().numpy()
    trainer.close()
    given = np.load(vectors)
    given -= given.mean(0)
    assert np.corrcoef((sums @ sums.T).ravel(), (given @ given.T).ravel())[0, 1] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.ones((ITEMS - 1, 4)), ["init_item_vectors", "59 rows", "catalogue.jsonl has 60 items"]),
        (np.ones((ITEMS, 4)), ["all rows are the same"]),
        (np.where(np.arange(ITEMS * 4).reshape(ITEMS, 4) == 9, np.nan, 1.0), ["row 2 (item 'item-2')", "not finite"]),
        (np.array(["a"]), ["expected numbers of shape (items, dimensions)"]),
        (None, ["cannot be read as a .npy file"]),
    ],
)
def test_invalid_item_vectors_are_refused(stage_config, vectors, tmp_path, content, words):
    if content is None:
        vectors.write_bytes(b"no matrix")
    else:
        np.save(vectors, content)
    config = stage_config(tmp_path / "run", 1, None, f"init_item_vectors={vectors}")
    for start in (describe, build_trainer):
        with pytest.raises(UserError) as error:
            start(config)
        for word in words:
            assert word in str(error.value)


def test_vectors_need_a_catalogue_and_no_init_from(stage_config, vectors, tmp_path):
    option = f"init_item_vectors={vectors}"
    with pytest.raises(UserError, match=r"data\.catalogue is missing; init_item_vectors is set"):
        stage_config(tmp_path / "run", 1, None, option, "data.catalogue=null")
    with pytest.raises(UserError, match="with init_from elsewhere, which has item embeddings already"):
        stage_config(tmp_path / "run", 1, None, option, "init_from=elsewhere")
