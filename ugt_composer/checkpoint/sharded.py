"""Sharded checkpoints: each rank writes its own part, in the format of the strategy."""

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from ugt_composer.checkpoint.machines import ONE_MACHINE, Machines
from ugt_composer.checkpoint.rank0_errors import cannot_save, save_on_leaders, save_on_rank_0
from ugt_composer.checkpoint.run_checkpoints import ALL_MACHINES, REPLACED, SHARDS, STATE
from ugt_composer.checkpoint.untrusted import forbidden
from ugt_composer.checkpoint.whole_state import buffers_of, from_rank_0, group_settings, set_groups
from ugt_composer.checkpoint.written import write_hashed
from ugt_composer.config.schema import ParallelismConfig
from ugt_composer.errors import UserError
from ugt_composer.parallelism.strategy import Strategy
from ugt_composer.storage.record import RECORD, Facts, Record, facts_of, read_back, write_record
from ugt_composer.storage.sync import sync_file, sync_folder

PIECE = 1 << 26  # bytes that are sent to other machines at once


def write_sharded(path: Path, light: dict[str, Any], strategy: Strategy, machines: Machines = ONE_MACHINE) -> None:
    """Every rank writes its part into a temporary folder, renamed when parts and record are complete. A collective.

    A folder that is not shared by all machines gets what the ranks of its own machines read; `state.pt` is in rank 0's.

    Raises:
        RunError: a folder cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()

    def finish() -> None:
        record = {name: [file_facts] for name, file_facts in facts.items()}
        write_folder_record(temporary, {name: record[name] for name in names}, record, machines)
        put_folder_in_place(temporary, path)

    save_on_leaders(path.parent, machines, begin)
    try:
        _save_parts(strategy, temporary / SHARDS, path.parent)
        save_on_rank_0(path.parent, lambda: _write_state(temporary, light))
        dist.barrier()
        if machines.are_separate:
            _copy_common(strategy, temporary, machines)
        names, facts = _facts_by_all_ranks(temporary, path.parent, machines)
        save_on_leaders(path.parent, machines, finish)
    except BaseException:
        if machines.is_leader:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_state(folder: Path, light: dict[str, Any]) -> None:
    write_hashed(folder / STATE, lambda file: torch.save(light, file))  # type: ignore[arg-type]


def _copy_common(strategy: Strategy, temporary: Path, machines: Machines) -> None:
    """Copies the files that every rank reads from rank 0's folder into those of other machines. A collective."""
    parts = [path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file()]
    parts = [name for name in parts if name.startswith(f"{SHARDS}/")]
    names = from_rank_0(sorted(strategy.shards_read(parts, ())))

    def append(name: str, piece: bytes, begins: bool) -> None:
        if 0 not in machines.sharing:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            with (temporary / name).open("wb" if begins else "ab") as file:
                file.write(piece)

    for name in names:
        offset, piece = 0, b""
        while offset == 0 or len(piece) == PIECE:
            if dist.get_global_rank() == 0:
                with (temporary / name).open("rb") as file:
                    file.seek(offset)
                    piece = file.read(PIECE)
            piece = from_rank_0(piece)
            save_on_leaders(temporary.parent, machines, partial(append, name, piece, offset == 0))
            offset += len(piece)
            if not piece:
                break


def write_folder_record(folder: Path, files: Record, complete: Record, machines: Machines) -> None:
    """Writes the record of the files in a folder, and, if other machines have further ones, that of all files."""
    if machines.are_separate:
        write_record(folder / ALL_MACHINES, complete)
        files = files | {ALL_MACHINES: [facts_of(folder / ALL_MACHINES)]}
    write_record(folder / RECORD, files)


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


def _facts_by_all_ranks(temporary: Path, folder: Path, machines: Machines) -> tuple[list[str], dict[str, Facts]]:
    """The names of the files in `temporary`, and {name: size and hash} of every file on any machine. Each is flushed
    and read back from the disk by one rank."""
    names = sorted(path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file())
    rank_facts: dict[str, Facts] | str  # the reason, if the disk failed
    try:
        ranks = machines.ranks
        names_of_rank = names[ranks.index(dist.get_global_rank()) :: len(ranks)]
        rank_facts = {name: _flush_and_hash(temporary / name) for name in names_of_rank}
        if machines.is_leader:
            for path in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
                sync_folder(path)
    except OSError as error:
        rank_facts = _reason(error)
    all_facts: dict[str, Facts] = {}
    for facts_or_reason in dist.all_gather_object(rank_facts):
        if isinstance(facts_or_reason, str):
            raise cannot_save(folder, facts_or_reason)
        all_facts |= facts_or_reason
    return names, all_facts


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
        UserError: another strategy or another number of ranks wrote it; a file of a machine calls what it must not.
    """
    before, now = content["by"], _written_by(parallelism)
    if before != now:
        raise UserError(
            f"{path} holds the shards of {_described(before)}, this run is {_described(now)}: sharded checkpoints are "
            "not portable; resume with the strategy and ranks that wrote it, or start from its latest/ with init_from"
        )
    # Each machine reads its own files, of which rank 0 has not seen all.
    problem = forbidden(path / SHARDS) if dist.get_local_rank() == 0 else None
    for reason in filter(None, dist.all_gather_object(problem)):
        raise UserError(f"{path}: its {SHARDS}/{reason}")
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
