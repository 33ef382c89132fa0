"""The model's layers one by one, compared with PyTorch's layers of the same size, and the kernels of a step."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.on_gpu.report import Report
from benchmarks.on_gpu.steps import (
    HISTORY,
    SMALL_HISTORY,
    TARGET,
    build_stage,
    every_token_in_its_slot,
    forward_flops,
    gib,
    make_batch,
    peak_memory,
    per_second,
    stage_config,
    timed,
)
from ugt_composer import kernels
from ugt_composer.config.schema import ModelConfig
from ugt_composer.model import grouped_product
from ugt_composer.model.attention import CrossAttention, PointwiseAttention
from ugt_composer.model.encoder import FeedForward
from ugt_composer.model.history_tokens import EncodedHistory, HistoryTokens
from ugt_composer.model.moe import MoEFeedForward
from ugt_composer.model.norm import GroupLayerNorm
from ugt_composer.model.pointwise_product import pointwise_product

ROWS, SMALL_ROWS = 64, 4
DECODER_ROWS = 512  # rows of a shipped microbatch
PROFILED_ROWS = 256
TOP = 20
# What computes experts without a capacity: this package's kernels, PyTorch, or one expert after the other (for up to
# FEW_TOKENS tokens all experts).
TRITON, GROUPED_MM, LOOP = "Triton", "grouped_mm", "products that are not grouped"


def measure(report: Report, variant: str, small: bool) -> None:
    rows, history = (SMALL_ROWS, SMALL_HISTORY) if small else (ROWS, HISTORY)
    model = stage_config(1, small).model
    report.table(
        "layers",
        f"Forward and backward in bf16 autocast, dropout off, {rows} rows of {history} tokens, width {model.d_model}, "
        f"{model.n_heads} heads; the decoder's layers have {TARGET} tokens per row. TFLOP are model operations: those "
        "of three forward passes. GB is the minimum of memory traffic: inputs, outputs, parameters and the gradients "
        "of each, once. GB/s compared with the card's memory bandwidth shows how far a layer is from this minimum.",
        ("what", "ms", "TFLOP/s", "GB at least", "GB/s", "peak GiB"),
    )
    for what, make in layers(model, rows, DECODER_ROWS if not small else rows, history).items():
        report.attempt(what, lambda: row(make))  # noqa: B023
    for what, (way, make) in experts_without_capacity(model, rows, DECODER_ROWS if not small else rows).items():
        with grouped_products_by(way):
            report.attempt(what, lambda: row(make))  # noqa: B023
    profile_step(report, small)


def layers(model: ModelConfig, rows: int, decoder_rows: int, history: int) -> dict[str, Callable[[], tuple]]:
    """Name → a function that makes (module with the parameters or None, forward, differentiable inputs)."""
    d, heads, width = model.d_model, model.n_heads, model.d_ff

    def head_inputs() -> list[Tensor]:
        return [vectors(rows * heads, history, d // heads) for _ in range(3)]

    mask = torch.ones(rows, history, dtype=torch.bool, device="cuda")
    types = torch.ones(rows, history, dtype=torch.long, device="cuda")

    def of_module(module: nn.Module, *shape: int, arguments: Sequence[Any] = ()) -> tuple:
        x = vectors(*shape, d)
        return module, lambda: module(x, *arguments), [x]

    def pointwise() -> tuple:
        inputs = head_inputs()
        return None, lambda: pointwise_product(*inputs, activation="silu"), inputs

    def softmax(is_causal: bool = False) -> tuple:
        inputs = [vectors(rows, heads, history, d // heads) for _ in range(3)]
        return None, lambda: F.scaled_dot_product_attention(*inputs), inputs

    def cross() -> tuple:
        memory = vectors(rows, history, d)
        return of_module(
            CrossAttention(d, heads, 0.0).cuda(), rows, TARGET, arguments=(EncodedHistory(memory, HistoryTokens(mask)),)
        )

    of_experts = f"{model.num_experts} experts, top {model.top_k_experts}"
    few, many = rows * TARGET, decoder_rows * TARGET
    dense = model.top_k_experts * width
    moe = functools.partial(experts, model, model.expert_capacity_factor)
    return {
        "φ(Q Kᵀ) V in pieces, the path without kernels": pointwise,
        "… torch scaled_dot_product_attention": softmax,
        "pointwise attention, whole layer": lambda: of_module(
            PointwiseAttention(d, heads, 0.0).cuda(), rows, history, arguments=(HistoryTokens(mask),)
        ),
        "group layer norm": lambda: of_module(
            GroupLayerNorm(d, model.num_token_types).cuda(), rows, history, arguments=(types,)
        ),
        "… torch LayerNorm": lambda: of_module(nn.LayerNorm(d).cuda(), rows, history),
        "encoder's feed-forward": lambda: of_module(FeedForward(d, width, 0.0).cuda(), rows, history),
        "cross-attention": cross,
        f"MoE, {few:,} tokens, {of_experts}": lambda: moe(rows),
        f"… dense feed-forward of {dense}, {few:,} tokens": lambda: of_module(
            FeedForward(d, dense, 0.0).cuda(), rows, TARGET
        ),
        f"MoE, {many:,} tokens, {of_experts}": lambda: moe(decoder_rows),
        f"… dense feed-forward of {dense}, {many:,} tokens": lambda: of_module(
            FeedForward(d, dense, 0.0).cuda(), decoder_rows, TARGET
        ),
    }


def experts_without_capacity(model: ModelConfig, *rows: int) -> dict[str, tuple[str, Callable[[], tuple]]]:
    """Name → what computes the products, and a function as in `layers`."""

    def make(way: str, count: int) -> tuple:
        layer, forward, (x,) = experts(model, None, count)
        if layer._can_group(x.flatten(0, 1)) != (way != LOOP):
            raise RuntimeError(f"{way} does not compute grouped products on this GPU without waiting")
        return layer, forward, [x]

    return {
        f"MoE without a capacity, {count * TARGET:,} tokens, {way}": (way, functools.partial(make, way, count))
        for count in dict.fromkeys(rows)
        for way in (TRITON, GROUPED_MM, LOOP)
    }


def experts(model: ModelConfig, capacity_factor: float | None, rows: int) -> tuple:
    layer = MoEFeedForward(
        model.d_model, model.d_ff, model.num_experts, model.top_k_experts, capacity_factor, dropout=0.0
    ).cuda()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.02)
    x, valid = vectors(rows, TARGET, model.d_model), torch.ones(rows, TARGET, dtype=torch.bool, device="cuda")
    return layer, lambda: layer(x, valid)[0], [x]


@contextmanager
def grouped_products_by(way: str) -> Iterator[None]:
    changes: dict[str, tuple[Any, str, Any]] = {
        TRITON: (grouped_product, "IS_AVAILABLE", False),
        GROUPED_MM: (kernels, "are_usable", lambda x: False),
        LOOP: (MoEFeedForward, "_can_group", lambda self, tokens: False),
    }
    with mock.patch.object(*changes[way]):
        yield


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)


def row(make: Callable[[], tuple]) -> Sequence[object]:
    module, forward, inputs = make()
    with torch.autocast("cuda", torch.bfloat16):
        grad = torch.randn_like(forward())
    parameters = [] if module is None else list(module.parameters())
    moved = 2 * sum(one.numel() * one.element_size() for one in (*inputs, grad, *parameters))

    def run() -> None:
        for one in (*inputs, *parameters):
            one.grad = None
        with torch.autocast("cuda", torch.bfloat16):
            out = forward()
        out.backward(grad)

    with torch.autocast("cuda", torch.bfloat16), every_token_in_its_slot(module or nn.Identity()):
        flops = 3 * forward_flops(forward)
    with peak_memory() as peak:
        ms = timed(run, seconds=0.5).ms
        allocated = peak().allocated
    cells = f"{ms:.3f}", f"{per_second(flops, ms) / 1e12:.1f}", f"{moved / 1e9:.2f}"
    return *cells, f"{per_second(moved, ms) / 1e9:,.0f}", gib(allocated)


def profile_step(report: Report, small: bool) -> None:
    microbatch = 4 if small else PROFILED_ROWS // 2
    report.table(
        "kernels of a step",
        f"torch.profiler over one step of stage 1, two microbatches of {microbatch} rows, no activation checkpointing, "
        f"after two warm-up steps: the {TOP} CUDA kernels with the largest total time.",
        ("what", "ms in kernels", "kernels"),
    )
    report.attempt("a step of stage 1", lambda: profiled(report, microbatch, small))


def profiled(report: Report, microbatch: int, small: bool) -> Sequence[object]:
    config = stage_config(
        1,
        small,
        f"device_train_microbatch_size={microbatch}",
        f"global_train_batch_size={2 * microbatch}",
        "parallelism.activation_checkpointing=false",
    )
    stage = build_stage(config)
    batch = make_batch(config, SMALL_HISTORY if small else HISTORY)
    for _ in range(2):
        stage.step(batch)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        stage.step(batch)
        torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda kernel: kernel.self_device_time_total, reverse=True)
    total = sum(kernel.self_device_time_total for kernel in events)
    lines = [
        f"{kernel.self_device_time_total / 1000:9.2f} ms {kernel.self_device_time_total / max(total, 1):6.1%} "
        f"{kernel.count:6d} × {kernel.key[:110]}"
        for kernel in events[:TOP]
    ]
    report.text(*(lines or ["The profiler recorded no kernel."]))
    return f"{total / 1000:.1f}", sum(kernel.count for kernel in events)
