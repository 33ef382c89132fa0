"""Checks of a run before anything is built: the same for a dry run and a real one."""

import importlib.util
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.shard_items import check_shards
from ugt_composer.checkpoint.portable import CONFIG, check_exists, weights_hash
from ugt_composer.config.load import load_config
from ugt_composer.config.schema import Config, StreamConfig
from ugt_composer.data.integrity import MANIFEST_NAME
from ugt_composer.data.manifest import Manifest, read_manifest, streams_of
from ugt_composer.errors import UserError
from ugt_composer.jsonl.schema import PREFERENCE
from ugt_composer.parallelism.build import strategy_class
from ugt_composer.parallelism.precision import resolve_precision
from ugt_composer.storage.s3_url import is_url

log = logging.getLogger(__name__)

# The system limits the path of a socket, and PyTorch's workers hang above the limit.
LONGEST_TMPDIR = 107 - len("/pymp-12345678/listener-12345678")


def check_run(config: Config) -> None:
    """UserError if this machine does not support the run or lacks a package, or if save_folder is not a folder."""
    check_machine(config)
    if len(temporary := tempfile.gettempdir()) > LONGEST_TMPDIR:
        raise UserError(
            f"TMPDIR is {temporary}, of {len(temporary)} characters: data workers have sockets in it, and the system "
            f"limits the length of their paths; expected at most {LONGEST_TMPDIR}, such as TMPDIR=/tmp"
        )
    if config.callbacks:
        # Not at the top: it imports Composer, which takes seconds.
        from ugt_composer.training.callbacks.configured import configured_callbacks

        configured_callbacks(config.callbacks)
    if config.evaluation.metrics:
        from ugt_composer.metrics.user_metrics import user_metrics

        user_metrics(config.evaluation.metrics)
    for extra in ("wandb", "mlflow"):
        if getattr(config.loggers, extra) is not None and importlib.util.find_spec(extra) is None:
            raise UserError(
                f"loggers.{extra} is set, but {extra} is not installed; pip install 'ugt-composer[{extra}]'"
            )
    _check_starting_points(config)
    for folder in (Path(config.save_folder), *Path(config.save_folder).parents):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"save_folder {config.save_folder}: {folder} is a file; expected a folder")


def _check_starting_points(config: Config) -> None:
    """UserError if the run would start from, or compare itself with, a model that it replaces itself."""
    own = [Path(config.save_folder).resolve() / name for name in ("", "best", "latest")]
    for key, folder in (("init_from", config.init_from), ("loss.reference_from", config.loss.reference_from)):
        if folder is not None and not is_url(folder) and Path(folder).resolve() in own:
            raise UserError(
                f"{key} is {folder}, which this run replaces, as it is in save_folder {config.save_folder}; expected "
                "the model of another run, or another save_folder"
            )


def check_models(config: Config) -> None:
    """UserError, with its key, if the model that the run starts from or is compared with is not on this machine."""
    reference_from = config.loss.reference_from if config.loss.needs_reference else None
    for key, place, otherwise in (
        ("init_from", config.init_from, ""),
        ("loss.reference_from", reference_from, "; loss.reference_from=null takes the model of init_from"),
    ):
        if place is not None and not is_url(place):
            check_exists(key, place, otherwise)


def check_machine(config: Config) -> None:
    """UserError, with the alternative, if strategy, precision or microbatch size do not work on this machine."""
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
        raise UserError("device_train_microbatch_size is auto, but this machine has no GPU; expected a number")
    if config.device_train_microbatch_size == "auto" and not facts.retries_microbatches:
        raise UserError(
            f"device_train_microbatch_size is auto with parallelism.strategy {strategy}, whose gradients cannot be "
            "computed a second time; expected a number, or strategy ddp"
        )
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if config.device_train_microbatch_size == "auto" and world_size > 1:
        raise UserError(
            f"device_train_microbatch_size is auto with {world_size} ranks: if one of them ran out of memory, the "
            "others would wait for its gradients; expected a number, which a run of one process finds and logs (ugt "
            f"train … global_train_batch_size={config.global_train_batch_size // world_size})"
        )
    strategy_class(config).check(config, precision, world_size)


def check_items(config: Config, catalogue: Catalogue | None) -> list[str]:
    """Checks that `data.train` and `data.eval` were converted with this catalogue; see `check_shards`.

    Folders that have not been downloaded are left out. Returns warnings.
    """
    streams = {"data.train": streams_of("data.train", config.data.train)}
    if config.data.eval.is_given:
        streams["data.eval"] = streams_of("data.eval", config.data.eval)
    manifests = {key: present_manifests(of_key) for key, of_key in streams.items()}
    return check_shards(manifests, catalogue, config.data.max_fraction_outside_catalogue)


def present_manifests(streams: Sequence[StreamConfig]) -> list[Manifest]:
    folders = [str(stream.local) for stream in streams if (Path(str(stream.local)) / MANIFEST_NAME).exists()]
    return [read_manifest(folder, complete=False) for folder in folders]


def check_reference_log_probs(config: Config, model_folder: Path) -> None:
    """UserError if preference rows lack the log-probabilities of this reference, which `loss.reference_log_probs=data`
    needs, or hold those of another precision or strategy."""
    manifests_by_key: list[tuple[str, list[Manifest]]] = []
    for key, data in (("data.train", config.data.train), ("data.eval", config.data.eval)):
        if data.local or data.streams:
            manifests = [read_manifest(str(s.local), complete=False) for s in streams_of(key, data)]
            manifests_by_key.append((key, manifests))
    reference = weights_hash(model_folder)
    for key, manifests in manifests_by_key:
        for manifest in manifests:
            if manifest.kind != PREFERENCE:
                continue
            if manifest.reference == reference:
                _check_arithmetic(config, key, manifest, model_folder)
                continue
            stored = "no log-probabilities of a reference"
            if manifest.reference is not None:
                stored = f"the log-probabilities of another reference ({manifest.reference}, not {reference})"
            raise UserError(
                f"{manifest.folder} ({key}) holds {stored}, but loss.reference_log_probs is data and the reference is "
                f"{model_folder}; write them with `ugt reference --checkpoint {model_folder} --data {manifest.folder} "
                "--out DIR`, or set loss.reference_log_probs=model"
            )
    reference_softmax = load_config(model_folder / CONFIG).model.level_softmax
    if reference_softmax != config.model.level_softmax:
        raise UserError(
            f"model.level_softmax is {config.model.level_softmax}, but the stored log-probabilities come from "
            f"{model_folder}, where it is {reference_softmax}; expected {reference_softmax}, or "
            "loss.reference_log_probs=model"
        )


def _check_arithmetic(config: Config, key: str, manifest: Manifest, model_folder: Path) -> None:
    """UserError if stored log-probabilities are rounded differently from the policy's: margins would not start at 0."""
    precision = resolve_precision(config.precision)
    strategy = strategy_class(config).arithmetic(config, precision)
    stored = (manifest.reference_precision, manifest.reference_strategy)
    if stored == (precision, strategy):
        return
    if manifest.reference_precision is None:
        log.warning(
            "%s (%s) does not say in which precision its log-probabilities were computed; if it was not %s, the "
            "margins of the preference loss do not start at 0",
            *(manifest.folder, key, precision),
        )
        return
    if manifest.reference_precision != precision:
        difference = f"precision {manifest.reference_precision}, but this run has precision {precision}"
    else:
        difference = f"the arithmetic of strategy {manifest.reference_strategy}, but this run has that of {strategy}"
    options = f"--precision {precision}" + (f" --strategy {strategy}" if strategy != "ddp" else "")
    raise UserError(
        f"{manifest.folder} ({key}) holds log-probabilities computed in {difference}, so a policy that equals the "
        f"reference would not start with a margin of 0; write them again with `ugt reference --checkpoint "
        f"{model_folder} --data {manifest.folder} {options} --out DIR`, or set loss.reference_log_probs=model"
    )
