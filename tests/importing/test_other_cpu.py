"""The same import on another processor gives the same semantic IDs, byte for byte.

OpenBLAS and NumPy choose their loops by the processor, unless these environment variables name others.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.shop import ROOT

PROCESSORS = {
    "this one": {},
    "older, two threads": {"OPENBLAS_CORETYPE": "Prescott", "OMP_NUM_THREADS": "2"},
    "without AVX-512": {
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    },
}
PROGRAM = """
import sys
from threadpoolctl import threadpool_info
from convert.semantic_ids import main
*options, titles, out = sys.argv[1:]
main([*options, "--items", titles, "--out", out])
main(["--extend", f"{out}/semantic_ids.json", "--items", titles.replace("items", "more"), "--out", f"{out}-more"])
print({library["architecture"] for library in threadpool_info() if library["internal_api"] == "openblas"})
"""


@pytest.fixture
def tables(tmp_path) -> tuple[Path, Path]:
    """Interactions of 200 users with 400 items, and titles of most of them."""
    random = np.random.default_rng(0)
    item = np.minimum(random.zipf(1.3, 6000), 400) % 400
    user = random.integers(0, 200, len(item))
    table = pl.DataFrame({"user": user, "item": item, "timestamp": np.arange(len(item))})
    table.unique(["user", "item"], keep="first", maintain_order=True).write_csv(tmp_path / "log.csv")
    words = [f"w{number}" for number in range(60)]
    titles = [" ".join(random.choice(words, 4)) for _ in range(360)]
    pl.DataFrame({"item": range(360), "title": titles}).write_csv(tmp_path / "items.csv")
    titles = [" ".join(random.choice(words, 4)) for _ in range(90)]
    pl.DataFrame({"item": range(400, 490), "title": titles}).write_csv(tmp_path / "more.csv")
    return tmp_path / "log.csv", tmp_path / "items.csv"


def test_the_ids_do_not_depend_on_the_processor(tables, tmp_path):
    log, items = map(str, tables)
    running = {}
    for number, (name, variables) in enumerate(PROCESSORS.items()):
        out = tmp_path / str(number)
        options = [log, "--max-unmatched", "1", items, str(out)]
        running[name] = (
            out,
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *options],
                env={**os.environ, **variables},
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ),
        )
    kernels, files = set(), {}
    for name, (out, process) in running.items():
        printed, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        kernels.add(printed.splitlines()[-1])
        folders = (out, out.with_name(f"{out.name}-more"))
        written = ("semantic_ids.json", "item_vectors.npy", "semantic_ids.npz")
        files[name] = [(folder / file).read_bytes() for folder in folders for file in written]
    if len(kernels) == 1:
        pytest.skip(f"OpenBLAS has no other kernels for this processor than {kernels}")
    for name, content in files.items():
        assert content == files["this one"], name
