"""What a run is about to do, in a few lines that are printed when it starts: data, steps, schedule, model, memory."""

import os
from collections.abc import Sequence

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.config.checks import device_batch_size
from ugt_composer.config.schema import Config
from ugt_composer.data.manifest import Manifest
from ugt_composer.model.moe import MoEFeedForward
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.build import strategy_class
from ugt_composer.parallelism.memory import HOST
from ugt_composer.terminal import counted
from ugt_composer.training.memory_estimate import GIB, Estimate, estimate, longest_rows
from ugt_composer.training.run_length import RunLength

MIB = 2**20
MOST_FOLDERS = 3  # named in a line


def start_summary(
    config: Config,
    train: Sequence[Manifest],
    evaluation: Sequence[Manifest],
    catalogue: Catalogue | None,
    length: RunLength,
    model: UGT,
    world_size: int,
    precision: str,
) -> list[str]:
    """
    Args:
        model: of the run, before a strategy places it; only its sizes are read.
        precision: amp_bf16, amp_fp16 or fp32.
    """
    longest = longest_rows(config, [*train, *evaluation])
    memory = estimate(config, world_size, longest, len(catalogue or ()), model, precision)
    lines = {
        "data": _data(config, train, evaluation, catalogue),
        "steps": _steps(config, length, world_size),
        "schedule": _schedule(config, length),
        "model": f"{_about_parameters(model)}, {precision}",
        "memory": about_memory(memory),
        "output": _output(config),
    }
    return [f"  {name:10}{text}" for name, text in lines.items()]


def active_parameters(model: UGT) -> int:
    """The parameters that compute a token: all but those of the experts that the router does not choose for it."""
    idle = 0
    for module in model.modules():
        if isinstance(module, MoEFeedForward):
            experts = sum(p.numel() for p in (module.up, module.up_bias, module.down, module.down_bias))
            idle += experts * (module.num_experts - module.top_k) // module.num_experts
    return sum(parameter.numel() for parameter in model.parameters()) - idle


def microbatches(config: Config, world_size: int) -> str:
    """How a rank divides its rows of a batch, such as "4 of up to 512 rows"."""
    size = config.device_train_microbatch_size
    if isinstance(size, str):
        return "found while training"
    return f"{-(-device_batch_size(config, world_size) // size)} of up to {size:,} rows"


def about_memory(memory: Estimate) -> str:
    """The estimated peak of a rank, and if this machine has a GPU, whether it fits."""
    host = sum(item.bytes for item in memory.items if item.where == HOST)
    of_host = f" and {in_units(host)} of host memory" if host else ""
    text = f"about {in_units(max(memory.peak, memory.evaluation_peak))} per rank{of_host}, estimated"
    if not memory.has_card:
        return text
    card = f"of the GPU's {in_units(memory.card)}"
    if memory.fits:
        return f"{text}, {card}"
    most = f"at most {memory.most_rows} rows per microbatch fit" if memory.most_rows else "not even one row fits"
    if memory.shape.rows <= memory.most_rows:
        most = "the evaluation does not fit, see device_eval_batch_size"
    return f"{text}, {card}, some of which the libraries need: {most}"


def in_units(number: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{number / GIB:,.1f} GiB" if number >= GIB else f"{number / MIB:,.0f} MiB"


def _about_parameters(model: UGT) -> str:
    total = sum(parameter.numel() for parameter in model.parameters())
    return f"{total:,} parameters, {active_parameters(model):,} of them active per token"


def _data(
    config: Config, train: Sequence[Manifest], evaluation: Sequence[Manifest], catalogue: Catalogue | None
) -> str:
    evaluated = f"evaluation on {_rows(evaluation)}" if evaluation else "no evaluation"
    items = "no catalogue" if catalogue is None else f"{counted(len(catalogue), 'item')} in {config.data.catalogue}"
    return f"{_rows(train)}; {evaluated}; {items}"


def _rows(manifests: Sequence[Manifest]) -> str:
    folders = [str(manifest.folder) for manifest in manifests]
    more = f" and {len(folders) - MOST_FOLDERS} more" if len(folders) > MOST_FOLDERS else ""
    return (
        f"{counted(sum(manifest.rows for manifest in manifests), 'row')} in {', '.join(folders[:MOST_FOLDERS])}{more}"
    )


def _steps(config: Config, length: RunLength, world_size: int) -> str:
    ranks = f"{counted(world_size, 'rank')} ({strategy_class(config).describe(config)})"
    epochs = length.total / length.batches_per_epoch
    in_epochs = f"{epochs:.3g} epoch{'s' * (epochs != 1)} of {length.batches_per_epoch:,}"
    return (
        f"{counted(length.total, 'batch')} ({in_epochs}) of {config.global_train_batch_size:,} rows: {ranks} × "
        f"microbatches: {microbatches(config, world_size)}"
    )


def _schedule(config: Config, length: RunLength) -> str:
    optimizer, scheduler = config.optimizer, config.scheduler
    until = "" if length.schedule == length.total else f" until batch {length.schedule:,}"
    evaluates = f"evaluates every {config.eval_interval}, " if config.data.eval.is_given else ""
    return (
        f"{optimizer.name}, {counted(length.warmup, 'batch')} of warm-up to a learning rate of {optimizer.lr:g}, then "
        f"{scheduler.name}{until}; {evaluates}saves every {config.save_interval}"
    )


def weights_at_start(config: Config) -> str:
    """What a new run starts from."""
    if config.init_from is not None:
        return str(config.init_from)
    vectors = f", items from {config.init_item_vectors}" if config.init_item_vectors else ""
    return f"random weights (seed {config.seed}){vectors}"


def _output(config: Config) -> str:
    store = f", copied to {config.checkpoint.remote}" if config.checkpoint.remote else ""
    return f"{os.path.join(config.save_folder, '')}: metrics.jsonl, checkpoints, best/ and latest/{store}"
