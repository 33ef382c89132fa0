"""The report of a dry run: config, data, steps, parameters, memory. Builds no trainer."""

import os
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ugt_composer.catalogue.load import (
    about_catalogue,
    load_catalogue,
    load_item_neighbours,
    load_item_rewards,
    load_item_vectors,
)
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.checkpoint.portable import check_fingerprint, check_weights, fingerprint_facts, read_facts
from ugt_composer.config.checks import device_batch_size
from ugt_composer.config.load import config_yaml
from ugt_composer.config.schema import Config
from ugt_composer.data.manifest import Manifest, about_pairs, check_data, check_kinds, streams_of
from ugt_composer.data.model_inputs import actions_of_model, common_action_names, missing_inputs, named_actions
from ugt_composer.errors import UserError
from ugt_composer.losses.unified import UnifiedLoss
from ugt_composer.metrics.torch_metrics import evaluation_metrics
from ugt_composer.metrics.user_metrics import build_user_metrics
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.build import strategy_class
from ugt_composer.parallelism.memory import HOST, MemoryItem
from ugt_composer.parallelism.precision import about_precision
from ugt_composer.storage.s3_url import is_url
from ugt_composer.terminal import counted
from ugt_composer.training.best_metric import Evaluated, check_best_metrics, why_condition_is_unused
from ugt_composer.training.memory_estimate import GAPS, GIB, RESERVE, Estimate, estimate, longest_rows
from ugt_composer.training.preflight import check_items, check_models, check_reference_log_probs, check_run
from ugt_composer.training.run_length import run_length
from ugt_composer.training.start_summary import active_parameters, microbatches
from ugt_composer.training.worker_memory import check_shared_memory

MIB = 2**20


def describe(config: Config) -> str:
    """The report of `ugt train --dry-run`. UserError if something would stop the run: missing data, a bad init_from."""
    check_run(config)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    train = check_data(config, "data.train", streams_of("data.train", config.data.train))
    check_kinds(config, train)
    catalogue = load_catalogue(config)
    load_item_vectors(config, catalogue)
    load_item_rewards(config, catalogue)
    trie = None if catalogue is None else ItemTrie.from_catalogue(catalogue)
    load_item_neighbours(config, trie)
    check_models(config)
    evaluation = (
        check_data(config, "data.eval", streams_of("data.eval", config.data.eval)) if config.data.eval.is_given else []
    )
    evaluated = _evaluated(config, trie, evaluation)
    if evaluated is not None:
        check_best_metrics(config, evaluated)
    unused = why_condition_is_unused(config, evaluated)
    _check_callbacks(config, evaluated)
    check_shared_memory(config, train, evaluation)
    reference = str(config.loss.reference_from or config.init_from)
    if config.loss.reference_log_probs == "data" and not is_url(reference):
        check_reference_log_probs(config, Path(reference))
    with torch.device("meta"):
        model = UGT(**asdict(config.model))
    actions, other_items = named_actions([*train, *evaluation]), None
    if config.init_from is not None and not is_url(config.init_from):
        check_weights(model, config.model, config.init_from)
        folder, facts = Path(config.init_from), read_facts(config.init_from)
        other_items = check_fingerprint(str(folder), folder, facts, fingerprint_facts(catalogue, train), catalogue)
        actions = [(str(folder), actions_of_model(facts)), *actions]
    if config.model.num_actions:
        common_action_names(actions)
    longest = longest_rows(config, [*train, *evaluation])
    lengths = (
        "with all rows as long as the longest" if train or evaluation else "lengths assumed, as the data is not here"
    )
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
        *check_items(config, catalogue),
        *filter(None, [other_items, about_pairs(config, train)]),
        *missing_inputs(config.model, "data.train", train),
        *missing_inputs(config.model, "data.eval", evaluation),
        *([] if unused is None else [f"save_best_if has no effect, because {unused}"]),
        "",
        "# steps",
        *_step_lines(config, train, world_size),
        *filter(None, [about_precision(config), _about_attention(config)]),
        "",
        "# parameters",
        *(f"{name:16} {count:>14,}" for name, count in parts.items()),
        f"{'total':16} {sum(parts.values()):>14,}",
        f"{'active per token':16} {active_parameters(model):>14,}",
        "",
        f"# peak memory of a step, per rank of {world_size}; {lengths}",
        *_memory_lines(config, estimate(config, world_size, longest, len(catalogue or ()), model)),
    ]
    return "\n".join(lines)


def higher_is_better(config: Config, metric: str) -> bool:
    """Whether higher values of a metric of the run's evaluations are better.

    Raises:
        UserError: the run has no evaluations, or they do not compute it.
    """
    if not config.data.eval.is_given:
        raise UserError(f"{metric} is not computed, because data.eval is empty; expected a folder of validation rows")
    catalogue = load_catalogue(config)
    trie = None if catalogue is None else ItemTrie.from_catalogue(catalogue)
    evaluated = _evaluated(config, trie, check_data(config, "data.eval", streams_of("data.eval", config.data.eval)))
    assert evaluated is not None
    check_best_metrics(replace(config, save_best_on=metric), evaluated)
    return bool(evaluated.metrics[metric].higher_is_better)


def _about_attention(config: Config) -> str | None:
    if not config.model.relative_time_bias:
        return None
    return (
        "model.relative_time_bias is true: on a GPU the encoder's attention is computed without its fused kernel, "
        "which has no such bias"
    )


def _evaluated(config: Config, trie: ItemTrie | None, manifests: list[Manifest]) -> Evaluated | None:
    """None: the run has no evaluations."""
    loss, evaluation = UnifiedLoss(**config.loss.arguments), config.evaluation
    items, shared = (None, False) if trie is None else (trie.recommendable, trie.has_shared_ids)
    metrics = evaluation_metrics(loss.means, loss.evaluation_losses(), evaluation.k_values, items, shared)
    metrics |= build_user_metrics(evaluation.metrics, max(evaluation.k_values), list(metrics))
    if not config.data.eval.is_given:
        return None
    are_here = len(manifests) == len(streams_of("data.eval", config.data.eval))
    return Evaluated(metrics, loss.not_computed, [manifest.kind for manifest in manifests] if are_here else None)


def _check_callbacks(config: Config, evaluated: Evaluated | None) -> None:
    """UserError if a callback would stop the run when it starts."""
    if config.callbacks:
        # Not at the top: it imports Composer, which takes seconds.
        from ugt_composer.training.callbacks.configured import configured_callbacks, monitored_metrics

        callbacks = configured_callbacks(config.callbacks)
        monitored_metrics(callbacks, evaluated)
        for callback in callbacks:
            callback.make()


def _data_lines(key: str, manifests: list[Manifest]) -> list[str]:
    if not manifests:
        return [f"{key:6} none on this machine"]
    return [f"{key:6} {m.rows:>12,} {m.kind} rows in {m.folder}{_lists(m)}" for m in manifests]


def _lists(manifest: Manifest) -> str:
    """The fractions of rows with actions and times, if there are any."""
    fractions = [f"{name} {number / manifest.rows:.0%}" for name, number in manifest.rows_with.items() if number]
    return f" ({', '.join(fractions)})" if fractions else ""


def _step_lines(config: Config, train: list[Manifest], world_size: int) -> list[str]:
    batch, device_batch = config.global_train_batch_size, device_batch_size(config, world_size)
    lines = [
        f"ranks            {world_size} ({strategy_class(config).describe(config)})",
        f"batch            {batch} rows: {device_batch} per rank, microbatches: {microbatches(config, world_size)}",
    ]
    if len(train) < len(streams_of("data.train", config.data.train)):
        return [*lines, "epochs           unknown: the shards are remote"]
    length = run_length(config, sum(manifest.rows for manifest in train))
    return [
        *lines,
        f"an epoch         {counted(length.batches_per_epoch, 'batch')}",
        f"the run          {counted(length.total, 'batch')} ({config.max_duration})",
        f"warm-up          {counted(length.warmup, 'batch')}",
        f"learning rate    {config.scheduler.name}, until batch {length.schedule:,}",
    ]


def _memory_lines(config: Config, estimated: Estimate) -> list[str]:
    items = [*estimated.items, MemoryItem("activations", estimated.activations)]
    unit, name = (GIB, "GiB") if estimated.peak >= GIB else (MIB, "MiB")
    uses_host = any(item.where == HOST for item in items)
    rows, history, target, rejected = estimated.shape
    scored = f", {rejected} rejected" * (rejected > 0)
    if config.loss.uses_group:
        scored = f", groups of {config.loss.group_size} items"
    shape = f"history {history}, target {target}" + scored
    checkpoints = config.parallelism.activation_checkpointing
    with_or_without = "with" if checkpoints else "without"
    most = f"at most {estimated.most_rows} rows per microbatch" if estimated.most_rows else "not even one row does"
    if estimated.most_rows >= estimated.device_batch:
        most = f"so would a microbatch of all {estimated.device_batch} rows of a rank"
    gaps = f", and {GAPS:g} times the activations for gaps between PyTorch's blocks" * checkpoints
    reserve = f"{RESERVE / GIB:.0f} of them left for CUDA, NCCL and cuBLAS{gaps}"
    card = "the GPU here" if estimated.has_card else "an 80 GB card, assumed as there is no GPU here"
    when = " while gradients are reduced and activations freed"
    return [
        *(
            f"{item.name:16} {item.bytes / unit:>10,.2f} {name}{' of host memory' * (item.where == HOST)}"
            f"{when * item.reduces}"
            for item in items
        ),
        f"{'total':16} {estimated.peak / unit:>10,.2f} {name}{' of the device' * uses_host}",
        "",
        f"activations of a microbatch of {rows} rows, {shape}, {estimated.precision}, {with_or_without} activation "
        f"checkpointing: {estimated.activations / unit:,.1f} {name}",
        f"evaluation of {estimated.evaluation_rows} rows: {estimated.evaluation_peak / unit:,.1f} {name} in total",
        f"fits {card} ({estimated.card / GIB:.1f} GiB, {reserve}): {'yes' if estimated.fits else 'NO'}; {most}",
    ]
