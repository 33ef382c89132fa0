"""The bias for items of the history, in the level heads and in the user-item score."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.conftest import make_batch, random_ids
from ugt_composer.catalogue.seen_nodes import SeenNodes
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.generation.beam_search import beam_search
from ugt_composer.generation.item_log_probs import score_items
from ugt_composer.generation.item_samples import distributions_at, sample_items
from ugt_composer.generation.item_scores import ItemScores, SeenItems
from ugt_composer.losses import catalogue_contrastive
from ugt_composer.losses.catalogue_contrastive import CatalogueContrastiveLoss
from ugt_composer.model.reference import GroupReference, Reference
from ugt_composer.model.repeat_bias import level_biases
from ugt_composer.model.ugt import UGT
from ugt_composer.row_random import RowNoise

OPTIONS = {"level_softmax": "catalogue", "repeat_bias": True}
ROWS, ITEMS = 5, 60
TRIE = ItemTrie.from_triples((random_ids(torch.Generator().manual_seed(8), ITEMS) - 5) // torch.tensor([4, 5, 3]) + 5)


def with_items_of(trie: ItemTrie, rows: int = ROWS, **sizes):
    """A batch whose histories and targets are items of the trie, some of them twice; a few tokens are no items."""
    batch = make_batch(rows, **sizes)
    generator = torch.Generator().manual_seed(9)
    for name in ("encoder_ids", "labels"):
        items = trie.items[torch.randint(len(trie), batch[name].shape[:2], generator=generator)]
        batch[name] = torch.where(batch[name] > 0, items, batch[name])
    batch["encoder_ids"][:, 0] = torch.tensor([3, 3, 3])
    return batch


def random_biases(model: UGT, size: float = 1.0) -> UGT:
    for layer in (model.level_repeats, model.user_repeats):
        torch.nn.init.normal_(layer.weight, std=size / 4)
        torch.nn.init.normal_(layer.bias, std=size)
    return model


def history_of(batch, row: int, trie: ItemTrie) -> set[tuple]:
    return {tuple(ids) for ids in batch["encoder_ids"][row].tolist()} & {tuple(ids) for ids in trie.items.tolist()}


@given(st.lists(st.lists(st.tuples(*[st.integers(5, 8)] * 3), max_size=9), min_size=1, max_size=4), st.integers(0, 99))
def test_fractions_are_those_of_the_items_below_a_node(histories, seed):
    items = random_ids(torch.Generator().manual_seed(seed), 40) % 4 + 5
    trie = ItemTrie.from_triples(items)
    width = max(len(history) for history in histories)
    ids = torch.zeros(len(histories), width, 3, dtype=torch.int64)
    for row, history in enumerate(histories):
        for place, triple in enumerate(history):
            ids[row, place] = torch.tensor(triple)
    seen, every = SeenNodes.of(ids, trie), {tuple(triple) for triple in items.tolist()}
    for level in range(3):
        prefixes = sorted({triple[: level + 1] for triple in every})
        for row, history in enumerate(histories):
            found = {
                prefixes[node]: fraction
                for node, fraction in zip(*(x[level][row].tolist() for x in seen), strict=True)
                if node < len(prefixes)
            }
            wanted = {}
            for prefix in {triple[: level + 1] for triple in set(history) & every}:
                below = {triple for triple in every if triple[: level + 1] == prefix}
                wanted[prefix] = pytest.approx(len(below & set(history)) / len(below))
            assert found == wanted
            assert (seen.nodes[level][row].diff() >= 0).all()


def probabilities(model: UGT, batch, trie: ItemTrie) -> torch.Tensor:
    """p of every item (B, n), by the definition: level by level, loops over nodes and their items."""
    hidden, heads = model.start(batch), model.level_logits
    triples = [tuple(ids) for ids in trie.items.tolist()]
    result = torch.zeros(len(hidden), len(trie))
    for row, state in enumerate(hidden):
        strengths, seen = model.level_repeats(state), history_of(batch, row, trie)
        for column, triple in enumerate(triples):
            p = 1.0
            for level in range(3):
                prefix = torch.tensor(triple[:level], dtype=torch.int64)
                logits = heads(level, state, prefix)
                weights = {}
                for last in {other[level] for other in triples if other[:level] == triple[:level]}:
                    below = {other for other in triples if other[: level + 1] == (*triple[:level], last)}
                    r = len(below & seen) / len(below)
                    weights[last] = math.exp(logits[last]) * (1 - r + r * math.exp(strengths[level]))
                p *= weights[triple[level]] / sum(weights.values())
            result[row, column] = p
    return result


@torch.no_grad()
def test_all_ways_to_probabilities_agree_with_the_definition(tiny_model):
    model, batch = random_biases(tiny_model(**OPTIONS)), with_items_of(TRIE)
    wanted = probabilities(model, batch, TRIE)
    torch.testing.assert_close(wanted.sum(1), torch.ones(ROWS))
    hidden = model.start(batch)
    biases = model.repeat_biases(hidden[:, None], model.seen_nodes(batch, TRIE))
    every = TRIE.items.expand(ROWS, -1, -1)
    scored = score_items(model.level_logits, hidden, every, TRIE, biases=biases)
    torch.testing.assert_close(scored.exp(), wanted)
    for memory_bound in (None, 1):
        found = beam_search(
            model.level_logits, hidden, TRIE, 10, 60, over_catalogue=True, memory_bound=memory_bound, biases=biases
        )
        torch.testing.assert_close(found.log_probs.exp(), wanted.sort(descending=True).values[:, :10])
    noise = RowNoise(torch.arange(ROWS), torch.tensor(0), seed=1)
    samples = sample_items(model.level_logits, hidden, TRIE, 30, noise, biases)
    torch.testing.assert_close(samples.log_probs.sum(-1).exp(), wanted.gather(1, samples.items))
    again = distributions_at(model.level_logits, hidden, TRIE, samples.ids, biases)
    assert all(torch.equal(a, b) for a, b in zip(again, samples.distributions, strict=True))
    outputs = model(batch, TRIE)
    for name in ("nodes", "values"):
        for found, level in zip(getattr(outputs["bos_biases"], name), getattr(biases, name), strict=True):
            torch.testing.assert_close(found, level)
    target = torch.zeros(ROWS)
    for level in range(3):
        log_probs = outputs[f"l{level + 1}_logits"][:, 0].float().log_softmax(-1)
        target += log_probs.gather(1, outputs["label_slots"][:, 0, level, None]).squeeze(1)
    torch.testing.assert_close(target.exp(), wanted.gather(1, TRIE.find(batch["labels"][:, 0])[:, None]).squeeze(1))


@torch.no_grad()
def test_a_model_that_has_learnt_nothing_about_repeats_is_the_model_without(tiny_model):
    batch = with_items_of(TRIE, history=20, rejected=2)
    batch["rejected_ids"] = batch["encoder_ids"][:, -2:]
    found, wanted = (tiny_model(level_softmax="catalogue", repeat_bias=on)(batch, TRIE) for on in (True, False))
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("in_training", [True, False])
def test_a_reference_with_the_weights_of_the_policy_gives_bitwise_the_same(tiny_model, rows, in_training):
    model, other, of_group = (random_biases(tiny_model(**OPTIONS)) for _ in range(3))
    reference, group_reference = Reference(other), GroupReference(of_group)
    for module in (reference, group_reference):
        module.model.load_state_dict(model.state_dict())
        module.train(in_training)
    model.train(in_training)
    batch = with_items_of(TRIE, rows, target=3, rejected=2)
    noise = RowNoise(torch.arange(rows), torch.tensor(0), seed=1)
    with torch.set_grad_enabled(in_training):
        outputs, wanted = model(batch, TRIE), reference(batch, TRIE, for_anchor=True)
        group = model(batch, TRIE, group_size=4, noise=noise)
        of_reference = group_reference(batch, TRIE, group["group_ids"])
    assert torch.equal(torch.cat((outputs["chosen_logps"][:, None], outputs["rejected_logps"]), 1), wanted["logps"])
    for level in (1, 2, 3):
        assert torch.equal(outputs[f"l{level}_logits"], wanted[f"l{level}_logits"])
        assert torch.equal(group[f"group_l{level}_log_probs"], of_reference[f"group_l{level}_log_probs"])


@pytest.mark.parametrize("strength", [-1e4, -90.0, -1.0, -0.3, 0.0, 1e-4, 0.999, 1.0, 90.0, 1e4])
def test_biases_and_their_gradients_are_those_of_the_formula(strength):
    fractions = torch.tensor([[0.0, 1e-7, 1 / 3, 0.5, 1 - 2**-24, 1.0]])
    seen = SeenNodes((torch.arange(6)[None],) * 3, (fractions,) * 3)
    strengths = torch.full((1, 1, 3), strength, requires_grad=True)
    for level, values in enumerate(level_biases(strengths, seen).values):
        for value, r in zip(values[0], fractions[0].double().tolist(), strict=True):
            (gradient,) = torch.autograd.grad(value, strengths, retain_graph=True)
            wanted, slope = (0.0, 0.0) if r == 0 else (strength, 1.0)  # of no item of the history, and of no other
            if 0 < r < 1:
                top = max(strength, 0.0)  # taken out of both terms, so that one of them is near 1
                total = (1 - r) * math.exp(-top) + r * math.exp(strength - top)
                wanted, slope = top + math.log(total), r * math.exp(strength - top) / total
            assert value.item() == pytest.approx(wanted, rel=1e-5, abs=1e-7)
            assert gradient[0, 0, level].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("strength", [-40.0, 40.0])
def test_a_strong_bias_leaves_the_history_out_or_repeats_it(tiny_model, strength):
    model, batch = tiny_model(**OPTIONS), with_items_of(TRIE, history=12)
    torch.nn.init.constant_(model.level_repeats.bias, strength)
    hidden = model.start(batch)
    biases = model.repeat_biases(hidden[:, None], model.seen_nodes(batch, TRIE))
    found = beam_search(model.level_logits, hidden, TRIE, 3, 60, over_catalogue=True, biases=biases)
    for row, recommended in enumerate(found.ids.tolist()):
        among = [tuple(ids) in history_of(batch, row, TRIE) for ids in recommended]
        assert not any(among) if strength < 0 else all(among[: len(history_of(batch, row, TRIE))])


@pytest.mark.parametrize("logits_bytes", [1 << 28, 1])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_the_user_item_score_and_its_loss_have_the_bias_of_seen_items(monkeypatch, similarity, logits_bytes):
    monkeypatch.setattr(catalogue_contrastive, "LOGITS_BYTES", logits_bytes)
    generator = torch.Generator().manual_seed(1)
    users, items = (torch.randn(size, 8, generator=generator) for size in (4, 10))
    biases = torch.randn(4, 1, generator=generator).requires_grad_()
    seen = SeenItems(torch.tensor([[0, 3, 10], [10, 10, 10], [4, 9, 10], [1, 2, 3]]), biases)
    rows = torch.tensor([3, 2, -1, 0])
    vectors = (users, items) if similarity == "dot" else (F.normalize(users, dim=-1), F.normalize(items, dim=-1))
    logits = vectors[0] @ vectors[1].T / 0.5
    plain = logits.clone()
    for row, held in enumerate(seen.items.tolist()):
        for item in held:
            if item < 10:
                plain[row, item] = plain[row, item] + biases[row, 0]
    found = ItemScores(users, items, 0.5, 2.0, similarity, repeats=seen)(slice(1, 3))
    torch.testing.assert_close(found, 2 * plain[1:3].log_softmax(-1))
    targets = torch.cat((items[rows[:2]], users[2:3], items[rows[3:]]))
    loss, metrics = CatalogueContrastiveLoss(0.5, similarity)(
        users, targets, items, rows, torch.ones(4, dtype=torch.bool), seen=seen
    )
    outside = (vectors[0][2] * (targets[2] if similarity == "dot" else F.normalize(targets[2], dim=-1))).sum() / 0.5
    wanted = [plain[row].logsumexp(0) - plain[row, item] for row, item in enumerate(rows.tolist()) if row != 2]
    wanted.append(torch.logaddexp(plain[2].logsumexp(0), outside) - outside)
    torch.testing.assert_close(loss, torch.stack(wanted).mean())
    gradient, wanted_gradient = (torch.autograd.grad(x, biases, retain_graph=True)[0] for x in (loss, sum(wanted) / 4))
    torch.testing.assert_close(gradient, wanted_gradient)
    best = [plain[row].argmax() == item for row, item in enumerate(rows.tolist()) if row != 2]
    assert metrics["contrastive_u2i_acc"] == (sum(best) + bool(outside > plain[2].max())) / 4


@pytest.mark.parametrize("repeats", [False, True])
def test_training_learns_whether_users_repeat(tiny_model, repeats):
    """Random histories of four items, and targets from it or not: how much probability is at the wrong items."""
    wrong = {}
    for on in (True, False):
        model = tiny_model(level_softmax="catalogue", repeat_bias=on).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for step in range(60):
            batch = with_items_of(TRIE, rows=32, history=4, target=1)
            generator = torch.Generator().manual_seed(step)
            items = TRIE.items[torch.stack([torch.randperm(len(TRIE), generator=generator) for _ in range(32)])]
            batch["encoder_mask"][:] = True
            batch["encoder_ids"] = items[:, :4]
            batch["labels"] = items[:, 3:4] if repeats else items[:, 4:5]
            optimizer.zero_grad()
            outputs = model(batch, TRIE)
            levels = [outputs[f"l{level}_logits"].flatten(0, 1) for level in (1, 2, 3)]
            slots = outputs["label_slots"].flatten(0, 1)
            sum(F.cross_entropy(logits, slots[:, level]) for level, logits in enumerate(levels)).backward()
            optimizer.step()
        with torch.no_grad():
            hidden = model.eval().start(batch)
            biases = model.repeat_biases(hidden[:, None], model.seen_nodes(batch, TRIE))
            log_probs = score_items(model.level_logits, hidden, batch["encoder_ids"], TRIE, biases=biases)
            of_history = log_probs.exp().sum(1).mean()
            wrong[on] = 1 - of_history if repeats else of_history
    assert wrong[True] < wrong[False] / 2
