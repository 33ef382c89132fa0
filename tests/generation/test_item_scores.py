import pytest
import torch

from ugt_composer.generation.item_scores import ItemScores


def vectors():
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randn(5, 8, generator=generator), torch.randn(30, 8, generator=generator)
    users[:, 0] = 1.0
    return users, items


@pytest.mark.parametrize("offset", [0, 100, 10_000])
@pytest.mark.parametrize("temperature", [1.0, 0.07])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_common_offset_of_items_changes_no_dot_product_scores(offset, temperature, dtype):
    """Scores are float32 under autocast too, so that a run's evaluation and `ugt recommend` agree."""
    users, items = vectors()
    expected = 0.5 * (users.double() @ items.double().T / temperature).log_softmax(-1)
    items[:, 0] += offset
    with torch.autocast("cpu", dtype):
        scores = ItemScores(users, items, temperature, 0.5, "dot")(slice(1, 4))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected[1:4], rtol=0, atol=(1e-6 + offset * 1e-7) / temperature)
    with torch.autocast("cpu", enabled=False):
        assert torch.equal(ItemScores(users, items, temperature, 0.5, "dot")(slice(1, 4)), scores)


def test_cosines_of_nearly_parallel_items_are_distinguished():
    users, items = vectors()
    items[:, 0] += 1_000
    expected = (torch.cosine_similarity(users.double()[:, None], items.double()[None], dim=-1) / 0.01).log_softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        scores = ItemScores(users, items, temperature=0.01, weight=1.0)(slice(0, 5))
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=2e-5)
