"""Data folders of several small shards, and ways to corrupt them."""

import shutil
from pathlib import Path

import pytest

from tests.shop import SIZES, write_rows

ROWS = 280


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """converted(*options) → a folder of ROWS rows in about eight shards, converted once for each set of options."""
    from convert.jsonl_to_mds import main as convert

    folder, made = tmp_path_factory.mktemp("converted"), {}
    write_rows(folder / "rows.jsonl", "recommend", ROWS, 0)

    def make(*options: str) -> Path:
        if options not in made:
            out = folder / f"out{len(made)}"
            fixed = ["--codebook-sizes", *map(str, SIZES), "--max-positions", "32", "--size-limit", "4096"]
            words = [str(folder / "rows.jsonl"), "--kind", "recommend", "--out", str(out), *fixed, *options]
            assert convert(words) == 0
            made[options] = out
        return made[options]

    return make


@pytest.fixture
def data_folder(converted, tmp_path):
    """data_folder(*options, name="data") → a copy of such a folder that the test may corrupt."""

    def make(*options: str, name: str = "data") -> Path:
        return Path(shutil.copytree(converted(*options), tmp_path / name))

    return make


def flip_byte(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


CORRUPTIONS = {"flipped": flip_byte, "cut": cut, "missing": Path.unlink}
