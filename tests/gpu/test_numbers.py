"""Results of a GPU compared with a CPU in float32 and float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import TINY, make_batch, random_ids
from ugt_composer import kernels
from ugt_composer.catalogue.neighbours import ItemNeighbours
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.config.schema import ModelConfig
from ugt_composer.float32_product import allow_tf32, float32_matmul
from ugt_composer.generation.beam_search import beam_search
from ugt_composer.generation.item_log_probs import score_items
from ugt_composer.generation.item_samples import draw_group
from ugt_composer.generation.item_scores import ItemScores, NeighbourScores
from ugt_composer.losses.unified import UnifiedLoss
from ugt_composer.model.build import build_model
from ugt_composer.model.grouped_product import IS_AVAILABLE
from ugt_composer.model.label_scores import PIECE_BYTES, label_scores
from ugt_composer.model.moe import MoEFeedForward
from ugt_composer.model.norm import GroupLayerNorm
from ugt_composer.model.pointwise_product import pointwise_product
from ugt_composer.model.reference import GroupReference, Reference
from ugt_composer.model.time_bias import biased_pointwise_product
from ugt_composer.model.time_buckets import time_bucket
from ugt_composer.model.ugt import OPTIONAL_WEIGHTS, UGT, is_added_by
from ugt_composer.row_random import RowNoise
from ugt_composer.training.composer_model import ComposerUGT

WIDE = replace(TINY, d_model=128, n_heads=4, d_ff=256, n_encoder_layers=3, n_decoder_layers=3, max_seq_len=256)
LOSS = {"lambda_contrastive": 0.1, "lambda_preference": 0.1, "num_negatives": 15, "repr_dim": WIDE.d_model}
EXACT = {"rtol": 1e-5, "atol": 1e-5}


def moved(batch, device):
    return {name: value.to(device) for name, value in batch.items()}


def all_items(count: int = 400, withheld: np.ndarray | None = None) -> ItemTrie:
    return ItemTrie.from_triples(random_ids(torch.Generator().manual_seed(3), count), withheld)


def with_actions_and_times(batch):
    generator, shape = torch.Generator().manual_seed(4), batch["encoder_mask"].shape
    times = torch.randint(0, 10**6, shape, generator=generator).cumsum(1)
    actions = torch.randint(0, 4, shape, generator=generator)
    prediction_times = times[:, -1:] + torch.randint(0, 10**6, batch["decoder_mask"].shape, generator=generator)
    return {**batch, "encoder_times": times, "encoder_actions": actions, "decoder_times": prediction_times}


def with_catalogue_items(batch, items: Tensor):
    """Half of the targets and of the histories' items are in the catalogue; of random ones it has hardly any."""
    generator, ids, labels = torch.Generator().manual_seed(8), batch["encoder_ids"].clone(), batch["labels"].clone()
    known = items[torch.randint(len(items), ids.shape[:2], generator=generator)]
    ids[:, 1::2] = (known * batch["encoder_mask"].unsqueeze(-1))[:, 1::2]
    labels[::2, 0] = items[torch.randperm(len(items), generator=generator)[: len(labels[::2])]]
    return {**batch, "encoder_ids": ids, "labels": labels}


def made(config: ModelConfig, seed: int) -> UGT:
    """A model whose optional weights, which are 0 at first, are random too."""
    model = build_model(config, seed)
    for name, weight in model.named_parameters():
        if is_added_by(name, OPTIONAL_WEIGHTS):
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(seed))
    return model


def step(config: ModelConfig, device, dtype=None, **loss_arguments) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of one batch of stage 3, on the CPU in float64."""
    policy, reference = (made(config, seed).to(device) for seed in (1, 2))
    loss = UnifiedLoss(**{**LOSS, **loss_arguments}).to(device)
    trie, batch = all_items(), with_actions_and_times(make_batch(rows=24, history=100, target=6, rejected=3, seed=5))
    if config.level_softmax == "catalogue":
        batch = with_catalogue_items(batch, trie.items)
    batch = moved(batch, device)
    scored = GroupReference(reference) if loss.group_size else Reference(reference)
    model = ComposerUGT(policy, loss, scored, trie.to(device), k_values=(5,), beam_width=5, exclude_seen=False).train()
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        losses = loss(model(batch), batch)
    losses["total_loss"].backward()
    values = {name: value for name, value in losses.items() if name != "metrics"} | losses["metrics"]
    gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    return tuple({k: v.detach().double().cpu() for k, v in part.items()} for part in (values, gradients))


VARIANTS = {
    "dropless": {},
    "capacity": {"expert_capacity_factor": 1.0},
    "over the catalogue": {"level_softmax": "catalogue"},
    "mean pooling, positions from the end": {"user_pooling": "mean", "history_positions": "from_end"},
    "relu, own head weights": {"attention_activation": "relu", "tie_embeddings": False},
    "actions, times and their bias": {"num_actions": 3, "time_buckets": 32, "relative_time_bias": True},
}
CATALOGUE = {"level_softmax": "catalogue", "pair_buckets": 100, "repeat_bias": True, "decoder_start": "user"}
DISTILLATION = {"contrastive_negatives": "catalogue", "lambda_distillation": 1.0}
GROUP = {"preference_objective": "group", "group_rewards": (0.1, 0.3, 1.0), "lambda_preference": 1.0}
OBJECTIVES = {
    "an anchor": ({}, {"lambda_anchor": 0.4}),
    "pairs and distillation": (CATALOGUE, DISTILLATION),
    "a group": (CATALOGUE, GROUP),
    "a group without scaled rewards": (CATALOGUE, GROUP | {"group_scale_rewards": False}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_float32_equals_a_cpus(gpu, name):
    equals_a_cpus(gpu, VARIANTS[name])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_float32_of_an_objective_equals_a_cpus(gpu, name):
    losses = equals_a_cpus(gpu, *OBJECTIVES[name])
    added = {"distillation": "distillation_loss", "group": "group_loss", "anchor": "anchor_loss"}
    assert all(losses[loss] != 0 for word, loss in added.items() if word in name)


def equals_a_cpus(gpu, changes: dict, loss_arguments: dict | None = None) -> dict[str, Tensor]:
    """Compares losses and gradients, and returns the losses."""
    config = replace(WIDE, **changes)
    (losses, gradients), (wanted, wanted_gradients) = (
        step(config, device, **(loss_arguments or {})) for device in (gpu, torch.device("cpu"))
    )
    assert losses.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(losses[key], value, **EXACT, msg=lambda text, key=key: f"{key}: {text}")
    assert gradients.keys() == wanted_gradients.keys()
    for key, value in wanted_gradients.items():
        assert relative(gradients[key], value) < 1e-4, key
    return losses


@pytest.mark.parametrize("negatives", ["in_batch", "catalogue"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision_stays_near_float32(gpu, dtype, bound, similarity, negatives):
    arguments = {"contrastive_similarity": similarity, "contrastive_negatives": negatives}
    arguments |= {"contrastive_temperature": 1.0} if similarity == "dot" else {}
    stays_near_float32(gpu, dtype, bound, WIDE, arguments)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision_of_pairs_and_distillation_stays_near_float32(gpu, dtype, bound):
    stays_near_float32(gpu, dtype, bound, replace(WIDE, **CATALOGUE), DISTILLATION)


def stays_near_float32(gpu, dtype, bound, config: ModelConfig, loss_arguments: dict) -> None:
    half, half_gradients = step(config, gpu, dtype, **loss_arguments)
    single, single_gradients = step(config, gpu, **loss_arguments)
    for key in single:
        if not key.endswith(("_acc", "accuracy", "margin")):
            assert abs(half[key] - single[key]) <= bound * max(1.0, abs(single[key])), key
    flat = [torch.cat([g.flatten() for g in part.values()]) for part in (half_gradients, single_gradients)]
    assert relative(*flat) < 20 * bound


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))


def test_a_policy_and_its_reference_agree_to_the_last_bit(gpu):
    batch = moved(make_batch(rows=24, history=100, target=6, rejected=3, seed=5), gpu)
    for dtype in (None, torch.bfloat16, torch.float16):
        for capacity in (None, 0.5, 1.25):
            config = replace(WIDE, expert_capacity_factor=capacity)
            policy, reference = (build_model(config, 1).to(gpu).train() for _ in range(2))
            with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
                outputs = policy(batch)
                logps = Reference(reference).train()(batch)["logps"]
            ours = torch.cat((outputs["chosen_logps"][:, None], outputs["rejected_logps"]), dim=1)
            assert ours.requires_grad
            assert not logps.requires_grad
            assert torch.equal(ours, logps), (dtype, capacity)


def test_products_that_promise_float32_keep_it_where_tf32_is_allowed(gpu):
    a, b = (torch.randn(256, 256, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    exact = a.double() @ b.double()
    a, b = a.to(gpu).requires_grad_(), b.to(gpu)
    try:
        allow_tf32(True)
        rough, found = a @ b, float32_matmul(a, b)
        found.sum().backward()
    finally:
        allow_tf32(False)
    assert relative(rough.double().cpu(), exact) > 1e-5 or torch.cuda.get_device_capability() < (8, 0)
    assert relative(found.double().cpu(), exact) < 1e-6
    assert relative(a.grad.double().cpu(), b.double().cpu().sum(1).expand(256, -1)) < 1e-6


@pytest.mark.parametrize("piece", [1 << 30, 40 * 3000 * 4])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_scores_of_labels_and_their_gradients_are_those_of_a_cpu(gpu, monkeypatch, dtype, bound, piece):
    monkeypatch.setitem(PIECE_BYTES, "cuda", piece)
    generator = torch.Generator().manual_seed(0)
    inputs = [0.5 * torch.randn(*shape, generator=generator) for shape in ((200, 64), (3000, 64), (3000,))]
    inputs = [*(x.to(dtype) for x in inputs[:2]), inputs[2]]
    ids, factors = torch.randint(3000, (200, 2), generator=generator), torch.randn(200, 2, generator=generator)

    def run(*inputs):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        scores = label_scores(*leaves, ids=ids.to(leaves[0].device))
        ((scores.logps * factors.to(scores.logps)).sum() + scores.mean_logps.sum()).backward()
        return [x.detach().double().cpu() for x in (scores.logps, *(leaf.grad for leaf in leaves))]

    found, again = (run(*(x.to(gpu) for x in inputs)) for _ in range(2))
    expected = run(*(x.double() for x in inputs))
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) < bound


def test_the_three_ways_through_the_experts_agree(gpu):
    batch = moved(make_batch(rows=32, history=20, target=6, seed=1), gpu)
    outputs = {}
    for way, factor in (("dropless", None), ("capacity", 100.0)):
        model = build_model(replace(WIDE, expert_capacity_factor=factor), 1).to(gpu).train()
        outputs[way] = model(batch, with_logits=True)["l3_logits"]
    for layer in model.decoder.layers:
        layer.ff.all_experts = True
    outputs["all"] = model.eval()(batch, with_logits=True)["l3_logits"]
    for way in ("capacity", "all"):
        torch.testing.assert_close(outputs[way], outputs["dropless"], rtol=1e-4, atol=1e-5)


def test_the_ways_through_the_experts_agree_in_bfloat16(gpu, monkeypatch):
    batch, results = moved(make_batch(rows=32, history=20, target=6, seed=1), gpu), {}
    monkeypatch.setattr(MoEFeedForward, "_is_cheaper_than_waiting", lambda self, tokens: False)
    can_group = IS_AVAILABLE or kernels.are_usable(torch.empty(1, device=gpu))
    for way in ("dropless", "capacity", "all", *(["grouped"] if can_group else [])):
        monkeypatch.setattr(MoEFeedForward, "_can_group", lambda self, tokens, way=way: way == "grouped")
        model = build_model(replace(WIDE, expert_capacity_factor=100.0 if way == "capacity" else None), 1)
        model = model.to(gpu).train()
        for layer in model.decoder.layers:
            layer.ff.all_experts = way == "all"
        with torch.autocast(gpu.type, torch.bfloat16):
            logits = model(batch, with_logits=True)["l3_logits"]
        logits.float().square().mean().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results[way] = logits.detach().float(), gradients
    for way in results:
        for found, expected in zip(results[way], results["dropless"], strict=True):
            assert relative(found, expected) < 2e-2, way


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_pointwise_product_equals_float64(gpu, activation):
    q, k, v = (torch.randn(6, 70, 16, generator=torch.Generator().manual_seed(seed)).double() for seed in range(3))
    phi = {"silu": torch.nn.functional.silu, "relu": torch.relu}[activation]
    wanted = phi(q @ k.transpose(1, 2)) @ v
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
        found = pointwise_product(*(x.to(gpu, dtype) for x in (q, k, v)), activation=activation)
        assert found.dtype == dtype
        assert relative(found.double().cpu(), wanted) < bound


def test_group_layer_norm_equals_float64(gpu):
    norm = GroupLayerNorm(64, 4).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(5, 40, 64, generator=generator, dtype=torch.float64)
    types = torch.randint(0, 4, (5, 40), generator=generator)
    found = []
    for device, dtype in ((torch.device("cpu"), torch.float64), (gpu, torch.float32)):
        own, given = norm.to(device, dtype), x.to(device, dtype).detach().requires_grad_()
        own.zero_grad()
        out = own(given, types.to(device))
        out.square().sum().backward()
        values = (out, given.grad, own.weight.grad, own.bias.grad)
        found.append([value.detach().double().cpu() for value in values])
    for ours, wanted in zip(*found[::-1], strict=True):
        assert relative(ours, wanted) < 1e-5


@pytest.mark.parametrize("over_catalogue", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_recommendations_equal_a_cpus(gpu, over_catalogue, weight):
    config = replace(WIDE, level_softmax="catalogue" if over_catalogue else "codebook")
    batch, found = make_batch(rows=16, history=30, target=2, seed=7), []
    for device in (torch.device("cpu"), gpu):
        model, trie = build_model(config, 1).to(device).eval(), all_items().to(device)
        given = moved(batch, device)
        with torch.no_grad():
            memory = model.encode(given)
            hidden = model.start_over(memory, given)
            scores = None
            if weight:
                users = model.user_vector(memory)
                scores = ItemScores(users, model.item_vectors(trie.items), 0.07, weight)
            best = beam_search(model.level_logits, hidden, trie, 20, 50, given["encoder_ids"], scores, over_catalogue)
        found.append(best)
    wanted, ours = found
    for name in ("scores", "log_probs", "best_dropped"):
        values = (getattr(part, name).cpu() for part in (ours, wanted))
        torch.testing.assert_close(*values, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    same = (ours.item_index.cpu() == wanted.item_index).float().mean()
    assert same > 0.97  # near ties may swap places


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_drawn_items_and_scores_of_items_equal_a_cpus(gpu, similarity):
    """All draws are equal: with this seed, no two ids that could be drawn are as near as a rounding error."""
    items, generator = all_items(), torch.Generator().manual_seed(8)
    batch = with_catalogue_items(make_batch(rows=32, history=30, target=2, seed=7), items.items)
    following = torch.randint(len(items), (len(items), 6), generator=generator)
    chances, found = torch.rand(len(items), 6, generator=generator) / 6, []
    for device in (torch.device("cpu"), gpu):
        model, given = made(replace(WIDE, **CATALOGUE), 1).to(device).eval(), moved(batch, device)
        trie = all_items(withheld=np.arange(400) % 3 == 0).to(device)
        noise = RowNoise(given["row_ids"], torch.tensor(3, device=device), seed=1)
        with torch.no_grad():
            memory = model.encode(given)
            hidden, users = model.start_over(memory, given), model.user_vector(memory)
            seen = model.seen_nodes(given, trie)
            biases = model.repeat_biases(hidden.unsqueeze(1), seen)
            drawn = draw_group(model.level_logits, hidden, given["labels"][:, 0], trie, 64, noise, biases)
            log_probs = score_items(model.level_logits, hidden, trie.items.expand(32, -1, -1), trie, biases=biases)
            repeats = model.seen_items(users, seen)
            counted = NeighbourScores.of(given, trie, ItemNeighbours(following, chances).to(device), weight=0.2)
            scores = ItemScores(users, model.item_vectors(trie.items), 0.07, 0.5, similarity, counted, repeats)
        drawn |= {"log_probs": log_probs, "item_scores": scores(slice(4, 20))}
        found.append({name: value.cpu() for name, value in drawn.items()})
    wanted, ours = found
    assert (wanted["group_target_items"] >= 0).any()
    assert (wanted["group_target_items"] < 0).any()
    for name, value in wanted.items():
        if value.dtype == torch.int64:
            assert torch.equal(ours[name], value), name
        else:
            message = lambda text, name=name: f"{name}: {text}"  # noqa: E731
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-4, msg=message)


@pytest.mark.parametrize(("capacity", "half"), [(1.25, False), (None, True)])
def test_a_compiled_layer_gives_what_an_eager_one_gives(gpu, capacity, half):
    batch = moved(make_batch(rows=16, history=64, target=6, seed=2), gpu)
    losses = {}
    for compiled in (False, True):
        config = replace(WIDE, expert_capacity_factor=capacity)
        model = build_model(config, 1).to(gpu).train()
        if compiled:
            for layer in (*model.encoder.layers, *model.decoder.layers):
                layer.compile()
        loss = UnifiedLoss(repr_dim=WIDE.d_model).to(gpu)
        with torch.autocast(gpu.type, torch.bfloat16, enabled=half):
            total = loss(model(batch), batch)["total_loss"]
        total.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        losses[compiled] = torch.stack((total.detach(), norm)).cpu()
    torch.testing.assert_close(losses[True], losses[False], rtol=2e-2 if half else 1e-4, atol=1e-5)


def test_times_are_in_the_same_buckets_as_on_a_cpu(gpu):
    edges = torch.tensor([2**power + step for power in range(52) for step in (-1, 0, 1)] + [-1, 2**62])
    for buckets in (2, 32, 1000):
        assert torch.equal(time_bucket(edges.to(gpu), buckets).cpu(), time_bucket(edges, buckets))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_time_bias_is_the_same_each_time(gpu, dtype):
    generator = torch.Generator(gpu).manual_seed(0)
    times = torch.randint(0, 10**6, (9, 300), generator=generator, device=gpu).cumsum(1)
    q, k, v, gradient = (torch.randn(9, 4, 300, 32, generator=generator, device=gpu, dtype=dtype) for _ in range(4))
    bias, found = torch.randn(4, 33, generator=generator, device=gpu, requires_grad=True), []
    for _ in range(2):
        out = biased_pointwise_product(q, k, v, bias, times, "silu")
        found.append(torch.autograd.grad(out, bias, gradient)[0])
    assert torch.equal(*found)
    exact = bias.detach().double().requires_grad_()
    out = biased_pointwise_product(q.double(), k.double(), v.double(), exact, times, "silu")
    (expected,) = torch.autograd.grad(out, exact, gradient.double())
    assert relative(found[0].double(), expected) < (1e-5 if dtype == torch.float32 else 2e-2)
