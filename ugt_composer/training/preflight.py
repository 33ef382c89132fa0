"""What can be known to be wrong with a run before anything is built: the same for a dry run and a real one."""

import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.item_matrix import read_catalogue_vectors
from ugt_composer.checkpoint.portable import CONFIG, WEIGHTS
from ugt_composer.config.schema import Config, load_config
from ugt_composer.data.manifest import PREFERENCE, Manifest, read_manifest, streams_of
from ugt_composer.errors import UserError
from ugt_composer.parallelism.deepspeed_config import engine_config
from ugt_composer.parallelism.precision import cpu_multiplies_bf16, gpu_multiplies_bf16
from ugt_composer.storage.hashed_file import file_hash

LONGEST_TMPDIR = 107 - len("/pymp-12345678/listener-12345678")  # of a socket's path; PyTorch's workers hang without it


def check_run(config: Config) -> None:
    """UserError for what this machine cannot run or has not installed, or a save folder that cannot be one."""
    check_machine(config)
    if len(temporary := tempfile.gettempdir()) > LONGEST_TMPDIR:
        raise UserError(
            f"TMPDIR is {temporary}, of {len(temporary)} letters: data workers have sockets below it, whose paths may "
            f"not be longer than the system allows; expected at most {LONGEST_TMPDIR}, such as TMPDIR=/tmp"
        )
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
    has_gpu, local_ranks = torch.cuda.is_available(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if has_gpu and local_ranks > torch.cuda.device_count():
        raise UserError(
            f"{local_ranks} ranks on this machine, which has {torch.cuda.device_count()} GPUs: NCCL needs a GPU for "
            f"each rank; expected composer -n {torch.cuda.device_count()} or fewer"
        )
    if not has_gpu and precision != "fp32" and strategy != "ddp":
        raise UserError(
            f"precision is {precision} with parallelism.strategy {strategy}, but this machine has no GPU; set "
            "precision=fp32, or use strategy ddp"
        )
    if config.device_train_microbatch_size == "auto" and not has_gpu:
        raise UserError("device_train_microbatch_size is auto, which a GPU's memory decides; expected a number here")
    if config.device_train_microbatch_size == "auto" and strategy != "ddp":
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
    if strategy != "deepspeed":
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("parallelism.strategy is deepspeed, which is not installed; pip install deepspeed, or use fsdp")
    accelerator, own = os.environ.get("DS_ACCELERATOR"), "cuda" if has_gpu else "cpu"
    if accelerator not in (None, own):
        raise UserError(f"DS_ACCELERATOR is {accelerator!r}; expected {own}, which this machine has, or to be unset")
    deepspeed_settings(config, precision, world_size, num_parameters=1)


def deepspeed_settings(config: Config, precision: str, world_size: int, num_parameters: int) -> dict[str, Any]:
    """The configuration of DeepSpeed's engine. UserError for a key of the user's that contradicts another one."""
    deepspeed = config.parallelism.deepspeed
    return engine_config(
        deepspeed.zero_stage,
        deepspeed.offload_optimizer,
        deepspeed.offload_param,
        precision,
        config.max_grad_norm,
        device_batch_size(config, world_size),
        world_size,
        num_parameters,
        deepspeed.config,
    )


def resolve_precision(precision: str) -> str:
    """ "auto" is bf16 on a GPU that multiplies it, else fp32. UserError for fp16 on a CPU, which has no use for it."""
    has_gpu = torch.cuda.is_available()
    if precision == "auto":
        # Not fp16 on an older GPU: its range is narrow, so that it is for the user to ask for.
        return "amp_bf16" if has_gpu and gpu_multiplies_bf16() else "fp32"
    if not has_gpu and precision == "amp_fp16":
        raise UserError(
            "precision is amp_fp16, but this machine has no GPU; set precision=fp32, or amp_bf16, which is faster on "
            "CPUs with instructions for it (avx512_bf16, amx_bf16)"
        )
    return precision


def about_precision(config: Config) -> str | None:
    """That half precision is slow on this machine, or a faster one than what "auto" chose is there."""
    precision = resolve_precision(config.precision)
    if torch.cuda.is_available():
        if gpu_multiplies_bf16():
            return None
        gpu = torch.cuda.get_device_name()
        if config.precision == "auto":
            return f"precision is auto, which is fp32 on {gpu}: it does not multiply bf16; precision=amp_fp16 is faster"
        if precision == "amp_bf16":
            return f"precision is amp_bf16, which {gpu} only emulates: precision=amp_fp16 or fp32 is faster"
        return None
    if precision == "fp32" or cpu_multiplies_bf16():
        return None
    return (
        f"precision is {precision}, for which this CPU has no instructions (avx512_bf16, amx_bf16): it takes several "
        "times as long as precision=fp32"
    )


def check_kinds(config: Config, manifests: list[Manifest]) -> None:
    """UserError where preference rows would be trained on without a preference loss."""
    for manifest in manifests:
        if manifest.kind == PREFERENCE and config.loss.lambda_preference == 0:
            raise UserError(
                f"{manifest.folder} holds preference rows, but loss.lambda_preference is 0; expected recommend rows "
                "or stage 3"
            )


def weights_hash(model_folder: Path) -> str:
    """What tells the reference from any other model."""
    return f"xxh64:{file_hash('xxh64', model_folder / WEIGHTS)}"


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


def device_batch_size(config: Config, world_size: int) -> int:
    """Rows a rank takes of a global batch. UserError where they do not divide over the ranks."""
    if config.global_train_batch_size % world_size:
        raise UserError(
            f"global_train_batch_size is {config.global_train_batch_size}; expected a multiple of {world_size} ranks"
        )
    return config.global_train_batch_size // world_size


def load_catalogue(config: Config) -> Catalogue | None:
    """The catalogue of `data.catalogue`, held against the model's codebooks; None where none is given."""
    if config.data.catalogue is None:
        return None
    catalogue = Catalogue.load(config.data.catalogue)
    catalogue.check(config.model.codebook_sizes)
    return catalogue


def load_item_vectors(config: Config, catalogue: Catalogue | None) -> np.ndarray | None:
    """float32 (n, d), the vectors of `init_item_vectors`; None where none are given."""
    if config.init_item_vectors is None:
        return None
    assert catalogue is not None  # the config was refused without one
    return read_catalogue_vectors(config.init_item_vectors, catalogue)


def about_catalogue(config: Config, catalogue: Catalogue | None) -> str | None:
    """What a user should know of it: that there is none, or that items share semantic IDs."""
    if catalogue is None:
        return "data.catalogue is not given: recommendations are not limited to items that exist"
    return f"{config.data.catalogue}: {catalogue.collisions}" if catalogue.collisions.count else None
