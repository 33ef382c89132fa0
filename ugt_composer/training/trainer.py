"""Config to trainer: one stage, ready to train, resumed where a checkpoint was left."""

import getpass
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.callbacks import MemoryMonitor
from composer.core import Event, TrainerMode
from composer.utils import dist
from torch import Tensor

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.load import about_catalogue, load_catalogue, load_item_vectors
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.checkpoint.fetch_at_start import on_this_machine, open_store
from ugt_composer.checkpoint.folder_lock import folder_lock
from ugt_composer.checkpoint.portable import FINGERPRINT, check_fingerprint, load_portable, load_weights
from ugt_composer.checkpoint.rank0_errors import save_on_rank_0, saving_into
from ugt_composer.checkpoint.resumable import check_resumable
from ugt_composer.checkpoint.run_checkpoints import clean, newest_checkpoint, read_checkpoint, set_aside
from ugt_composer.checkpoint.whole_state import (
    from_rank_0,
    group_settings,
    scatter_optimizer,
    scatter_weights,
    set_groups,
)
from ugt_composer.config.schema import Config, config_yaml
from ugt_composer.data.batch import Batch
from ugt_composer.errors import UserError, nearest
from ugt_composer.job.group_timeouts import limit_groups, report_nccl_errors
from ugt_composer.job.watchdog import Watchdog
from ugt_composer.losses.unified import UnifiedLoss
from ugt_composer.model.build import build_model, freeze_untrained
from ugt_composer.model.item_init import start_from_vectors
from ugt_composer.model.reference import Reference
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.build import build_strategy
from ugt_composer.parallelism.device import composer_device, prepare_device
from ugt_composer.parallelism.precision import about_precision, resolve_precision
from ugt_composer.parallelism.strategy import Strategy
from ugt_composer.training.callbacks.checkpoints import EVAL_LABEL, Checkpoints
from ugt_composer.training.callbacks.epoch_length import EpochLength
from ugt_composer.training.callbacks.metrics_file import MetricsFile
from ugt_composer.training.callbacks.preemption import Preemption
from ugt_composer.training.callbacks.progress import Progress
from ugt_composer.training.callbacks.random_state import RandomState
from ugt_composer.training.callbacks.training_losses import TOTAL, TrainingLosses
from ugt_composer.training.callbacks.training_metrics import TrainingMetrics
from ugt_composer.training.composer_model import ComposerUGT
from ugt_composer.training.engine import ListeningEngine
from ugt_composer.training.gradient_clipping import GradientNormClipping
from ugt_composer.training.intervals import Every
from ugt_composer.training.loaders import build_eval_loader, build_train_loader
from ugt_composer.training.loggers import build_loggers
from ugt_composer.training.microbatch import GlobalCounts, Uncopied
from ugt_composer.training.optim import create_optimizer, create_scheduler
from ugt_composer.training.preflight import check_reference_log_probs, check_run
from ugt_composer.training.run_length import RunLength, run_length

log = logging.getLogger(__name__)
STREAMED = ("model", "optimizer")  # parts of a checkpoint that rank 0 alone holds


class UGTTrainer(Trainer):
    """Composer's Trainer with the verbs of a run. Made by `build_trainer`."""

    def __init__(
        self,
        config: Config,
        length: RunLength,
        strategy: Strategy,
        checkpoints: Checkpoints,
        random_state: RandomState,
        losses: TrainingLosses,
        watchdog: Watchdog,
        **kwargs: Any,
    ):
        self.config = config
        self.length = length
        self.strategy = strategy
        self.random_state = random_state
        self.checkpoints = checkpoints
        self.losses = losses
        checkpoints.before_save = losses.check
        grace, timeout = config.preemption.grace, watchdog.timeout
        self.preemption = Preemption(checkpoints, random_state, grace, timeout, self._finish_batch)
        self.counts = GlobalCounts(timeout)
        self.dataset_place: dict[str, Any] | None = None  # of the checkpoint that the run went on from
        self.watchdog = watchdog
        self.held = ExitStack()  # until close: the lock of the save folder
        super().__init__(
            callbacks=[
                *kwargs.pop("callbacks"),
                losses,
                random_state,
                checkpoints,
                self.preemption,
                Progress(watchdog),
            ],
            **kwargs,
        )
        self.engine.__class__ = ListeningEngine  # Composer makes its own, which cannot be made twice
        if strategy.scaler is not None:
            self.state.scaler = strategy.scaler
        # Checkpoints holds these in a form that knows no strategy.
        for name in ("model", "optimizers", "scaler"):
            self.state.serialized_attributes.remove(name)

    def _use_closures(self) -> bool:
        return False  # a closure makes Composer read the loss back from the device in every step

    def _wrap_model_for_distributed(self, model: Any, optimizers: Any) -> None:
        self.state.model = self.strategy.module  # type: ignore[assignment]

    def _iter_dataloader(self, trainer_mode: TrainerMode) -> Iterator[Batch]:
        """As Composer's, which however asks the device at each batch whether another rank has run out of batches: here
        all ranks have as many, and one that fails ends the job."""
        assert self.state.dataloader is not None
        length, trains = self.state.dataloader_len, trainer_mode == TrainerMode.TRAIN
        batches = islice(self.state.dataloader, None if length is None else int(length))
        while True:
            if trains:
                self.engine.run_event(Event.BEFORE_DATALOADER)
            try:
                batch = next(batches)
            except StopIteration:
                if trains:
                    self.engine.run_marker_only_event(Event.AFTER_DATALOADER)
                return
            yield batch

    def _train_batch(self, use_grad_scaling: bool) -> dict[str, Tensor]:
        """Runs Composer's on a batch that is on the device as a whole, and returns no losses: Composer would read them
        back from the device in every step."""
        self.state.batch = self.counts.add(self.state.batch, self.state.device)
        losses = super()._train_batch(use_grad_scaling)
        if losses:  # None where a scaler has skipped the step
            self.losses.keep(self.state.timestamp.batch.value + 1, losses)
        return {}

    def _train_microbatches(
        self, microbatches: Sequence[Batch], total_loss_dict: dict[str, Tensor], ddp_sync: bool = True
    ) -> Tensor:
        """As Composer's, which however moves each microbatch to the device by itself and reads the mean size of the
        ranks' batches back from it: here the batch is there, and its size is the hosts' own."""
        state, spec, scaler = self.state, self._train_data_spec, self.state.scaler
        assert spec is not None
        assert scaler is not None  # made when fit starts
        scales = self._use_grad_scaling(state.precision, scaler)
        self.engine.run_event(Event.BEFORE_TRAIN_BATCH)
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        mean_rows = self.counts.rows / dist.get_world_size()
        batch = state.batch
        for number, piece in enumerate(microbatches, start=1):
            state.batch = Uncopied(spec.microbatch_transforms(piece))
            is_last = number == len(microbatches)
            self.strategy.before_microbatch(is_last)
            for name, loss in self._train_microbatch(scales, mean_rows, is_last).items():
                key = f"loss/train/{name}"
                total_loss_dict[key] = total_loss_dict.get(key, loss.new_zeros(1)) + loss
        state.batch = batch
        if scales:
            for optimizer in state.optimizers:
                scaler.unscale_(optimizer)
        self.engine.run_event(Event.AFTER_TRAIN_BATCH)
        return total_loss_dict[TOTAL]

    def _accumulate_time_across_ranks(
        self, num_samples: int | float, num_tokens: int, batch_time: timedelta
    ) -> tuple[int, int, timedelta]:
        """Composer's sums on the devices and reads the sums back. The hosts know them, and sum beside the training."""
        in_training = self.state.dataloader is self.state.train_dataloader
        return self.counts.rows if in_training else self.counts.add_rows(num_samples), num_tokens, batch_time

    def _use_grad_scaling(self, precision: Any, scaler: Any) -> bool:
        return self.strategy.scaler is not None or super()._use_grad_scaling(precision, scaler)

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Composer's fit, on the very next sample: of a new run, a resumed one, or one that was fitted in pieces.

        Composer's timestamp is the one truth about the place; Streaming's own is an epoch behind at an epoch's end, and
        would begin another epoch where fit is called again within one.
        """
        self.watchdog.watch()
        dataset, timestamp = self.state.train_dataloader.dataset, self.state.timestamp  # type: ignore[union-attr]
        # The rows that made the ranks even at the end of an epoch are no place to go on from.
        sample = min(timestamp.sample_in_epoch.value, dataset.epoch_size)
        place = self.dataset_place or dataset.state_dict(0, from_beginning=True)
        dataset.next_epoch = timestamp.epoch.value
        dist.barrier()  # the ranks of a machine share the place: none may set it while another still reads
        dataset.load_state_dict({**place, "epoch": timestamp.epoch.value, "sample_in_epoch": sample})
        dist.barrier()
        self.metrics_file.go_on(timestamp.batch.value)
        try:
            super().fit(*args, **kwargs)
        except Exception:
            self.watchdog.rest()
            self.checkpoints.writer.wait()
            if (lacking := self.checkpoints.upload_within(self.config.preemption.grace)) is not None:
                log.warning(lacking)
            raise
        finally:
            self.watchdog.rest()
            self.preemption.give_signals_back()

    def close(self) -> None:
        """Composer's close, and the end of all uploads; after it another run may write into the save folder.

        Raises:
            RunError: on rank 0, where the store lacks something.
        """
        super().close()
        self.state.train_dataloader.dataset.leave_iteration()  # type: ignore[union-attr]
        try:
            self.checkpoints.finish_uploads()
        finally:
            self.held.close()

    def _finish_batch(self) -> None:
        """After a save within an evaluation: the evaluation, from its start, and what follows it in a batch."""
        self._run_evaluators(Event.BATCH_END)
        self.engine.run_event(Event.BATCH_CHECKPOINT)

    @property
    def metrics_file(self) -> MetricsFile:
        return next(one for one in self.logger.destinations if isinstance(one, MetricsFile))

    @property
    def is_finished(self) -> bool:
        return self.state.timestamp.batch.value >= self.length.total

    def train(self) -> None:
        """Trains to the end of the run (`max_duration`). Does nothing where that is reached."""
        if not self.is_finished:
            self.state.max_duration = self.config.max_duration
            self.fit()
            return
        self.metrics_file.go_on(self.state.timestamp.batch.value)  # killed between the last checkpoint and its line

    def train_epoch(self) -> None:
        """Trains one epoch more, on the learning-rate curve of the whole run."""
        self.fit(duration="1ep")

    def evaluate(self) -> dict[str, float]:
        """Evaluates on `data.eval`. Returns the metrics by their names in the log, without those no row counted for.

        Raises:
            UserError: the config names no evaluation data.
        """
        if not self.state.evaluators:
            raise UserError("data.eval.local is missing; expected a folder of MDS shards to evaluate on")
        self.eval()
        values = {name: float(metric.compute()) for name, metric in self.state.eval_metrics[EVAL_LABEL].items()}
        return {f"metrics/{EVAL_LABEL}/{name}": value for name, value in values.items() if value == value}

    def save_checkpoint(self, path: str = "checkpoint.pt", **kwargs: Any) -> str:  # type: ignore[override]
        """Writes all that a resumed run needs to one file, whatever the strategy. Returns its path."""
        save_on_rank_0(Path(path).parent, lambda: Path(path).parent.mkdir(parents=True, exist_ok=True))
        self.checkpoints.write(Path(path), self.state)
        return str(path)

    def load_checkpoint(self, path: str | Path) -> None:
        """Goes on from a file of `save_checkpoint` or of the save folder: the next sample, the same random numbers.

        Raises:
            UserError: the file cannot be read, or belongs to a run with other data, batches or model.
        """
        found = _find_on_rank_0(lambda: (Path(path), read_checkpoint(path)))
        assert found is not None
        self._restore(*found)

    def resume(self) -> bool:
        """Goes on from the newest valid checkpoint of the save folder. False where there is none.

        A newer one of `checkpoint.remote` is there by now: `build_trainer` has fetched it.
        """
        found = _find_on_rank_0(lambda: newest_checkpoint(self.config.save_folder))
        if found is not None:
            self._restore(*found)
            self.metrics_file.is_resumed = True
        return found is not None

    def _restore(self, path: Path, content: dict[str, Any]) -> None:
        catalogue = self.checkpoints.facts.get(FINGERPRINT)
        changed = check_resumable(path, content, self.config, self.checkpoints.data, catalogue)
        fresh_groups = group_settings(self.strategy)
        if "sharded" in content:
            self.checkpoints.restore_sharded(path, content["sharded"])
        else:
            # The tensors are there on rank 0 only.
            scatter_weights(self.strategy, content.get("model"))
            scatter_optimizer(self.strategy, content.get("optimizer"))
        self.dataset_place = dict(content["state"]["dataset_state"]["train"])
        self.state.load_state_dict(content["state"], self.logger, strict=True)
        if self.state.scaler is not None and self.state.scaler.is_enabled() and content["scaler"]:
            self.state.scaler.load_state_dict(content["scaler"])
        self.random_state.pending = content["rng"]
        if any(key.startswith(("optimizer.", "scheduler.")) for key in changed):
            self._change_optimizer(fresh_groups)
        if changed and dist.get_global_rank() == 0:
            log.warning("resume_despite: %s", "; ".join(f"{k} was {a}, is {b}" for k, (a, b) in changed.items()))
        log.info("resumed from %s, batch %d", path, self.state.timestamp.batch.value)

    def _change_optimizer(self, fresh_groups: list[dict[str, Any]]) -> None:
        """Puts the config's settings in the place of the checkpoint's, and the learning rate on the config's curve."""
        set_groups(self.strategy, fresh_groups)
        for scheduler in self.state.schedulers:
            scheduler.base_lrs = [group["initial_lr"] for group in fresh_groups]
            lrs = scheduler.get_lr()
            for group, lr in zip(self.strategy.optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr
            scheduler._last_lr = lrs


def _find_on_rank_0(find: Callable[[], tuple[Path, dict[str, Any]] | None]) -> tuple[Path, dict[str, Any]] | None:
    """Runs `find` on rank 0, so that all ranks go on from the same file and only one reads it.

    The others get the content without the tensors of model and optimizer. A UserError is raised on every rank.
    """
    found: tuple[Path, dict[str, Any]] | None = None
    shared: tuple[Any, UserError | None] = (None, None)
    if dist.get_global_rank() == 0:
        try:
            found = find()
            shared = (found and (found[0], {k: v for k, v in found[1].items() if k not in STREAMED}), None)
        except UserError as error:
            shared = (None, error)
    others, problem = from_rank_0(shared)
    if problem is not None:
        raise problem
    return found if found is not None else others


def build_trainer(config: Config) -> UGTTrainer:
    """Everything a stage needs, from its config.

    Raises:
        UserError: data, catalogue, checkpoint or config that cannot be used, or a save folder that another run uses;
            nothing has been written then.
    """
    with ExitStack() as held:
        trainer = _build(config, held)
        trainer.held = held.pop_all()
    return trainer


def _build(config: Config, held: ExitStack) -> UGTTrainer:
    check_run(config)
    own_device = prepare_device(config)
    device = composer_device(config)
    watchdog = Watchdog(config.dist_start_timeout, config.dist_timeout)
    report_nccl_errors(watchdog.timeout())
    held.callback(watchdog.close)
    watchdog.watch()
    dist.initialize_dist(device, timeout=watchdog.timeout())
    if device.name == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        # More threads than cores spin against each other and slow a step many times over.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // dist.get_local_world_size()))
    train_loader, train_manifests = build_train_loader(config)
    eval_loader = build_eval_loader(config)
    catalogue = load_catalogue(config)
    for remark in filter(None, (about_precision(config), about_catalogue(config, catalogue))):
        if dist.get_global_rank() == 0:
            log.warning(remark)
    model = build_model(config.model, config.seed)
    fingerprint = fingerprint_facts(catalogue)
    vectors = load_item_vectors(config, catalogue)
    if vectors is not None and catalogue is not None:
        start_from_vectors(model.item_embedding, catalogue.triples, vectors, config.seed)
    if config.init_from is not None:
        facts = load_weights(model, config.model, on_this_machine(config.init_from))
        check_fingerprint(config.init_from, facts, fingerprint)
    if config.loss.reference_log_probs == "data":
        check_reference_log_probs(config, on_this_machine(str(config.loss.reference_from or config.init_from)))
    precision = resolve_precision(config.precision)
    half_on_cpu = device.name == "cpu" and precision != "fp32"
    composer_model = build_composer_model(config, model, catalogue, own_device, half_on_cpu)
    best = check_best_metric(config, composer_model) if eval_loader is not None else None
    length = run_length(config, train_loader.dataloader.dataset.epoch_size)  # type: ignore[union-attr]
    strategy = build_strategy(
        config, composer_model, model, lambda sharded: create_optimizer(sharded, **asdict(config.optimizer)), precision
    )
    if composer_model.reference is not None:
        place = strategy.shard_reference if config.parallelism.shard_reference else strategy.place_reference
        composer_model.set_reference(place(composer_model.reference))
    make_save_folder(config.save_folder)
    # The ranks of a launcher that was killed may still be saving.
    patience = min(config.preemption.grace + 10, config.dist_timeout / 2)
    held.enter_context(folder_lock(config.save_folder, patience))
    save_on_rank_0(config.save_folder, lambda: clean(config.save_folder))
    uploads = open_store(config)
    loggers = build_loggers(config)
    # DeepSpeed's engine casts and scales by itself; Composer knows no mixed precision on a CPU.
    composer_precision = "fp32" if config.parallelism.strategy == "deepspeed" or half_on_cpu else precision
    trainer = UGTTrainer(
        config,
        length,
        strategy,
        Checkpoints(strategy, config, fingerprint, best, [m.index_hash for m in train_manifests], uploads),
        RandomState(),
        TrainingLosses(config.log_interval, scales_loss=precision == "amp_fp16"),
        watchdog,
        model=composer_model,
        optimizers=strategy.optimizer,
        schedulers=create_scheduler(
            config.scheduler.name, f"{length.warmup}ba", f"{length.total}ba", config.scheduler.min_lr_ratio
        ),
        train_dataloader=train_loader,
        eval_dataloader=eval_loader,
        eval_interval=Every(config.eval_interval) if eval_loader is not None else 1,
        max_duration=config.max_duration,
        device=device,
        device_train_microbatch_size=config.device_train_microbatch_size,
        precision=composer_precision,
        seed=config.seed,
        run_name=config.run_name,
        dist_timeout=watchdog.timeout(),
        algorithms=[GradientNormClipping(strategy, config.max_grad_norm)],
        callbacks=[
            TrainingMetrics(composer_model, strategy, config.log_interval),
            EpochLength(),
            *([MemoryMonitor()] if config.callbacks.memory_monitor else []),
        ],
        loggers=loggers,
        spin_dataloaders=False,  # the data set goes to its place itself
        progress_bar=config.loggers.progress_bar,
        log_to_console=config.loggers.console,
        console_log_interval=config.log_interval,
        python_log_level=None,
    )
    limit_groups(watchdog.timeout())
    if config.autoresume:
        trainer.resume()
    elif dist.get_global_rank() == 0 and (aside := set_aside(config.save_folder)):
        log.warning("autoresume is false: what an earlier run left in %s was moved to %s", config.save_folder, aside)
    if dist.get_global_rank() == 0:
        with saving_into(config.save_folder):
            (Path(config.save_folder) / "config.yaml").write_text(config_yaml(config), "utf-8")
    watchdog.rest()
    return trainer


def build_composer_model(
    config: Config, model: UGT, catalogue: Catalogue | None, device: torch.device, half_on_cpu: bool = False
) -> ComposerUGT:
    """Model, loss and evaluation of a stage; what the stage does not train is frozen.

    Args:
        device: of the catalogue. The models stay on the host: a strategy places them.
    """
    reference_from = config.loss.reference_from or config.init_from
    loss = UnifiedLoss(**config.loss.arguments, repr_dim=config.model.d_model, seed=config.seed)
    freeze_untrained(model, config.loss.lambda_contrastive)
    model.encoder.activation_checkpointing = config.parallelism.activation_checkpointing
    model.decoder.activation_checkpointing = config.parallelism.activation_checkpointing
    if config.compile:
        compile_layers(model)
    reference = None
    if config.loss.needs_reference_model:
        assert reference_from is not None  # the config was refused without one
        # It drops tokens as the policy does, and has probabilities of the same ids: both begin with equal numbers.
        reference_model, _, facts = load_portable(
            on_this_machine(reference_from),
            dropout=0.0,
            attention_dropout=0.0,
            expert_capacity_factor=config.model.expert_capacity_factor,
            level_softmax=config.model.level_softmax,
        )
        check_fingerprint(reference_from, facts, fingerprint_facts(catalogue))
        if config.compile:
            compile_layers(reference_model)
        reference = Reference(reference_model)
    return ComposerUGT(
        model=model,
        loss=loss,
        reference=reference,
        trie=None if catalogue is None else ItemTrie.from_triples(catalogue.triples).to(device),
        k_values=config.evaluation.k_values,
        beam_width=config.evaluation.beam_width,
        exclude_seen=config.evaluation.exclude_seen,
        item_score_weight=config.evaluation.item_score_weight,
        half_on_cpu=half_on_cpu,
    )


def compile_layers(model: UGT) -> None:
    """Compiles each layer when it is first called; the names of the weights stay."""
    # A cache for each rank: ranks that compile the same code into one read each other's half-written files.
    cache = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}" / f"rank{dist.get_local_rank()}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.compile()


def fingerprint_facts(catalogue: Catalogue | None) -> dict[str, str]:
    """The catalogue's fingerprint as it stands in the header of a model."""
    return {} if catalogue is None else {FINGERPRINT: catalogue.fingerprint}


def make_save_folder(folder: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"save_folder {folder} cannot be written: {error.strerror}") from None


def check_best_metric(config: Config, model: ComposerUGT) -> str | None:
    names = list(model.get_metrics(is_train=False))
    if config.save_best_on is not None and config.save_best_on not in names:
        raise UserError(f"save_best_on is {config.save_best_on!r}; {nearest(config.save_best_on, names)}")
    return config.save_best_on
