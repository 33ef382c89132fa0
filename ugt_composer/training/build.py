"""Config to trainer: inputs, model, strategy, save folder, callbacks, and Composer's Trainer with them."""

import logging
import os
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from composer import DataSpec
from composer.devices import Device
from composer.utils import dist

from ugt_composer import torch_patches
from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.load import (
    about_catalogue,
    load_catalogue,
    load_item_neighbours,
    load_item_rewards,
    load_item_vectors,
)
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.checkpoint.fetch_at_start import on_this_machine, open_store
from ugt_composer.checkpoint.folder_lock import folder_lock
from ugt_composer.checkpoint.machines import Machines, find_machines
from ugt_composer.checkpoint.portable import (
    FINGERPRINT,
    LONGEST_HISTORY,
    check_fingerprint,
    fingerprint_facts,
    load_portable,
    load_weights,
)
from ugt_composer.checkpoint.rank0_errors import save_on_leaders, saving_into
from ugt_composer.checkpoint.run_checkpoints import clean, set_aside
from ugt_composer.config.best_condition import BestCondition, parse_best_condition
from ugt_composer.config.load import config_yaml
from ugt_composer.config.schema import Config
from ugt_composer.data import streaming_patches
from ugt_composer.data.manifest import Manifest, about_pairs, longest_history, rows_longer_than
from ugt_composer.data.model_inputs import (
    action_facts,
    actions_of_model,
    common_action_names,
    missing_inputs,
    named_actions,
)
from ugt_composer.errors import UserError
from ugt_composer.job.cpus import threads_per_rank
from ugt_composer.job.group_timeouts import limit_groups, report_nccl_errors
from ugt_composer.job.watchdog import Watchdog
from ugt_composer.losses.unified import UnifiedLoss
from ugt_composer.metrics.torch_metrics import evaluation_metrics
from ugt_composer.metrics.user_metrics import build_user_metrics
from ugt_composer.model.build import build_model, freeze_untrained
from ugt_composer.model.item_init import start_from_vectors
from ugt_composer.model.reference import GroupReference, Reference
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.build import build_strategy, strategy_class
from ugt_composer.parallelism.device import composer_device, own_device, prepare_device
from ugt_composer.parallelism.precision import about_precision, resolve_precision
from ugt_composer.parallelism.strategy import Strategy
from ugt_composer.patches import check_patches
from ugt_composer.terminal import counted
from ugt_composer.training import composer_patches
from ugt_composer.training.best_guard import BestGuard
from ugt_composer.training.best_metric import Evaluated, check_best_metrics, why_condition_is_unused
from ugt_composer.training.best_model import criterion_of
from ugt_composer.training.callbacks.checkpoints import Checkpoints
from ugt_composer.training.callbacks.configured import configured_callbacks, monitored_metrics
from ugt_composer.training.callbacks.epoch_length import EpochLength
from ugt_composer.training.callbacks.monitored_values import MonitoredValues
from ugt_composer.training.callbacks.training_losses import TrainingLosses
from ugt_composer.training.callbacks.training_metrics import TrainingMetrics
from ugt_composer.training.callbacks.weight_average import WeightAverage
from ugt_composer.training.compiled_layers import compile_layers
from ugt_composer.training.composer_model import ComposerUGT
from ugt_composer.training.gradient_clipping import GradientNormClipping
from ugt_composer.training.intervals import Every
from ugt_composer.training.loaders import build_eval_loader, build_train_loader, on_all_ranks
from ugt_composer.training.loggers import build_loggers
from ugt_composer.training.optim import create_optimizer
from ugt_composer.training.preflight import (
    check_items,
    check_models,
    check_reference_log_probs,
    check_run,
)
from ugt_composer.training.run_length import RunLength, run_length
from ugt_composer.training.schedule import schedule_of
from ugt_composer.training.start_summary import start_summary
from ugt_composer.training.trainer import UGTTrainer
from ugt_composer.training.worker_memory import check_shared_memory

log = logging.getLogger(__name__)

PATCHES_BY_LIBRARY = {
    "mosaicml": composer_patches.PATCHES,
    "mosaicml-streaming": streaming_patches.PATCHES,
    "torch": torch_patches.PATCHES,
}  # the strategies check those of FSDP and DeepSpeed


def build_trainer(config: Config) -> UGTTrainer:
    """The trainer of a stage, with everything that it needs. With `autoresume` it is resumed from the newest valid
    checkpoint in `save_folder`; without it, files of an earlier run are moved to `earlier-N/`.

    Raises:
        UserError: data, catalogue, checkpoint or config cannot be used, or another run uses the save folder. No valid
            checkpoint is changed in that case.
        RunError: an object store does not answer.
    """
    check_run(config)
    for library, patches in PATCHES_BY_LIBRARY.items():
        check_patches(library, patches)
    with ExitStack() as until_closed:
        device = composer_device(config, strategy_class(config).composer_places_model)
        watchdog = _start_ranks(config, device, until_closed)
        inputs = _load_inputs(config)
        model, trained_history, actions = _build_network(config, inputs)
        precision = resolve_precision(config.precision)
        half_on_cpu = device.name == "cpu" and precision != "fp32"
        max_history = config.evaluation.max_history or trained_history
        if inputs.eval_loader is not None and dist.get_global_rank() == 0:
            _warn_of_long_histories(config, inputs.eval_manifests, max_history)
        composer_model = build_composer_model(config, model, inputs.catalogue, own_device(), half_on_cpu, max_history)
        evaluated = _evaluated(composer_model, inputs)
        if evaluated is not None:
            check_best_metrics(config, evaluated)
        unused = why_condition_is_unused(config, evaluated)
        if unused is not None and dist.get_global_rank() == 0:
            log.warning("save_best_if has no effect, because %s", unused)
        condition = None if config.save_best_if is None or unused else parse_best_condition(config.save_best_if)
        callbacks = configured_callbacks(config.callbacks)
        monitored = monitored_metrics(callbacks, evaluated)
        if evaluated is not None and config.save_best_on is not None:
            monitored["save_best_on"] = config.save_best_on
        if condition is not None:
            monitored["save_best_if"] = condition.metric
        configured = [callback.make() for callback in callbacks]
        summary = start_summary(
            config,
            inputs.train_manifests,
            inputs.eval_manifests,
            inputs.catalogue,
            inputs.length,
            model,
            dist.get_world_size(),
            precision,
        )
        strategy = _place(config, composer_model, model, precision)
        machines = _open_save_folder(config, until_closed)
        losses = TrainingLosses(config.log_interval, scales_loss=precision == "amp_fp16")
        trainer = UGTTrainer(
            config,
            inputs.length,
            strategy,
            _build_checkpoints(config, strategy, inputs, composer_model, condition, trained_history, actions, machines),
            losses,
            watchdog,
            model=composer_model,
            optimizers=strategy.optimizer,
            schedulers=schedule_of(config.scheduler, inputs.length),
            train_dataloader=inputs.train_loader,
            eval_dataloader=inputs.eval_loader,
            eval_interval=Every(config.eval_interval) if inputs.eval_loader is not None else 1,
            max_duration=config.max_duration,
            device=device,
            device_train_microbatch_size=config.device_train_microbatch_size,
            precision=strategy.composer_precision("fp32" if half_on_cpu else precision),
            seed=config.seed,
            run_name=config.run_name,
            dist_timeout=watchdog.timeout(),
            algorithms=[GradientNormClipping(strategy, config.max_grad_norm)],
            callbacks=[
                TrainingMetrics(composer_model, strategy, config.log_interval),
                EpochLength(),
                MonitoredValues(monitored),
                *configured,
            ],
            loggers=build_loggers(config, inputs.length.total),
            spin_dataloaders=False,  # the data set moves to its position itself
            progress_bar=False,  # of Composer: it writes several lines per batch into a log file; see RunProgress
            python_log_level=None,
        )
        limit_groups(watchdog.timeout())
        _resume_or_start_afresh(config, trainer, machines)
        trainer.start_summary = summary
        watchdog.rest()
        trainer.until_closed = until_closed.pop_all()
    return trainer


@dataclass(frozen=True)
class Inputs:
    """What a run reads: loaders, manifests of the data, catalogue; and the length that follows from them."""

    train_loader: DataSpec
    train_manifests: list[Manifest]
    eval_loader: DataSpec | None
    eval_manifests: list[Manifest]
    catalogue: Catalogue | None
    length: RunLength

    @property
    def facts(self) -> dict[str, str]:
        """Of the models that the run saves: the fingerprint of its catalogue, or else of the one of its shards."""
        return fingerprint_facts(self.catalogue, self.train_manifests)


def _start_ranks(config: Config, device: Device, until_closed: ExitStack) -> Watchdog:
    """Device, watchdog and the first process group."""
    prepare_device(config)
    watchdog = Watchdog(config.dist_start_timeout, config.dist_timeout)
    report_nccl_errors(watchdog.timeout())
    until_closed.callback(watchdog.close)
    watchdog.watch()
    dist.initialize_dist(device, timeout=watchdog.timeout())
    if device.name == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        # Not set by `share_cpus`: the trainer is built by another program than train.py.
        torch.set_num_threads(threads_per_rank(dist.get_local_world_size()))
    return watchdog


def _load_inputs(config: Config) -> Inputs:
    train_loader, train_manifests = build_train_loader(config)
    eval_loader, eval_manifests = build_eval_loader(config)
    on_all_ranks(lambda: check_shared_memory(config, train_manifests, eval_manifests))
    catalogue = load_catalogue(config)
    items = on_all_ranks(lambda: check_items(config, catalogue) if dist.get_local_rank() == 0 else [])
    missing = [
        *missing_inputs(config.model, "data.train", train_manifests),
        *missing_inputs(config.model, "data.eval", eval_manifests),
    ]
    about = (about_precision(config), about_catalogue(config, catalogue), about_pairs(config, train_manifests))
    for warning in filter(None, (*about, *items, *missing)):
        if dist.get_global_rank() == 0:
            log.warning(warning)
    length = run_length(config, train_loader.dataloader.dataset.epoch_size)  # type: ignore[union-attr]
    return Inputs(train_loader, train_manifests, eval_loader, eval_manifests, catalogue, length)


def _warn_of_long_histories(config: Config, manifests: list[Manifest], max_history: int) -> None:
    if longer := rows_longer_than(max_history, manifests):
        source = (
            "evaluation.max_history" if config.evaluation.max_history else "the longest that the model is trained on"
        )
        log.warning(
            "data.eval: %s of %s %s of more than %s (%s); evaluation reads the most recent %s "
            "of each; evaluation.max_history sets another number",
            f"{longer:,}",
            counted(sum(manifest.rows for manifest in manifests), "row"),
            "has a history" if longer == 1 else "have histories",
            counted(max_history, "item"),
            source,
            f"{max_history:,}",
        )


def _build_network(config: Config, inputs: Inputs) -> tuple[UGT, int, tuple[str, ...]]:
    """The model on the CPU, initialised from random numbers, item vectors or the previous stage; the items of the
    longest history that it is trained on, in this stage or earlier ones; and the names of the actions in these."""
    check_models(config)
    trained_history = longest_history(inputs.train_manifests)
    actions = named_actions([*inputs.train_manifests, *inputs.eval_manifests])
    model = build_model(config.model, config.seed)
    vectors = load_item_vectors(config, inputs.catalogue)
    if vectors is not None and inputs.catalogue is not None:
        start_from_vectors(model.item_embedding, inputs.catalogue.triples, vectors, config.seed)
    if config.init_from is not None:
        folder = on_this_machine(config.init_from)
        facts = load_weights(model, config.model, folder)
        note = check_fingerprint(config.init_from, folder, facts, inputs.facts, inputs.catalogue)
        if note is not None and dist.get_global_rank() == 0:
            log.warning(note)
        trained_history = max(trained_history, int(facts.get(LONGEST_HISTORY, 0)))
        actions = [(config.init_from, actions_of_model(facts)), *actions]
    if config.loss.reference_log_probs == "data":
        check_reference_log_probs(config, on_this_machine(str(config.loss.reference_from or config.init_from)))
    return model, trained_history, common_action_names(actions) if config.model.num_actions else ()


def build_composer_model(
    config: Config,
    model: UGT,
    catalogue: Catalogue | None,
    device: torch.device,
    half_on_cpu: bool = False,
    max_history: int | None = None,
) -> ComposerUGT:
    """Model, loss and evaluation of a stage. Parameters that the stage does not train are frozen.

    Args:
        max_history: items of a history that the model reads in evaluation; None: all.
        device: of the catalogue. The models stay on the CPU until a strategy places them.
    """
    loss = UnifiedLoss(**config.loss.arguments, repr_dim=config.model.d_model, seed=config.seed)
    freeze_untrained(model, config.loss)
    model.encoder.activation_checkpointing = config.parallelism.activation_checkpointing
    model.decoder.activation_checkpointing = config.parallelism.activation_checkpointing
    if config.compile:
        compile_layers(model)
    evaluation = config.evaluation
    trie = None if catalogue is None else ItemTrie.from_catalogue(catalogue)
    rewards = load_item_rewards(config, catalogue)
    neighbours = load_item_neighbours(config, trie)
    taken = evaluation_metrics(
        loss.means, loss.evaluation_losses(), evaluation.k_values, catalogue_size=None, has_shared_ids=True
    )
    return ComposerUGT(
        model=model,
        loss=loss,
        reference=_load_reference(config, catalogue) if config.loss.needs_reference_model else None,
        trie=None if trie is None else trie.to(device),
        k_values=evaluation.k_values,
        beam_width=evaluation.beam_width,
        exclude_seen=evaluation.exclude_seen,
        item_score_weight=evaluation.item_score_weight,
        user_metrics=build_user_metrics(evaluation.metrics, max(evaluation.k_values), taken),
        half_on_cpu=half_on_cpu,
        max_history=max_history,
        item_rewards=None if rewards is None else _of_trie(rewards, trie, catalogue).to(device),
        seed=config.seed,
        neighbours=None if neighbours is None else (neighbours[0].to(device), neighbours[1]),
    )


def _of_trie(rewards: np.ndarray, trie: ItemTrie | None, catalogue: Catalogue | None) -> torch.Tensor:
    assert trie is not None  # rewards are those of a catalogue
    assert catalogue is not None
    kept = ~catalogue.withheld  # others cannot be drawn
    return trie.means(rewards[kept], catalogue.triples[kept])


def _load_reference(config: Config, catalogue: Catalogue | None) -> Reference | GroupReference:
    reference_from = config.loss.reference_from or config.init_from
    assert reference_from is not None  # the config's checks require one
    # The same expert capacity and the same softmax as the policy's, so that the log-probabilities of both are equal at
    # the start.
    folder = on_this_machine(reference_from)
    model, _, facts = load_portable(
        folder,
        dropout=0.0,
        attention_dropout=0.0,
        expert_capacity_factor=config.model.expert_capacity_factor,
        level_softmax=config.model.level_softmax,
    )
    check_fingerprint(reference_from, folder, facts, fingerprint_facts(catalogue), catalogue)
    if config.compile:
        compile_layers(model)
    return GroupReference(model) if config.loss.uses_group else Reference(model)


def _evaluated(model: ComposerUGT, inputs: Inputs) -> Evaluated | None:
    """None: the run has no evaluations."""
    if inputs.eval_loader is None:
        return None
    kinds = [manifest.kind for manifest in inputs.eval_manifests]
    return Evaluated(model.get_metrics(is_train=False), model.unified_loss.not_computed, kinds)


def _place(config: Config, composer_model: ComposerUGT, model: UGT, precision: str) -> Strategy:
    """The strategy, with model and reference on this rank's device."""

    def make_optimizer(sharded: torch.nn.Module) -> torch.optim.Optimizer:
        return create_optimizer(sharded, **asdict(config.optimizer))

    strategy = build_strategy(config, composer_model, model, make_optimizer, precision)
    if composer_model.reference is not None:
        place = strategy.shard_reference if config.parallelism.shard_reference else strategy.place_reference
        composer_model.set_reference(place(composer_model.reference))
    return strategy


def _open_save_folder(config: Config, until_closed: ExitStack) -> Machines:
    """Creates the folder, locks it and removes files that a killed run left incomplete."""
    folder = config.save_folder
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        machines = find_machines(Path(folder))
    except OSError as error:
        raise UserError(
            f"save_folder {folder} cannot be written: {error.strerror}; set another one, or change its permissions"
        ) from None
    # The ranks of a launcher that was killed may still be saving.
    patience = min(config.preemption.grace + 10, config.dist_timeout / 2)
    until_closed.enter_context(folder_lock(folder, patience, machines))
    save_on_leaders(folder, machines, lambda: clean(folder))
    return machines


def _build_checkpoints(
    config: Config,
    strategy: Strategy,
    inputs: Inputs,
    model: ComposerUGT,
    condition: BestCondition | None,
    trained_history: int,
    actions: tuple[str, ...],
    machines: Machines,
) -> Checkpoints:
    facts, criterion, guard = inputs.facts, None, BestGuard()
    if inputs.eval_loader is not None and config.save_best_on is not None:
        rows = [manifest.index_hash for manifest in inputs.eval_manifests]
        retired = "none" if inputs.catalogue is None else inputs.catalogue.retired_set
        criteria = {
            name: criterion_of(config, name, metric, rows, facts.get(FINGERPRINT), retired)
            for name, metric in model.get_metrics(is_train=False).items()
        }
        settings = {key: value for criterion in criteria.values() for key, value in criterion.settings.items()}
        of_condition = None if condition is None else criteria[condition.metric]
        criterion = criteria[config.save_best_on]
        guard = BestGuard(condition, of_condition, settings, config.save_best_patience)
    data = [manifest.index_hash for manifest in inputs.train_manifests]
    facts |= {LONGEST_HISTORY: str(trained_history), **action_facts(actions)}
    average = None if config.ema_decay is None else WeightAverage(strategy, config.ema_decay)
    uploads = open_store(config, machines, strategy)
    return Checkpoints(strategy, config, facts, criterion, guard, data, inputs.catalogue, uploads, average, machines)


def _resume_or_start_afresh(config: Config, trainer: UGTTrainer, machines: Machines) -> None:
    folder = Path(config.save_folder)
    if config.autoresume:
        trainer.resume()
    elif machines.is_leader and (aside := set_aside(folder)):
        log.warning("autoresume is false: files of an earlier run in %s were moved to %s", folder, aside)
    if dist.get_global_rank() == 0:
        with saving_into(folder):
            (folder / "config.yaml").write_text(config_yaml(config), "utf-8")
