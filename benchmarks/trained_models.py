"""What the benchmarks that train models share: this project's programs, on one core each, and tables of scores."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ugt_composer.torch_patches import cpu_multiplies_bf16
from ugt_composer.vocabulary import DEFAULT_CODEBOOK_SIZES

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
Scores = Mapping[str, float]
ROOM = (
    *DEFAULT_CODEBOOK_SIZES[:2],
    65_536,
)  # at most; the import takes what it needs, so each item has an L3 of its own


def run(command: Sequence[object]) -> None:
    """Runs a program on one core, its output on the terminal. Raises CalledProcessError where it fails."""
    subprocess.run([str(word) for word in command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT)


def import_once(out: Path, arguments: Sequence[object]) -> None:
    """Interactions to `out`/data."""
    if not (out / "data/report.json").exists():
        run(
            [
                sys.executable,
                ROOT / "convert/interactions_to_jsonl.py",
                *arguments,
                "--codebook-sizes",
                *ROOM,
                "--overwrite",
                "--out",
                out / "data",
            ]
        )


def import_report(out: Path) -> dict[str, Any]:
    return json.loads((out / "data/report.json").read_text())


def codebook_override(out: Path) -> str:
    """The model's codebooks in the sizes that the imported catalogue needs."""
    return f"model.codebook_sizes={import_report(out)['codebook_sizes']}"


def convert_once(out: Path, part: str, options: Sequence[object]) -> None:
    """`out`/data/PART.jsonl to `out`/mds/PART."""
    options = ["--codebook-sizes", *import_report(out)["codebook_sizes"], *options]
    if not (out / f"mds/{part}/index.json").exists():
        kind = "preference" if "preference" in part else "recommend"
        source = [out / f"data/{part}.jsonl", "--kind", kind]
        run([sys.executable, ROOT / "convert/jsonl_to_mds.py", *source, *options, "--out", out / f"mds/{part}"])


def cpu_precision() -> str:
    """Half precision where a CPU multiplies faster in it."""
    return "amp_bf16" if cpu_multiplies_bf16() else "fp32"


def train_stage(stage: int, folder: Path, overrides: Sequence[str]) -> None:
    """The shipped YAML of a stage, then model.yaml and the stage's of a benchmark's folder."""
    yamls = [ROOT / f"yamls/stage{stage}.yaml", folder / "model.yaml", folder / f"stage{stage}.yaml"]
    run([BIN / "composer", "-n", "1", ROOT / "train.py", *yamls, *overrides])


def write_results(text: str, folder: Path) -> None:
    path = folder / "RESULTS.md"
    path.write_text(text, "utf-8")
    print(f"written: {path}")


def seeds_in_words(seeds: Sequence[int]) -> str:
    return f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]} alone"


def table(names: Sequence[str], rows: Mapping[str, Sequence[Scores]]) -> list[str]:
    """Markdown: of each row the means ± standard deviations over its runs."""
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for title, runs in rows.items():
        values = [[run[name] for run in runs if name in run] for name in names]
        lines.append(f"| {title} | " + " | ".join(map(_cell, values)) + " |")
    return lines


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")
