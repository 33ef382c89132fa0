"""Sharded checkpoints: each rank writes its own part, in the format of the strategy."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from ugt_composer.checkpoint.rank0_errors import cannot_save, save_on_rank_0
from ugt_composer.checkpoint.run_checkpoints import REPLACED, SHARDS, STATE
from ugt_composer.checkpoint.whole_state import buffers_of, group_settings, set_groups
from ugt_composer.checkpoint.written import write_hashed
from ugt_composer.config.schema import ParallelismConfig
from ugt_composer.errors import UserError
from ugt_composer.parallelism.strategy import Strategy
from ugt_composer.storage.record import RECORD, Facts, read_back, write_record
from ugt_composer.storage.sync import sync_file, sync_folder


def write_sharded(path: Path, light: dict[str, Any], strategy: Strategy) -> None:
    """Every rank writes its part into a temporary folder, renamed when parts and record are complete. A collective.

    Raises:
        RunError: the folder cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()

    def finish() -> None:
        facts[STATE] = write_hashed(temporary / STATE, lambda file: torch.save(light, file))  # type: ignore[arg-type]
        write_record(temporary / RECORD, {name: [file_facts] for name, file_facts in facts.items()})
        put_folder_in_place(temporary, path)

    save_on_rank_0(path.parent, begin)
    try:
        _save_parts(strategy, temporary / SHARDS, path.parent)
        dist.barrier()
        facts = _facts_by_all_ranks(temporary, path.parent)
        save_on_rank_0(path.parent, finish)
    except BaseException:
        if dist.get_global_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def put_folder_in_place(temporary: Path, path: Path) -> None:
    """Renames `temporary` to `path`. An old folder there is renamed first and deleted last: a kill loses neither."""
    replaced = path.with_name(path.name + REPLACED)
    if path.exists():
        path.rename(replaced)
    os.replace(temporary, path)
    sync_folder(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _save_parts(strategy: Strategy, shards: Path, folder: Path) -> None:
    try:
        strategy.save_sharded(shards)
    except CheckpointException as error:  # raised on all ranks for an error on any of them
        causes = [cause for cause, _ in error.failures.values()]
        raise cannot_save(folder, _reason(next((c for c in causes if isinstance(c, OSError)), causes[0]))) from None
    except OSError as error:
        raise cannot_save(folder, _reason(error)) from None
    except RuntimeError as error:
        if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
            raise
        raise cannot_save(folder, _reason(error)) from None  # torch.save hides the OSError


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return text or (str(error) or repr(error)).splitlines()[0]


def _facts_by_all_ranks(temporary: Path, folder: Path) -> dict[str, Facts]:
    """{name: size and hash} of every file in `temporary`; each is flushed and read back from the disk by one rank."""
    names = sorted(path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file())
    rank_facts: dict[str, Facts] | str  # the reason, if the disk failed
    try:
        names_of_rank = names[dist.get_global_rank() :: dist.get_world_size()]
        rank_facts = {name: _flush_and_hash(temporary / name) for name in names_of_rank}
        if dist.get_global_rank() == 0:
            for path in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
                sync_folder(path)
    except OSError as error:
        rank_facts = _reason(error)
    all_facts: dict[str, Facts] = {}
    for facts_or_reason in dist.all_gather_object(rank_facts):
        if isinstance(facts_or_reason, str):
            raise cannot_save(folder, facts_or_reason)
        all_facts |= facts_or_reason
    return all_facts


def _flush_and_hash(path: Path) -> Facts:
    sync_file(path)
    return read_back(path)


def state_beside_shards(
    weights: dict[str, Tensor], parallelism: ParallelismConfig, strategy: Strategy
) -> dict[str, Any]:
    """What every rank has in full, and what wrote the shards."""
    buffers = {name: weights[name] for name in buffers_of(strategy) if name in weights}
    return {"by": _written_by(parallelism), "buffers": buffers, "groups": group_settings(strategy)}


def restore_sharded(path: Path, content: dict[str, Any], parallelism: ParallelismConfig, strategy: Strategy) -> None:
    """Reads what a run of the same strategy on as many ranks wrote. A collective.

    Args:
        content: of `state_beside_shards`.

    Raises:
        UserError: another strategy or another number of ranks wrote it.
    """
    before, now = content["by"], _written_by(parallelism)
    if before != now:
        raise UserError(
            f"{path} holds the shards of {_described(before)}, this run is {_described(now)}: sharded checkpoints are "
            "not portable; resume with the strategy and ranks that wrote it, or start from its latest/ with init_from"
        )
    strategy.load_sharded(path / SHARDS)
    set_groups(strategy, content["groups"])
    for name, buffer in buffers_of(strategy).items():
        buffer.copy_(content["buffers"][name])


def _written_by(parallelism: ParallelismConfig) -> dict[str, Any]:
    stage = parallelism.deepspeed.zero_stage if parallelism.strategy == "deepspeed" else None
    return {"strategy": parallelism.strategy, "zero_stage": stage, "world_size": dist.get_world_size()}


def _described(by: dict[str, Any]) -> str:
    stage = "" if by["zero_stage"] is None else f" (zero_stage {by['zero_stage']})"
    return f"{by['strategy']}{stage} on {by['world_size']} ranks"
