from dataclasses import replace

import pytest
import torch

from tests.conftest import CODEBOOKS, TINY, make_batch
from ugt_composer.catalogue.catalogue import Catalogue, Item
from ugt_composer.errors import UserError
from ugt_composer.model.enlarge import enlarged, sizes_for


@pytest.mark.parametrize("tied", [True, False])
def test_an_enlarged_model_computes_the_same_for_the_ids_that_it_had(tiny_model, tied):
    model = tiny_model(tie_embeddings=tied)
    with torch.no_grad():
        model.heads.heads[2].bias.normal_()
    config = replace(TINY, codebook_sizes=(*CODEBOOKS[:2], 104), tie_embeddings=tied)
    larger, batch = enlarged(model, config, seed=1), make_batch()
    with torch.no_grad():
        before, now = model(batch, with_logits=True), larger(batch, with_logits=True)
    torch.testing.assert_close(now["l3_logits"][..., : CODEBOOKS[2]], before["l3_logits"])
    for name in ("l1_logits", "l2_logits", "user_repr", "item_repr"):
        torch.testing.assert_close(now[name], before[name])
    assert (larger.heads.heads[2].bias[CODEBOOKS[2] :] == model.heads.heads[2].bias.min()).all()


def test_sizes_grow_at_the_third_level_only():
    sizes = (16, 24, 40)
    assert sizes_for(Catalogue([Item("a", 15, 23, 39)]), sizes) == sizes
    assert sizes_for(Catalogue([Item("a", 15, 23, 40)]), sizes) == (16, 24, 64)
    with pytest.raises(
        UserError, match="level 2 has ids up to 24, but the model has 24; expected new items with known"
    ):
        sizes_for(Catalogue([Item("a", 15, 24, 39)], "c"), sizes)
