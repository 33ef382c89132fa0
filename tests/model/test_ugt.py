"""The whole model: padding, row order and later targets must not change its outputs."""

import itertools

import pytest
import torch

from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.losses.unified import UnifiedLoss
from ugt_composer.model.embedding import ItemEmbedding
from ugt_composer.model.heads import LevelHead

LOGITS = ("l1_logits", "l2_logits", "l3_logits")


def row_of(batch, index):
    """One row alone, without its padding."""
    history, target = int(batch["encoder_mask"][index].sum()), int(batch["decoder_mask"][index].sum())
    lengths = {"encoder": history, "decoder": target, "labels": target}
    return {
        key: value[index : index + 1, : lengths[key.split("_")[0]]]
        if key.split("_")[0] in lengths
        else value[index : index + 1]
        for key, value in batch.items()
    }


def test_in_float64_labels_and_items_are_scored_in_float64(tiny_model, random_batch):
    batch, model = random_batch(rejected=2), tiny_model()
    single, double = model(batch), model.double()(batch)
    for name in ("label_logps", "label_mean_logps", "chosen_logps", "rejected_logps"):
        assert double[name].dtype == torch.float64
        torch.testing.assert_close(double[name].float(), single[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", ["from_start", "from_end"])
@pytest.mark.parametrize("pooling", ["first", "last", "first_and_last", "mean"])
def test_padding_changes_no_valid_output(tiny_model, random_batch, pooling, positions):
    model = tiny_model(user_pooling=pooling, history_positions=positions)
    batch = random_batch(rows=5, rejected=2)
    together = model(batch, with_logits=True)
    for index in range(5):
        alone = model(row_of(batch, index), with_logits=True)
        length = alone["l1_logits"].shape[1]
        for name in LOGITS:
            torch.testing.assert_close(together[name][index, :length], alone[name][0], rtol=0, atol=1e-5)
        for name in ("user_repr", "item_repr", "chosen_logps", "rejected_logps", "bos_hidden"):
            torch.testing.assert_close(together[name][index], alone[name][0], rtol=0, atol=1e-5)


def test_user_vectors_are_those_of_the_tokens_that_they_are_named_after(tiny_model, random_batch):
    batch = random_batch(rows=5)
    poolings = ("first", "last", "first_and_last", "mean")
    models = {pooling: tiny_model(user_pooling=pooling) for pooling in poolings}
    memory = models["first"].encode(batch).padded()
    for index, length in enumerate(batch["encoder_mask"].sum(1).tolist()):
        tokens = memory[index, :length]
        pooled = {
            "first": tokens[0],
            "last": tokens[-1],
            "first_and_last": tokens[0] + tokens[-1],
            "mean": tokens.mean(0),
        }
        for pooling, model in models.items():
            expected = model.user_proj(pooled[pooling])
            torch.testing.assert_close(model(batch)["user_repr"][index], expected.tanh(), rtol=0, atol=1e-5)
            model.user_activation = "none"
            torch.testing.assert_close(model(batch)["user_repr"][index], expected, rtol=0, atol=1e-5)
            model.user_activation = "tanh"


def test_positions_from_the_end_are_those_of_a_history_that_is_numbered_backwards(tiny_model, random_batch):
    forwards, backwards = tiny_model(), tiny_model(history_positions="from_end")
    batch = random_batch(rows=5)
    mask = batch["encoder_mask"]
    positions = torch.arange(mask.shape[1]) * mask
    numbered_backwards = (mask.sum(1, keepdim=True) - 1 - positions) * mask
    expected = forwards({**batch, "encoder_positions": numbered_backwards})["bos_hidden"]
    found = backwards({**batch, "encoder_positions": positions})["bos_hidden"]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, forwards({**batch, "encoder_positions": positions})["bos_hidden"])


def test_order_of_rows_changes_no_output(tiny_model, random_batch):
    model, batch = tiny_model(), random_batch(rows=5, rejected=2)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = model({key: value[order] for key, value in batch.items()}, with_logits=True)
    straight = model(batch, with_logits=True)
    for name in (*LOGITS, "user_repr", "rejected_logps"):
        torch.testing.assert_close(straight[name][order], shuffled[name], rtol=0, atol=1e-5)


def test_padding_is_counted_in_no_router_sum(tiny_model, random_batch):
    model, batch = tiny_model(), random_batch(rows=5)
    outputs = model(batch)
    assert outputs["router_counts"].sum(-1).tolist() == [2 * batch["decoder_mask"].sum()] * 2  # top-2, two layers
    torch.testing.assert_close(outputs["router_prob_sums"].sum(-1), batch["decoder_mask"].sum().float().expand(2))


def test_later_targets_do_not_reach_earlier_logits(tiny_model, random_batch):
    model, batch = tiny_model(), random_batch(rows=1, target=4)
    before = model(batch, with_logits=True)
    batch["decoder_ids"][0, 2:] = 7
    after = model(batch, with_logits=True)
    for name in LOGITS:
        torch.testing.assert_close(before[name][:, :2], after[name][:, :2])
    assert not torch.allclose(before["l1_logits"][:, 2], after["l1_logits"][:, 2])


def test_levels_see_the_labels_above_them_and_no_others(tiny_model, random_batch):
    model, batch = tiny_model(), random_batch(rows=2)
    before = model(batch, with_logits=True)
    for level, changed in ((1, ("l3_logits",)), (0, ("l2_logits", "l3_logits")), (2, ())):
        labels = batch["labels"].clone()
        labels[0, 0, level] = 5 + (labels[0, 0, level] - 4) % 8
        after = model({**batch, "labels": labels}, with_logits=True)
        for name in LOGITS:
            same = torch.allclose(before[name][0, 0], after[name][0, 0], atol=1e-7)
            assert same != (name in changed), (level, name)


def test_item_probabilities_sum_to_one_over_the_code_space(tiny_model, random_batch):
    model, batch = tiny_model(codebook_sizes=(6, 7, 8)), random_batch(rows=2)
    batch = {
        key: value.clamp(max=5) if key.endswith("ids") or key == "labels" else value for key, value in batch.items()
    }
    hidden = model(batch)["bos_hidden"]
    items = torch.tensor(list(itertools.product(range(6), range(7), range(8)))).expand(2, -1, -1)
    torch.testing.assert_close(model.item_logps(hidden, items).exp().sum(-1), torch.ones(2))


def test_one_step_from_bos_scores_as_the_teacher_forced_pass(tiny_model, random_batch):
    model, batch = tiny_model(), random_batch(rows=3, rejected=2)
    outputs = model(batch, with_logits=True)
    torch.testing.assert_close(model.start(batch), outputs["bos_hidden"], rtol=0, atol=1e-5)
    target = batch["labels"][:, 0]
    by_logits = sum(
        outputs[name][:, 0].log_softmax(-1).gather(-1, target[:, level, None]).squeeze(-1)
        for level, name in enumerate(LOGITS)
    )
    torch.testing.assert_close(outputs["chosen_logps"], by_logits)


@pytest.mark.parametrize("pooling", ["first", "last"])
def test_a_decoder_that_starts_from_the_user_sees_the_pooled_history(tiny_model, random_batch, pooling):
    model, batch = tiny_model(decoder_start="user", user_pooling=pooling), random_batch(rows=3, rejected=2)
    memory, outputs = model.encode(batch), model(batch)
    torch.testing.assert_close(model.start(batch), outputs["bos_hidden"], rtol=0, atol=1e-5)
    place = 0 if pooling == "first" else int(batch["encoder_mask"][1].sum()) - 1
    seen = []
    with torch.no_grad():
        for layer in model.decoder.layers:  # without cross-attention, the pooled token is all that is left
            layer.cross_attention.out_proj.weight.zero_()
    for changed in range(memory.vectors.shape[1]):
        other = memory._replace(vectors=memory.vectors.clone())
        other.vectors[1, changed] += 1.0
        before, after = (model.decode(batch, m)[0][1, 0] for m in (memory, other))
        seen.append(not torch.equal(before, after))
    assert [index for index, is_seen in enumerate(seen) if is_seen] == [place]


@pytest.mark.parametrize("only_labelled", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_losses_without_stored_logits_are_those_of_logits(tiny_model, random_batch, only_labelled, half):
    batch = random_batch(rows=5, target=4)
    batch["labels"][1, 0, 2] = -100  # at one level
    batch["labels"][2] = -100
    batch["row_mask"][3] = False
    labelled = (batch["labels"] != -100).any(-1).flatten().nonzero().squeeze(1)
    assert 3 < len(labelled) < 16
    ours, theirs = tiny_model().train(), tiny_model().train()
    loss = UnifiedLoss(label_smoothing=0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        outputs = ours({**batch, "label_tokens": labelled} if only_labelled else batch)
        assert outputs["label_logps"].shape == ((len(labelled), 3) if only_labelled else (5, 4, 3))
        assert not any("logits" in name for name in outputs)
        found = loss(outputs, {**batch, "label_tokens": labelled} if only_labelled else batch)
        expected = loss(theirs(batch, with_logits=True), batch)
    for name, value in expected["metrics"].items():
        assert found["metrics"][name] == pytest.approx(value.item(), abs=1e-6)
    torch.testing.assert_close(found["total_loss"], expected["total_loss"], rtol=1e-4 if half else 1e-6, atol=0)
    found["total_loss"].backward()
    expected["total_loss"].backward()
    tolerance = 2e-3 if half else 1e-6
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-2 if half else 1e-4, atol=tolerance, msg=name)


def test_a_batch_without_labels_has_no_loss_and_finite_gradients(tiny_model, random_batch):
    batch = random_batch(rows=3)
    batch["labels"][:] = -100
    model = tiny_model().train()
    batch = {**batch, "label_tokens": torch.empty(0, dtype=torch.long)}
    losses = UnifiedLoss(lambda_moe_balance=0.0)(model(batch), batch)
    losses["total_loss"].backward()
    assert losses["total_loss"] == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    assert model.heads.heads[2].bias.grad is not None


@pytest.mark.parametrize("with_logits", [True, False])
@pytest.mark.parametrize("start", ["bos", "user"])
def test_every_parameter_gets_a_gradient(tiny_model, random_batch, start, with_logits):
    model = tiny_model(decoder_start=start).train()
    outputs = model(random_batch(rejected=2), with_logits=with_logits)
    sum(value.float().pow(2).sum() for value in outputs.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("names", [LOGITS, ("label_logps", "label_mean_logps")])
def test_pad_rows_stay_zero_and_get_no_gradient(tiny_model, random_batch, names):
    model = tiny_model().train()
    outputs = model(random_batch(), with_logits=names == LOGITS)
    sum(outputs[name].pow(2).sum() for name in names).backward()
    for table in model.item_embedding.levels:
        assert table.weight[0].abs().max() == 0
        assert table.weight.grad[0].abs().max() == 0
        assert table.weight.grad[6:].abs().max() > 0


def test_the_seed_alone_decides_the_weights(tiny_model):
    one, same, other = tiny_model(seed=3), tiny_model(seed=3), tiny_model(seed=4)
    pairs = zip(one.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.user_proj.weight, other.user_proj.weight)


def catalogue_of(batch, known_rows):
    """A trie of the labels of some rows and of some more items near them."""
    labels = batch["labels"][:known_rows].flatten(0, 1)
    labels = labels[(labels >= 0).all(-1)]
    near = torch.cat([labels + torch.tensor(step) for step in ((0, 0, 0), (0, 0, -1), (0, -1, 0), (-1, 0, 0))])
    return ItemTrie.from_triples(near.clamp(min=5))


def test_over_the_catalogue_logits_are_those_of_the_codebook_at_what_exists_below_the_labels(tiny_model, random_batch):
    model, plain = tiny_model(level_softmax="catalogue"), tiny_model()
    batch = random_batch(rows=5, target=3)
    trie = catalogue_of(batch, known_rows=3)
    outputs, whole = model(batch, trie), plain(batch, with_logits=True)
    items = trie.items.tolist()
    compared = 0
    for row, step, level in itertools.product(range(5), range(3), range(3)):
        label = batch["labels"][row, step].tolist()
        logits, slot = outputs[LOGITS[level]][row, step], outputs["label_slots"][row, step, level].item()
        below = sorted({item[level] for item in items if item[:level] == label[:level]})
        if not below:
            assert slot == -1
            assert (logits == 0).all()
            continue
        assert slot == (below.index(label[level]) if label[level] in below else -1)
        found = logits[logits > -torch.inf]
        torch.testing.assert_close(found, whole[LOGITS[level]][row, step, below], rtol=1e-4, atol=1e-5)
        compared += 1
    assert compared > 25


@pytest.mark.parametrize(("beams", "wanted"), [(1, 1), (1, 9), (3, 2), (3, 11)])
@pytest.mark.parametrize("codes", [8, 500])  # logits of the whole codebook are cheaper, or more expensive
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("with_gradients", [True, False])
def test_logits_of_some_ids_are_those_of_the_codebook(beams, wanted, codes, level, with_gradients):
    generator = torch.Generator().manual_seed(0)
    embedding, head = ItemEmbedding((codes,) * 3, 8), LevelHead(level, codes, 8, tied=True)
    hidden = torch.randn(4, beams, 8, generator=generator)
    prefix = torch.randint(codes, (4, beams, level), generator=generator)
    beam = torch.randint(beams, (4, wanted), generator=generator).sort(1).values
    ids = torch.randint(codes, (4, wanted), generator=generator)
    with torch.set_grad_enabled(with_gradients):
        torch.nn.init.normal_(head.bias)
        whole = head(hidden, prefix, embedding=embedding)
        found = head(hidden, prefix, beam, ids, embedding=embedding)
        torch.testing.assert_close(found, whole[torch.arange(4)[:, None], beam, ids])
        with torch.autocast("cpu", torch.bfloat16):
            half = head(hidden, prefix, beam, ids, embedding=embedding)
            whole_half = head(hidden, prefix, embedding=embedding)
        torch.testing.assert_close(half, whole_half[torch.arange(4)[:, None], beam, ids], rtol=0.05, atol=0.05)
        torch.testing.assert_close(whole_half.log_softmax(-1), whole.log_softmax(-1), rtol=0.05, atol=0.05)


def test_over_the_catalogue_its_items_have_all_the_probability(tiny_model, random_batch):
    model, batch = tiny_model(level_softmax="catalogue"), random_batch(rows=5, target=3, rejected=2)
    trie = catalogue_of(batch, known_rows=5)
    outputs = model(batch, trie)
    every = trie.items.expand(5, -1, -1)
    probabilities = model.item_logps(outputs["bos_hidden"], every, trie).exp()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(5))
    chosen = trie.find(batch["labels"][:, 0])
    torch.testing.assert_close(outputs["chosen_logps"].exp(), probabilities[torch.arange(5), chosen])


def test_over_the_catalogue_the_loss_is_the_cross_entropy_of_known_ids(tiny_model, random_batch):
    model, batch = tiny_model(level_softmax="catalogue").train(), random_batch(rows=6, target=3)
    trie = catalogue_of(batch, known_rows=4)
    loss = UnifiedLoss(repr_dim=32, lambda_moe_balance=0.0)(model(batch, trie), batch)
    loss["total_loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        whole = model(batch, trie)
        for level, name in enumerate(LOGITS):
            logits, slots = whole[name].flatten(0, 1), whole["label_slots"][..., level].flatten()
            known = slots >= 0
            assert 0 < known.sum() < len(slots)
            expected = torch.nn.functional.cross_entropy(logits[known], slots[known])
            torch.testing.assert_close(loss[f"ntp_l{level + 1}_loss"], expected)
