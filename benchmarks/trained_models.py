"""Shared by the benchmarks that train models: runs this project's programs on one core each, makes tables of scores."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ugt_composer.torch_patches import cpu_multiplies_bf16
from ugt_composer.vocabulary import DEFAULT_CODEBOOK_SIZES

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
Scores = Mapping[str, float]
# Upper bounds: the import uses as many codes as it needs, with a distinct L3 for each item.
LARGEST_CODEBOOKS = (*DEFAULT_CODEBOOK_SIZES[:2], 65_536)


def has_data(folder: Path, name: str) -> bool:
    """Whether --data, `folder`, has the file `name`. If not, an error is printed; the program should end with 2."""
    if (folder / name).exists():
        return True
    print(f"error: {folder} has no {name}; set --data to the folder that contains it", file=sys.stderr)
    return False


def run(command: Sequence[object]) -> None:
    """Runs a program on one core, with its output on the terminal. Raises CalledProcessError if it fails."""
    subprocess.run(
        [str(argument) for argument in command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT
    )


def import_once(out: Path, arguments: Sequence[object]) -> None:
    """Imports interactions into `out`/data, unless it is done."""
    if not (out / "data/report.json").exists():
        run(
            [
                sys.executable,
                ROOT / "convert/interactions_to_jsonl.py",
                *arguments,
                "--codebook-sizes",
                *LARGEST_CODEBOOKS,
                "--overwrite",
                "--out",
                out / "data",
            ]
        )


def import_report(out: Path) -> dict[str, Any]:
    return json.loads((out / "data/report.json").read_text())


def codebook_override(out: Path) -> str:
    """The override that sets the model's codebook sizes to those of the imported catalogue."""
    return f"model.codebook_sizes={import_report(out)['codebook_sizes']}"


def convert_once(out: Path, part: str, options: Sequence[object]) -> None:
    """Converts `out`/data/PART.jsonl to `out`/mds/PART, unless it is done."""
    options = ["--codebook-sizes", *import_report(out)["codebook_sizes"], *options]
    if not (out / f"mds/{part}/index.json").exists():
        kind = "preference" if "preference" in part else "recommend"
        source = [out / f"data/{part}.jsonl", "--kind", kind]
        run([sys.executable, ROOT / "convert/jsonl_to_mds.py", *source, *options, "--out", out / f"mds/{part}"])


def fast_precision() -> str:
    """Half precision if the GPU, or the CPU where there is no GPU, has instructions for it: products are faster."""
    if torch.cuda.is_available():
        return "auto"
    return "amp_bf16" if cpu_multiplies_bf16() else "fp32"


def train_stage(stage: int, folder: Path, overrides: Sequence[str]) -> None:
    """Trains with the shipped YAML of a stage, then model.yaml and stage<N>.yaml of a benchmark's folder."""
    yamls = [ROOT / f"yamls/stage{stage}.yaml", folder / "model.yaml", folder / f"stage{stage}.yaml"]
    run([BIN / "composer", "-n", "1", ROOT / "train.py", *yamls, *overrides])


def write_results(text: str, folder: Path, name: str = "RESULTS.md") -> None:
    path = folder / name
    path.write_text(text, "utf-8")
    print(f"written: {path}")


def seeds_in_words(seeds: Sequence[int]) -> str:
    return f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"only seed {seeds[0]}"


def table(names: Sequence[str], rows: Mapping[str, Sequence[Scores]]) -> list[str]:
    """A Markdown table with the means ± standard deviations over the runs of each row."""
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for title, runs in rows.items():
        values = [[run[name] for run in runs if name in run] for name in names]
        lines.append(f"| {title} | " + " | ".join(map(_cell, values)) + " |")
    return lines


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")
