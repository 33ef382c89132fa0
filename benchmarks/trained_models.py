"""What the benchmarks that train models share: this project's programs, on one core each, and tables of scores."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
Scores = Mapping[str, float]


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
                "--overwrite",
                "--out",
                out / "data",
            ]
        )


def convert_once(out: Path, part: str, options: Sequence[object]) -> None:
    """`out`/data/PART.jsonl to `out`/mds/PART."""
    if not (out / f"mds/{part}/index.json").exists():
        kind = "preference" if "preference" in part else "recommend"
        source = [out / f"data/{part}.jsonl", "--kind", kind]
        run([sys.executable, ROOT / "convert/jsonl_to_mds.py", *source, *options, "--out", out / f"mds/{part}"])


def train_stage(stage: int, folder: Path, overrides: Sequence[str]) -> None:
    """The shipped YAML of a stage, then model.yaml and the stage's of a benchmark's folder."""
    yamls = [ROOT / f"yamls/stage{stage}.yaml", folder / "model.yaml", folder / f"stage{stage}.yaml"]
    run([BIN / "composer", "-n", "1", ROOT / "train.py", *yamls, *overrides])


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
