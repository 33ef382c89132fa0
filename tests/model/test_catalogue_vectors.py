import pytest
import torch

from tests.model.test_repeat_bias import TRIE, with_items_of
from ugt_composer.generation import catalogue_vectors
from ugt_composer.generation.catalogue_vectors import CatalogueVectors
from ugt_composer.losses.unified import UnifiedLoss
from ugt_composer.training.composer_model import ComposerUGT


def test_the_tables_give_the_vectors_and_gradients_of_the_projection(tiny_model, monkeypatch):
    model = tiny_model()
    torch.nn.init.normal_(model.item_proj.bias)
    weights = torch.randn(len(TRIE), model.item_proj.out_features)
    (model.item_vectors(TRIE.items) * weights).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert isinstance(model.catalogue_vectors(TRIE), torch.Tensor)
    monkeypatch.setattr(catalogue_vectors, "HELD_BYTES", 0)
    vectors = model.catalogue_vectors(TRIE)
    assert isinstance(vectors, CatalogueVectors)
    torch.testing.assert_close(vectors.at(TRIE.items), model.item_vectors(TRIE.items))
    (vectors.at(TRIE.items) * weights).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("in_half", [False, True])
def test_training_and_evaluation_are_those_with_held_vectors(tiny_model, monkeypatch, similarity, in_half):
    batch = with_items_of(TRIE)
    arguments = {"lambda_contrastive": 1.0, "contrastive_negatives": "catalogue", "contrastive_similarity": similarity}

    def run():
        torch.manual_seed(0)
        model = tiny_model(level_softmax="catalogue", repeat_bias=True, dropout=0.0)
        loss = UnifiedLoss(**arguments, lambda_distillation=0.5, repr_dim=model.item_proj.out_features)
        whole = ComposerUGT(model, loss, None, TRIE, (5, 10), 12, False, 0.5, half_on_cpu=in_half)
        losses = whole.loss(whole(batch), batch)
        losses["total"].backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        whole.eval()
        with torch.no_grad():
            return losses, gradients, whole.eval_forward(batch)["recommended"]

    losses, gradients, recommended = run()
    monkeypatch.setattr(catalogue_vectors, "HELD_BYTES", 0)
    large_losses, large_gradients, large_recommended = run()
    tolerance = {"rtol": 0.02, "atol": 2e-3} if in_half else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(large_losses, losses, **tolerance)
    for name, gradient in gradients.items():
        if in_half:  # single elements differ by rounding
            assert (large_gradients[name] - gradient).norm() <= 0.05 * gradient.norm() + 1e-3, name
        else:
            torch.testing.assert_close(large_gradients[name], gradient, **tolerance)
    if not in_half:
        assert torch.equal(large_recommended.item_index, recommended.item_index)
    torch.testing.assert_close(large_recommended.scores, recommended.scores, **tolerance)
