"""What a run would be: config, data, steps, parameters, memory. Builds no trainer and reads no shard."""

import os
from dataclasses import asdict
from pathlib import Path

import torch

from ugt_composer.checkpoint.portable import CONFIG, WEIGHTS
from ugt_composer.config import Config, config_yaml
from ugt_composer.data.manifest import Manifest, check_data, streams_of
from ugt_composer.errors import UserError
from ugt_composer.model.build import freeze_untrained
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.memory import DEVICE, FLOAT, HALF, HOST, SMALL, Held, memory_per_rank
from ugt_composer.preflight import (
    about_catalogue,
    about_precision,
    check_kinds,
    check_reference_log_probs,
    check_run,
    device_batch_size,
    load_catalogue,
    load_item_vectors,
    resolve_precision,
)
from ugt_composer.run_length import run_length
from ugt_composer.s3_url import is_url

MIB, GIB = 2**20, 2**30


def describe(config: Config) -> str:
    """The report of `train.py --dry-run`. UserError for what would stop the run: missing data, a bad init_from."""
    check_run(config)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    train = check_data(config, "data.train", streams_of("data.train", config.data.train))
    check_kinds(config, train)
    catalogue = load_catalogue(config)
    load_item_vectors(config, catalogue)
    evaluation = (
        check_data(config, "data.eval", streams_of("data.eval", config.data.eval)) if config.data.eval.is_given else []
    )
    for key, folder in (("init_from", config.init_from), ("loss.reference_from", config.loss.reference_from)):
        for name in (WEIGHTS, CONFIG) if folder and not is_url(folder) else ():
            if not (Path(folder or "") / name).is_file():
                raise UserError(f"{key}: {Path(folder or '') / name} does not exist; train the stage before first")
    reference = str(config.loss.reference_from or config.init_from)
    if config.loss.reference_log_probs == "data" and not is_url(reference):
        check_reference_log_probs(config, Path(reference))
    with torch.device("meta"):
        model = UGT(**asdict(config.model))
    parts = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}
    lines = [
        "# config",
        config_yaml(config).rstrip(),
        "",
        "# data",
        *_data_lines("train", train),
        *_data_lines("eval", evaluation),
        f"items  {len(catalogue):>12,} in {config.data.catalogue}" if catalogue else "",
        about_catalogue(config, catalogue) or "",
        "",
        "# steps",
        *_step_lines(config, train, world_size),
        *filter(None, [about_precision(config)]),
        "",
        "# parameters",
        *(f"{name:16} {count:>14,}" for name, count in parts.items()),
        f"{'total':16} {sum(parts.values()):>14,}",
        "",
        f"# memory a rank of {world_size}, without activations",
        *_memory_lines(config, model, world_size),
    ]
    return "\n".join(lines)


def _data_lines(key: str, manifests: list[Manifest]) -> list[str]:
    if not manifests:
        return [f"{key:6} none on this machine"]
    return [f"{key:6} {m.rows:>12,} {m.kind} rows in {m.folder}" for m in manifests]


def _step_lines(config: Config, train: list[Manifest], world_size: int) -> list[str]:
    batch, device_batch = config.global_train_batch_size, device_batch_size(config, world_size)
    micro = config.device_train_microbatch_size
    pieces = "found while training" if isinstance(micro, str) else f"{-(-device_batch // micro)} of up to {micro}"
    lines = [
        f"ranks            {world_size} ({_strategy_name(config)})",
        f"batch            {batch} rows: {device_batch} a rank, microbatches: {pieces}",
    ]
    if len(train) < len(streams_of("data.train", config.data.train)):
        return [*lines, "epochs           unknown: the shards are remote"]
    length = run_length(config, sum(manifest.rows for manifest in train))
    return [
        *lines,
        f"an epoch         {length.batches_per_epoch:,} batches",
        f"the run          {length.total:,} batches ({config.max_duration})",
        f"warm-up          {length.warmup:,} batches",
    ]


def _has_microbatches(config: Config, world_size: int) -> bool:
    """Whether a rank's part of a batch is more than one microbatch; with auto it may be."""
    micro = config.device_train_microbatch_size
    return isinstance(micro, str) or device_batch_size(config, world_size) > micro


def _strategy_name(config: Config) -> str:
    strategy = config.parallelism.strategy
    return f"{strategy}, zero_stage {config.parallelism.deepspeed.zero_stage}" if strategy == "deepspeed" else strategy


def _memory_lines(config: Config, model: UGT, world_size: int) -> list[str]:
    parallelism, deepspeed = config.parallelism, config.parallelism.deepspeed
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in (*model.encoder.layers, *model.decoder.layers)]
    parameters = sum(p.numel() for p in model.parameters())
    freeze_untrained(model, config.loss.lambda_contrastive)
    half = resolve_precision(config.precision) != "fp32"
    offloads = (deepspeed.offload_optimizer != "none", deepspeed.offload_param != "none")
    if parallelism.strategy == "fsdp":
        offloads = (parallelism.fsdp.cpu_offload,) * 2
    held = memory_per_rank(
        parallelism.strategy,
        deepspeed.zero_stage,
        world_size,
        half,
        parameters,
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        max(*sizes, parameters - sum(sizes)),
        sum(p.numel() for p in model.parameters() if p.numel() < SMALL),
        *offloads,
        accumulates=_has_microbatches(config, world_size) and not parallelism.fsdp.reduce_every_microbatch,
    )
    if config.loss.needs_reference_model:
        # As the policy computes; FSDP's shards are float32.
        in_half = parallelism.strategy == "deepspeed" or (
            parallelism.strategy == "fsdp" and not parallelism.shard_reference
        )
        number = HALF if half and in_half else FLOAT
        share = world_size if parallelism.shard_reference else 1
        held.append(Held("reference", number * -(-parameters // share)))
    on_device = sum(item.bytes for item in held if item.where == DEVICE)
    uses_host = any(item.where == HOST for item in held)
    unit, name = (GIB, "GiB") if on_device >= GIB else (MIB, "MiB")
    return [
        *(f"{h.name:16} {h.bytes / unit:>10,.2f} {name}{' of host memory' * (h.where == HOST)}" for h in held),
        f"{'total':16} {on_device / unit:>10,.2f} {name}{' of the device' * uses_host}",
    ]
