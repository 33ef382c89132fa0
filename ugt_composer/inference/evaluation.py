"""Evaluates a trained model on folders of rows, as a training run does on `data.eval`."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.open_nodes import OpenNodes
from ugt_composer.catalogue.shard_items import check_shards
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.config.schema import Config, EvalDataConfig, StreamConfig
from ugt_composer.data.batch import Batch
from ugt_composer.data.manifest import Manifest
from ugt_composer.data.model_inputs import missing_inputs
from ugt_composer.errors import UserError
from ugt_composer.job.ranks import Ranks
from ugt_composer.jsonl.schema import PREFERENCE
from ugt_composer.losses.ranks import without_other_ranks
from ugt_composer.metrics.by_length import ByLength
from ugt_composer.metrics.torch_metrics import EvaluationMetric
from ugt_composer.metrics.user_metrics import user_metrics
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.device import prepare_device
from ugt_composer.parallelism.precision import precision_context, resolve_precision
from ugt_composer.storage.s3_url import is_url
from ugt_composer.training.build import build_composer_model
from ugt_composer.training.composer_model import ComposerUGT
from ugt_composer.training.loaders import build_eval_loader
from ugt_composer.vocabulary import ITEM

log = logging.getLogger(__name__)
LENGTH_K = 10  # cut-off of the table by length, unless the recommendation lists are shorter


@dataclass(frozen=True)
class Evaluation:
    """
    Attributes:
        metrics: by the name that training logs after `metrics/eval/`; without those that no row counts for.
        by_length: one row per bucket of history lengths, see `metrics.by_length`.
        ranked_rows: number of rows that the ranking metrics are means over.
        unreachable_rows: ranked rows with a target among the items of their history, which were excluded.
        with_open_targets: of the ranked rows without a target that is withheld, their number as `rows`, and the means
            of the metrics of `by_length`; None if the catalogue withholds nothing.
        data: the folders' manifests.
        max_history: items of a history that were read, the most recent ones; None: all.
        warnings: sentences about items that the catalogue lacks, and lists that the model reads and no row has.
    """

    metrics: dict[str, float]
    by_length: list[dict[str, Any]]
    ranked_rows: int
    unreachable_rows: int
    with_open_targets: dict[str, Any] | None
    data: list[Manifest]
    max_history: int | None
    warnings: list[str]


def evaluation_config(config: Config, folders: Sequence[str], batch_size: int, **evaluation: Any) -> Config:
    """The config that a model was trained with, changed to evaluate it on other data.

    Args:
        evaluation: keys of `evaluation` to change; None keeps the value of the model's config.

    Raises:
        UserError: names what is wrong with the folders or the keys.
    """
    changes = {key: value for key, value in evaluation.items() if value is not None}
    if "beam_width" not in changes and "k_values" in changes:
        changes["beam_width"] = max(config.evaluation.beam_width, *changes["k_values"])
    try:
        streams = [StreamConfig(local=folder) for folder in folders]
        return replace(
            config,
            data=replace(config.data, eval=EvalDataConfig(streams=streams)),
            evaluation=replace(config.evaluation, **changes),
            device_eval_batch_size=batch_size,
            # The anchor is the training's, which null would not be with another reference_log_probs.
            loss=replace(config.loss, reference_log_probs="model", lambda_anchor=config.loss.anchor_weight),
            compile=False,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def evaluate(
    model: UGT,
    config: Config,
    catalogue: Catalogue | None,
    ranks: Ranks,
    progress: Callable[[int], Any] = lambda rows: None,
    max_history: int | None = None,
    row_ids: Sequence[int] | None = None,
    observe: Callable[[ComposerUGT, Batch, dict[str, Any]], None] = lambda model, batch, outputs: None,
) -> Evaluation:
    """Evaluates a model on `data.eval` of a config, on this rank's GPU if the machine has one.

    Args:
        ranks: among which the batches are divided; the result is the same on all of them.
        progress: called after each batch with the number of rows that all ranks have evaluated so far.
        max_history: items of a history that the model reads; None: all.
        row_ids: numbers of the rows of `data.eval` to evaluate, of all its folders together; None: all rows.
        observe: called with the model, each batch and its outputs (`ComposerUGT.eval_forward`).

    Raises:
        UserError: the data, or the reference of a preference loss, is missing, corrupted or does not match the model.
    """
    loader, data = build_eval_loader(config, whole_batches=True, row_ids=row_ids)
    assert loader is not None  # evaluation_config sets data.eval
    warnings = check_shards({"--data": data}, catalogue, config.data.max_fraction_outside_catalogue)
    warnings += missing_inputs(config.model, "--data", data)
    config = _without_missing_group(config)
    if not config.loss.uses_group and all(manifest.kind != PREFERENCE for manifest in data):
        # Without pairs no reference is needed; the anchor to it is not what is asked for.
        loss = replace(config.loss, preference_objective="dpo", reward_file=None)
        config = replace(config, loss=replace(loss, dpo_reference_free=True, lambda_anchor=0.0))
    reference = config.loss.reference_from or config.init_from
    if config.loss.needs_reference and reference and not is_url(reference) and not Path(reference).is_dir():
        raise UserError(
            f"{reference}: no such folder, but preference rows need the reference model; give it by --reference DIR"
        )
    config = _without_missing_metrics(config)
    device = prepare_device(config)
    composer_model = build_composer_model(config, model, catalogue, device, max_history=max_history).to(device).eval()
    if composer_model.reference is not None:
        composer_model.set_reference(composer_model.reference.to(device))
    metrics = {name: metric.to(device) for name, metric in composer_model.get_metrics(is_train=False).items()}
    cut = min(LENGTH_K, max(config.evaluation.k_values))
    by_length, of_open_targets = ByLength(cut).to(device), ByLength(cut).to(device)
    trie = composer_model.trie
    unreachable = torch.zeros((), dtype=torch.int64, device=device)
    precision = resolve_precision(config.precision) if device.type == "cuda" else "fp32"
    steps = loader.dataloader.dataset.most_batches  # type: ignore[union-attr]
    with torch.no_grad(), precision_context(precision), without_other_ranks():
        for batch in _in_steps(loader.dataloader, steps, ranks):
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            outputs = composer_model.eval_forward(batch)  # type: ignore[arg-type]
            _update(composer_model, batch, outputs, metrics, by_length)  # type: ignore[arg-type]
            if trie is not None and trie.open is not None:
                ranked = outputs["evaluation"].ranked
                others = ranked.counted & ~_has_withheld_target(batch, trie, trie.open)  # type: ignore[arg-type]
                of_open_targets.update(ranked._replace(counted=others), torch.zeros_like(batch["row_ids"]))
            if config.evaluation.exclude_seen:
                unreachable += (outputs["evaluation"].ranked.counted & _has_seen_target(batch)).sum()  # type: ignore[arg-type]
            observe(composer_model, batch, outputs)  # type: ignore[arg-type]
            progress(ranks.total)
    ranks.finish()
    progress(ranks.total)
    if ranks.size > 1:
        others = (metric for metric in metrics.values() if not isinstance(metric, EvaluationMetric))
        for metric in (by_length, of_open_targets, *others):
            metric.to("cpu")  # where the ranks add them up
    values = {name: float(metric.compute()) for name, metric in metrics.items()}
    rows_by_length = by_length.compute()
    return Evaluation(
        metrics={name: value for name, value in values.items() if value == value},
        by_length=rows_by_length,
        ranked_rows=sum(row["users"] for row in rows_by_length),
        unreachable_rows=sum(ranks.exchange(int(unreachable))),
        with_open_targets=None if trie is None or trie.open is None else _as_one_row(of_open_targets.compute()),
        data=data,
        max_history=max_history,
        warnings=warnings,
    )


def _in_steps(batches: Iterable[Any], steps: int, ranks: Ranks) -> Iterator[Any]:
    """The batches, one in each step of the ranks; a rank that has fewer than there are steps idles in the last ones."""
    iterator = iter(batches)
    for _ in range(steps):
        try:
            batch = next(iterator, None)
        except UserError as error:
            ranks.step(error=error)
            raise
        if batch is not None:
            yield batch
        ranks.step(0 if batch is None else len(batch["row_ids"]))


def _without_missing_group(config: Config) -> Config:
    """The config without its group objective if the reference or the reward file is not here, with a warning."""
    if not config.loss.uses_group:
        return config
    places = [config.loss.reward_file]
    if config.loss.needs_reference:
        places.append(config.loss.reference_from or config.init_from)
    missing = [place for place in places if place is not None and not is_url(place) and not Path(place).exists()]
    if not missing:
        return config
    log.warning("%s does not exist; evaluated without the group's reward, KL and entropy", " and ".join(missing))
    return replace(config, loss=replace(config.loss, lambda_preference=0.0, lambda_anchor=0.0))


def _without_missing_metrics(config: Config) -> Config:
    """The config without `evaluation.metrics` if they cannot be used here, with a warning: the model was trained where
    their module was, and is evaluated where it may not be."""
    try:
        user_metrics(config.evaluation.metrics)
    except UserError as error:
        log.warning("%s; evaluated without evaluation.metrics", error)
        return replace(config, evaluation=replace(config.evaluation, metrics={}))
    return config


def _update(
    model: ComposerUGT, batch: Batch, outputs: dict[str, Any], metrics: dict[str, Any], by_length: ByLength
) -> None:
    for metric in metrics.values():
        model.update_metric(batch, outputs, metric)
    is_item = batch["encoder_mask"] & (batch["encoder_token_types"] == ITEM)
    by_length.update(outputs["evaluation"].ranked, is_item.sum(1))


def _as_one_row(buckets: list[dict[str, Any]]) -> dict[str, Any]:
    """Number of rows and means of at most one bucket of `ByLength`."""
    if not buckets:
        return {"rows": 0}
    means = {name: value for name, value in buckets[0].items() if "@" in name}
    return {"rows": buckets[0]["users"], **means}


def _has_withheld_target(batch: Batch, trie: ItemTrie, open_nodes: OpenNodes) -> Tensor:
    """Whether a target is an item of the catalogue that is not recommended: bool (B,). Of a target that may be any of
    the items that share its semantic ID, all have to be withheld."""
    index = trie.find(batch["labels"])  # (B, T)
    exists, index = index >= 0, index.clamp(min=0)
    withheld = open_nodes.members[index] == 0
    if "label_members" in batch:
        member = batch["label_members"]
        number = (trie.members.cumsum(0) - trie.members)[index] + member.clamp(min=0)
        is_member = (member >= 0) & (member < trie.members[index])
        withheld = torch.where(is_member, ~open_nodes.items[number.clamp(max=len(open_nodes.items) - 1)], withheld)
    return (exists & withheld).any(1)


def _has_seen_target(batch: Batch) -> Tensor:
    """Whether an item of the targets is also one of the history: bool (B,)."""
    same = batch["labels"].unsqueeze(2) == batch["encoder_ids"].unsqueeze(1)  # (B, T, S, 3)
    return (same.all(3) & batch["encoder_mask"].unsqueeze(1)).flatten(1).any(1)
