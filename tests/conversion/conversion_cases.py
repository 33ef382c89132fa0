"""Shared by the conversion tests: rows, a function that runs the program in this process, a reader of shards."""

import importlib.util
import json
import random
import struct
from itertools import pairwise
from pathlib import Path
from types import ModuleType

from ugt_composer.data.codec import Row, decode_row

SIDE = ("l1_ids", "l2_ids", "l3_ids", "positions", "token_types", "mask")
SIZES = (12, 14, 16)
SMALL = ["--codebook-sizes", *map(str, SIZES), "--max-history", "6", "--max-target", "4", "--max-positions", "40"]


def load_program() -> ModuleType:
    path = Path(__file__).parents[2] / "convert" / "jsonl_to_mds.py"
    spec = importlib.util.spec_from_file_location("jsonl_to_mds", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


main = load_program().main


def recommend_row(rng: random.Random, user: str = "u", history: int = 4, targets: int = 3) -> dict:
    """A row as users write it: a user token first, and the targets' own ids as labels."""
    items = [tuple(rng.randrange(5, size) for size in SIZES) for _ in range(history + targets)]
    row: dict = {"user_id": user}
    row |= side("encoder", [(1, 1, 1), *items[:history]], [0] + [1] * history)
    row |= side("decoder", items[history:], [1] * targets)
    row |= {f"labels_l{level + 1}": [item[level] for item in items[history:]] for level in range(3)}
    return row


def preference_row(rng: random.Random, user: str = "u", history: int = 4, rejected: int = 2) -> dict:
    def item(l1: int) -> dict:
        return {"l1_id": l1, "l2_id": rng.randrange(5, SIZES[1]), "l3_id": rng.randrange(5, SIZES[2])}

    row = recommend_row(rng, user, history)
    return {
        "user_id": user,
        "user_sequence": {f"encoder_{column}": row[f"encoder_{column}"] for column in SIDE},
        "chosen_item": item(5),
        "rejected_items": [item(6) for _ in range(rejected)],
        "preference_score": 0.5,
    }


def side(name: str, ids: list, token_types: list[int]) -> dict:
    columns = [[triple[level] for triple in ids] for level in range(3)]
    columns += [list(range(len(ids))), token_types, [1] * len(ids)]
    return {f"{name}_{column}": values for column, values in zip(SIDE, columns, strict=True)}


def write_rows(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def packed_rows(folder: Path) -> list[bytes]:
    """The rows of uncompressed shards, parsed as the MDS format describes."""
    rows = []
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        (count,) = struct.unpack_from("<I", data)
        offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
        assert count == shard["samples"]
        for start, end in pairwise(offsets):
            assert struct.unpack_from("<I", data, start)[0] == end - start - 4
            rows.append(data[start + 4 : end])
    return rows


def decoded_rows(folder: Path) -> list[Row]:
    return [decode_row(row) for row in packed_rows(folder)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def siblings(out: Path) -> list[str]:
    """Files and folders that a conversion has left beside its output."""
    return sorted(path.name for path in out.parent.iterdir() if out.name in path.name and path != out)
