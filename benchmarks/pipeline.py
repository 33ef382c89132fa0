"""Claim: collating batches from shards is faster than with a typical Streaming data set, and as fast as from a list in
memory.

All three make the same batches, in one process without workers. The typical data set has one `ndarray` column per
field, and its collation pads each field of each sample to the longest in the batch. The list contains parsed rows, one
tensor per field, padded by `pad_sequence`.

    python benchmarks/pipeline.py [--rows 20000] [--repetitions 5] [--many 1000000 100000000]
"""

import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from streaming import StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import Claim, in_turns, peak_bytes, report
from benchmarks.conversion import this_conversion, usual_script, write_rows
from ugt_composer.config.schema import StreamConfig
from ugt_composer.data.codec import decode_row
from ugt_composer.data.collate import collate
from ugt_composer.data.evaluation_dataset import RowFolder
from ugt_composer.data.integrity import INDEX_NAME, MANIFEST_NAME
from ugt_composer.data.streaming_patches import RowDataset, training_streams
from ugt_composer.storage.hashed_file import file_hash

BATCH = 256
ORDER = {"shuffle": True, "shuffle_seed": 1, "shuffle_block_size": 1 << 18, "num_canonical_nodes": 4}  # as shipped
LEVELS = ("l1", "l2", "l3")
# Memory of one process that opens a folder of rows and reads ten batches.
MANY_ROWS = """
from benchmarks.pipeline import dataset_of
from itertools import islice
from pathlib import Path
list(islice(dataset_of(Path(sys.argv[1])), 2560))
begin()
list(islice(dataset_of(Path(sys.argv[2])), 2560))
end()
"""


def dataset_of(folder: Path) -> RowDataset:
    return RowDataset(streams=training_streams([StreamConfig(local=str(folder))]), batch_size=BATCH, **ORDER)


def read(batches: Iterable) -> None:
    for _ in batches:
        pass


def pad_each_sample(rows: list[dict]) -> dict[str, Tensor]:
    """As users write it: each field of each sample is padded to the longest in the batch."""
    batch = {}
    for name in rows[0]:
        if name == "user_id":
            continue
        longest = max(len(row[name]) for row in rows)
        padded = [np.pad(row[name].astype(np.int64), (0, longest - len(row[name]))) for row in rows]
        batch[name] = torch.from_numpy(np.stack(padded))
    return batch


def pad_fields(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: pad_sequence([row[name] for row in rows], batch_first=True) for name in rows[0]}


def parsed_rows(folder: Path) -> list[dict[str, Tensor]]:
    """The rows of a folder, one tensor per field, in the order of the folder."""
    rows = []
    source = RowFolder(str(folder), None)
    for number in range(len(source)):
        row = decode_row(source[number])
        fields = {}
        for side, tokens in (("encoder", row.encoder), ("decoder", row.decoder)):
            names = (*(f"{side}_{level}" for level in LEVELS), f"{side}_positions", f"{side}_token_types")
            fields |= {name: tokens[:, column] for column, name in enumerate(names)}
            fields[f"{side}_mask"] = np.ones(len(tokens), bool)
        fields |= {f"labels_{level}": row.decoder[:, 5 + column] for column, level in enumerate(LEVELS)}
        rows.append({name: torch.from_numpy(values.copy()) for name, values in fields.items()})
    return rows


def many_rows(folder: Path, rows: int, shard: Path) -> Path:
    """A folder whose shards are all hard links to one file."""
    folder.mkdir()
    index = json.loads((shard / INDEX_NAME).read_text())
    first = index["shards"][0]
    shards = []
    for number in range(-(-rows // first["samples"])):
        name = f"shard.{number:05}.mds"
        os.link(shard / first["raw_data"]["basename"], folder / name)
        shards.append({**first, "raw_data": {**first["raw_data"], "basename": name}})
    (folder / INDEX_NAME).write_text(json.dumps({**index, "shards": shards}))
    manifest = json.loads((shard / MANIFEST_NAME).read_text())
    manifest["counts"]["rows"] = len(shards) * first["samples"]
    manifest["index_hash"] = f"xxh3_128:{file_hash('xxh3_128', folder / INDEX_NAME)}"
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--many", type=int, nargs=2, default=[1_000_000, 100_000_000])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clean_stale_shared_memory()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        write_rows(out / "rows.jsonl", arguments.rows)
        this_conversion(out / "rows.jsonl", out / "ours")
        usual_script(out / "rows.jsonl", out / "usual")
        ours = DataLoader(dataset_of(out / "ours"), BATCH, collate_fn=collate)
        usual_data = StreamingDataset(local=str(out / "usual"), batch_size=BATCH, **ORDER)
        usual = DataLoader(usual_data, BATCH, collate_fn=pad_each_sample)
        in_memory = DataLoader(parsed_rows(out / "ours"), BATCH, shuffle=True, collate_fn=pad_fields)
        check_same(out / "ours", in_memory.dataset)
        claims = []
        for name, rival, target in (
            ("StreamingDataset, one column per field, per-sample padding", usual, 5.0),
            ("a list of parsed rows in memory", in_memory, 1.0),
        ):
            ratio, our_seconds, rival_seconds = in_turns(
                lambda: read(ours), lambda rival=rival: read(rival), arguments.repetitions
            )
            note = f"{arguments.rows / our_seconds:,.0f} and {arguments.rows / rival_seconds:,.0f} rows/s"
            claims.append(Claim("shard to batch: rows/s", name, 1 / ratio, target, at_least=True, note=note))
        few, many = (many_rows(out / str(rows), rows, out / "ours") for rows in arguments.many)
        growth = peak_bytes(MANY_ROWS, few, many)
        shutil.rmtree(few), shutil.rmtree(many)
        what = (
            f"peak memory of a process, {arguments.many[1]:,} rows, minus that of {arguments.many[0]:,}, bytes per row"
        )
        claims.append(Claim(what, "flat", growth / arguments.many[1], 0.5, False, f"{growth / 2**20:.1f} MB"))
    return report(__file__, claims)


def check_same(folder: Path, parsed: list[dict[str, Tensor]]) -> None:
    """Both collations make the same batch of the same rows."""
    dataset = dataset_of(folder)
    rows = list(itertools.islice(dataset, BATCH))
    dataset.leave_iteration()
    batch, expected = collate(rows), pad_fields([parsed[row.row_id] for row in rows])
    for side in ("encoder", "decoder"):
        for column, level in enumerate(LEVELS):
            assert torch.equal(batch[f"{side}_ids"][..., column], expected[f"{side}_{level}"])
        assert torch.equal(batch[f"{side}_mask"], expected[f"{side}_mask"])
        assert torch.equal(batch[f"{side}_positions"], expected[f"{side}_positions"])


if __name__ == "__main__":
    sys.exit(main())
