"""Comparison with a T5 model of transformers of the same width and depth: a training step, and generation with beams.

T5 reads an item as three tokens of one vocabulary, the concatenated codebooks, as in generative recommenders built on
it. Both run alternately in one process.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks.on_gpu.goals import EQUAL
from benchmarks.on_gpu.recommend import recommender
from benchmarks.on_gpu.report import Report
from benchmarks.on_gpu.steps import (
    HISTORY,
    SMALL_HISTORY,
    TARGET,
    build_stage,
    forward_flops,
    gib,
    in_turns,
    make_batch,
    peak_memory,
    per_second,
    random_items,
    runs_within_memory,
    stage_config,
)
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.config.schema import Config
from ugt_composer.model.build import build_model
from ugt_composer.model.moe import MoEFeedForward
from ugt_composer.model.ugt import UGT
from ugt_composer.training.microbatch import split_batch
from ugt_composer.vocabulary import LEVELS

ROWS, SMALL_ROWS = 64, 8
ITEMS, SMALL_ITEMS = 1_000_000, 1000
BEAMS, SMALL_BEAMS = 50, 5
GENERATION_ROWS = 32
REPETITIONS = 3


def measure(report: Report, variant: str, small: bool) -> None:
    history = SMALL_HISTORY if small else HISTORY
    rows = SMALL_ROWS if small else ROWS
    measure_training(report, rows, history, small)
    items, beams = (SMALL_ITEMS, SMALL_BEAMS) if small else (ITEMS, BEAMS)
    measure_generation(report, min(GENERATION_ROWS, rows), history, items, beams, small)


def measure_training(report: Report, rows: int, history: int, small: bool) -> None:
    config = stage_config(
        1,
        small,
        f"global_train_batch_size={rows}",
        f"device_train_microbatch_size={rows}",
        "parallelism.activation_checkpointing=false",
    )
    stage = build_stage(config)
    batch = make_batch(config, history)
    ours = partial(stage.step, batch)
    ours()  # allocates our memory before T5 takes the rest
    parameters = sum(parameter.numel() for parameter in stage.model.parameters())
    report.table(
        "training",
        f"A step of {rows} rows in bf16 autocast: forward, loss, backward, clipping, AdamW. Ours: stage 1, "
        f"{millions(parameters)} parameters, {millions(our_active_parameters(stage.model))} of them active per token, "
        f"{stage.flops(batch) / 1e12:.2f} model TFLOP, {history} items of history, {TARGET} of the target, one "
        f"microbatch. T5 ({torch_t5(config)}) has dense feed-forwards of d_ff {config.model.d_ff} unless a row says "
        f"otherwise; ours {config.model.num_experts} experts of that width, {config.model.top_k_experts} per token. "
        "Active: without the tables of embeddings, and of the experts those of one token. T5's microbatch is the "
        "largest that fits beside our model.",
        (
            "T5 with",
            "our ms",
            "T5's ms",
            "our rows/s",
            "T5's rows/s",
            "T5's / our ms",
            "T5's rows per microbatch",
            "T5's TFLOP",
            "T5's parameters",
            "of them active",
        ),
    )
    same, third = (LEVELS * history, LEVELS * TARGET), (history, TARGET)
    active = our_active_parameters(stage.model)
    for what, settings, tokens in (
        (f"the same items: {same[0]} + {same[1]} tokens", t5_config(config), same),
        (EQUAL, with_more_layers(config, active), same),
        ("the same items, as many active parameters by d_ff", with_wider_layers(config, active), same),
        (f"the same number of tokens: {history} + {TARGET}, a third of the items", t5_config(config), third),
    ):
        report.attempt(what, lambda: training_row(config, settings, ours, rows, *tokens))  # noqa: B023


def our_active_parameters(model: UGT) -> int:
    """Parameters that a token is computed with if it passes through encoder and decoder: no tables of embeddings, and
    of the experts those of one token."""
    total = sum(parameter.numel() for parameter in model.parameters())
    total -= sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Embedding))
    for layer in model.modules():
        if isinstance(layer, MoEFeedForward):
            experts = layer.up.numel() + layer.up_bias.numel() + layer.down.numel() + layer.down_bias.numel()
            total -= experts * (layer.num_experts - layer.top_k) // layer.num_experts
    return total


def t5_active_parameters(settings: T5Config) -> int:
    with torch.device("meta"):
        model = T5ForConditionalGeneration(settings)
    return sum(parameter.numel() for parameter in model.parameters()) - model.shared.weight.numel()


def with_more_layers(config: Config, active: int) -> T5Config:
    """With about as many active parameters, by layers of the decoder: a layer of the encoder then has about as many as
    one of ours, which is the faster of the two ways, because most tokens are the encoder's."""
    few, more = (t5_active_parameters(t5_config(config, num_decoder_layers=layers)) for layers in (1, 2))
    return t5_config(config, num_decoder_layers=1 + max(0, round((active - few) / (more - few))))


def with_wider_layers(config: Config, active: int) -> T5Config:
    """With about as many active parameters, by the width of all feed-forward layers."""
    narrow, wider = (t5_active_parameters(t5_config(config, d_ff=width)) for width in (64, 128))
    return t5_config(config, d_ff=64 * (1 + max(0, round((active - narrow) / (wider - narrow)))))


def training_row(
    config: Config, settings: T5Config, ours: Callable[[], object], rows: int, *tokens: int
) -> Sequence[object]:
    model = t5(settings).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.lr)
    ids, labels = (random_tokens(config, rows, length) for length in tokens)

    def loss(few: slice) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            mask = torch.ones_like(ids[few])
            return model(input_ids=ids[few], attention_mask=mask, labels=labels[few], use_cache=False).loss

    def step(microbatch: int) -> None:
        for start in range(0, rows, microbatch):
            (loss(slice(start, start + microbatch)) * microbatch / rows).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    microbatch = rows
    while not runs_within_memory(partial(step, microbatch)):
        if microbatch == 1:
            raise torch.OutOfMemoryError("a microbatch of one row does not fit")
        optimizer.zero_grad(set_to_none=True)
        microbatch //= 2
    with torch.no_grad():
        flops = 3 * forward_flops(lambda: loss(slice(0, microbatch))) * rows / microbatch
    ratio, our_ms, rival_ms = in_turns(ours, lambda: step(microbatch), REPETITIONS)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rates = (f"{per_second(rows, ms):,.1f}" for ms in (our_ms, rival_ms))
    cells = f"{our_ms:.1f}", f"{rival_ms:.1f}", *rates, f"{ratio:.2f}", microbatch, f"{flops / 1e12:.2f}"
    return *cells, millions(parameters), millions(t5_active_parameters(settings))


def millions(count: int) -> str:
    return f"{count / 1e6:.0f} million"


def measure_generation(report: Report, rows: int, history: int, items: int, beams: int, small: bool) -> None:
    report.table(
        "generation",
        f"The best {beams} items of {items:,} with {beams} beams, bf16 autocast, histories of {history} items "
        f"({LEVELS * history} tokens for T5). Ours generates only existing items. T5: `generate` of three tokens, "
        "without constraint or restricted to existing items by a prefix_allowed_tokens_fn. Both use as many rows as "
        f"fit for T5, at most {rows}.",
        ("T5's `generate`", "rows", "our ms", "T5's ms", "our rows/s", "T5's rows/s", "T5's / our ms", "T5's peak GiB"),
    )
    config = stage_config(1, small)
    triples = random_items(config, items)
    ours = build_model(config.model, seed=0).cuda().eval()
    trie = ItemTrie.from_triples(triples).to("cuda")
    model = t5(t5_config(config)).eval()
    batch = make_batch(config, history, rows=rows)
    for what, allowed in (("unconstrained", None), ("prefix_allowed_tokens_fn", allowed_tokens(config, triples))):
        report.attempt(
            what,
            lambda: generation_row(
                config,
                model,
                allowed,  # noqa: B023
                lambda few: recommender(ours, trie, few, "amp_bf16", beams),
                batch,
                LEVELS * history,
                beams,
            ),
        )


def generation_row(
    config: Config,
    model: T5ForConditionalGeneration,
    allowed: Callable[[int, Tensor], list[int]] | None,
    make_ours: Callable[[dict[str, Any]], Callable[[], object]],
    batch: dict[str, Any],
    tokens: int,
    beams: int,
) -> Sequence[object]:
    rows = len(batch["row_ids"])
    ids = random_tokens(config, rows, tokens)

    @torch.inference_mode()
    def generate() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return model.generate(
                ids[:rows],
                attention_mask=torch.ones_like(ids[:rows]),
                num_beams=beams,
                num_return_sequences=beams,
                max_new_tokens=LEVELS,
                do_sample=False,
                prefix_allowed_tokens_fn=allowed,
            )

    while not runs_within_memory(generate):
        if rows == 1:
            raise torch.OutOfMemoryError("one row does not fit")
        rows //= 2
    with peak_memory() as peak:
        generate()
        allocated = peak().allocated
    few = split_batch(batch, rows)[0]
    ratio, our_ms, rival_ms = in_turns(make_ours(few), generate, REPETITIONS)
    rates = (f"{per_second(rows, ms):,.1f}" for ms in (our_ms, rival_ms))
    return rows, f"{our_ms:.1f}", f"{rival_ms:.1f}", *rates, f"{ratio:.1f}", gib(allocated)


def t5(settings: T5Config) -> T5ForConditionalGeneration:
    """A T5 model with random weights, on the GPU."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        return T5ForConditionalGeneration(settings)


def t5_config(config: Config, **changes: int) -> T5Config:
    model = config.model
    sizes = {
        "d_ff": model.d_ff,
        "num_layers": model.n_encoder_layers,
        "num_decoder_layers": model.n_decoder_layers,
        **changes,
    }
    return T5Config(
        vocab_size=sum(model.codebook_sizes),
        d_model=model.d_model,
        d_kv=model.d_model // model.n_heads,
        num_heads=model.n_heads,
        dropout_rate=model.dropout,
        decoder_start_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
        **sizes,
    )


def torch_t5(config: Config) -> str:
    """The attention implementation that this version of transformers uses for T5."""
    with torch.device("meta"):
        return f"attention: {T5ForConditionalGeneration(t5_config(config)).config._attn_implementation}"


def random_tokens(config: Config, rows: int, length: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(0)
    return torch.randint(5, sum(config.model.codebook_sizes), (rows, length), generator=generator, device="cuda")


def allowed_tokens(config: Config, triples: np.ndarray) -> Callable[[int, Tensor], list[int]]:
    """prefix_allowed_tokens_fn for `generate`: the tokens that may follow a prefix. triples: (n, 3), sorted."""
    sizes = config.model.codebook_sizes
    offsets = np.cumsum([0, *sizes[:-1]])
    first = triples[:, 0]
    pairs = first * sizes[1] + triples[:, 1]
    roots = (np.unique(first) + offsets[0]).tolist()

    def allowed(row: int, tokens: Tensor) -> list[int]:
        prefix = tokens[1:].tolist()  # without the start token
        if not prefix:
            return roots
        ids = [token - int(offset) for token, offset in zip(prefix, offsets, strict=False)]
        keys, key = (first, ids[0]) if len(ids) == 1 else (pairs, ids[0] * sizes[1] + ids[1])
        start, end = np.searchsorted(keys, [key, key + 1])
        # A dead beam has ids of no item.
        return (np.unique(triples[start:end, len(ids)]) + offsets[len(ids)]).tolist() or [0]

    return allowed
