"""What can be known to be wrong with a run before anything is built: the same for a dry run and a real one."""

import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from ugt_composer.checkpoint.portable import CONFIG, weights_hash
from ugt_composer.config.load import load_config
from ugt_composer.config.schema import Config
from ugt_composer.data.manifest import PREFERENCE, Manifest, read_manifest, streams_of
from ugt_composer.errors import UserError
from ugt_composer.parallelism.build import strategy_class
from ugt_composer.parallelism.precision import resolve_precision

LONGEST_TMPDIR = 107 - len("/pymp-12345678/listener-12345678")  # of a socket's path; PyTorch's workers hang without it


def check_run(config: Config) -> None:
    """UserError for what this machine cannot run or has not installed, or a save folder that cannot be one."""
    check_machine(config)
    if len(temporary := tempfile.gettempdir()) > LONGEST_TMPDIR:
        raise UserError(
            f"TMPDIR is {temporary}, of {len(temporary)} letters: data workers have sockets below it, whose paths may "
            f"not be longer than the system allows; expected at most {LONGEST_TMPDIR}, such as TMPDIR=/tmp"
        )
    if config.callbacks:
        from ugt_composer.training.callbacks.configured import (
            configured_callbacks,
        )  # imports Composer, which takes seconds

        configured_callbacks(config.callbacks)
    if config.evaluation.metrics:
        from ugt_composer.metrics.user_metrics import user_metrics

        user_metrics(config.evaluation.metrics)
    for extra in ("wandb", "mlflow"):
        if getattr(config.loggers, extra) is not None and importlib.util.find_spec(extra) is None:
            raise UserError(f"loggers.{extra} is set, but not installed; pip install 'ugt-composer[{extra}]'")
    for folder in (Path(config.save_folder), *Path(config.save_folder).parents):
        if folder.exists():
            if not folder.is_dir():
                raise UserError(f"save_folder {config.save_folder}: {folder} is a file; expected a folder")
            break


def check_machine(config: Config) -> None:
    """UserError, with the alternative, where strategy, precision or microbatch need what is not here."""
    precision, strategy = resolve_precision(config.precision), config.parallelism.strategy
    facts = config.parallelism.facts
    has_gpu, local_ranks = torch.cuda.is_available(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if has_gpu and local_ranks > torch.cuda.device_count():
        raise UserError(
            f"{local_ranks} ranks on this machine, which has {torch.cuda.device_count()} GPUs: NCCL needs a GPU for "
            f"each rank; expected composer -n {torch.cuda.device_count()} or fewer"
        )
    if not has_gpu and precision != "fp32" and not facts.half_precision_on_cpu:
        raise UserError(
            f"precision is {precision} with parallelism.strategy {strategy}, but this machine has no GPU; set "
            "precision=fp32, or use strategy ddp"
        )
    if config.device_train_microbatch_size == "auto" and not has_gpu:
        raise UserError("device_train_microbatch_size is auto, which a GPU's memory decides; expected a number here")
    if config.device_train_microbatch_size == "auto" and not facts.retries_microbatches:
        raise UserError(
            f"device_train_microbatch_size is auto with parallelism.strategy {strategy}, whose gradients cannot be "
            "computed a second time; expected a number, or strategy ddp"
        )
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if config.device_train_microbatch_size == "auto" and world_size > 1:
        raise UserError(
            f"device_train_microbatch_size is auto with {world_size} ranks, of which one that runs out of memory would "
            "leave the others waiting for its gradients; expected a number, which one process finds (python train.py … "
            f"global_train_batch_size={config.global_train_batch_size // world_size}) and logs"
        )
    strategy_class(config).check(config, precision, world_size)


def check_reference_log_probs(config: Config, model_folder: Path) -> None:
    """UserError where `loss.reference_log_probs` is data and some preference rows do not carry this reference's."""
    given: list[tuple[str, Sequence[Manifest]]] = []
    for key, data in (("data.train", config.data.train), ("data.eval", config.data.eval)):
        if data.local or data.streams:
            given.append((key, [read_manifest(str(s.local), complete=False) for s in streams_of(key, data)]))
    wanted = weights_hash(model_folder)
    for key, manifests in given:
        for manifest in manifests:
            if manifest.kind != PREFERENCE or manifest.reference == wanted:
                continue
            found = "no log-probabilities of a reference"
            if manifest.reference is not None:
                found = f"the log-probabilities of another reference ({manifest.reference}, not {wanted})"
            raise UserError(
                f"{manifest.folder} ({key}) holds {found}, but loss.reference_log_probs is data and the reference is "
                f"{model_folder}; write it by `ugt reference` --checkpoint {model_folder} --data {manifest.folder} "
                "--out DIR, or set loss.reference_log_probs=model"
            )
    theirs = load_config(model_folder / CONFIG).model.level_softmax
    if theirs != config.model.level_softmax:
        raise UserError(
            f"model.level_softmax is {config.model.level_softmax}, but the stored log-probabilities are those of "
            f"{model_folder}, of which it is {theirs}; expected {theirs}, or loss.reference_log_probs=model"
        )
