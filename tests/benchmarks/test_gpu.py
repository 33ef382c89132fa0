import re
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.rehearsal.driver import ROOT, environment, on_driver


def run(*arguments: object, before: Sequence[str] = (), **changes: str) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, ROOT / "benchmarks/gpu.py", *arguments]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment(**changes))


def test_without_a_gpu_it_says_so_in_one_sentence_and_writes_nothing(tmp_path):
    ended = run("--out", tmp_path / "results.md", CUDA_VISIBLE_DEVICES="")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "no CUDA GPU" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_the_sections_of_a_default_run_take_at_most_six_minutes():
    ended = run("--help")
    limit = re.search(r"at most\s+(\d+)\s+s:", ended.stdout)
    assert limit is not None, ended.stdout
    assert int(limit[1]) <= 360


def test_goals_come_from_the_tables_of_the_file(tmp_path):
    results = tmp_path / "results.md"
    results.write_text(
        """## attention

NVIDIA H200; numpy 2.5.2; 2026-11-27.

### by length

| what | ms | TFLOP/s | of the ceiling |
|---|---|---|---|
| kernel, 32 dimensions, length 512 | 0.500 | 162 | 20.6% |
| pieces, 32 dimensions, length 512 | 2.000 | 38 | 4.9% |
| kernel, 32 dimensions, length 4,096 | 3.392 | 243 | 30.9% |

## data

| what | of the time waiting for data |
|---|---|
| stage 2, history 512 | 0.4% |
| stage 2, history 1 to 511 | failed: OSError: 512 bytes |
""",
        "utf-8",
    )
    command = [sys.executable, "-m", "benchmarks.on_gpu.goals", str(results)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    reached = {(what, case): [measured, holds, *date] for what, case, measured, _, holds, *date in lines}
    assert reached["attention, over the path without kernels", "length 512, 32 dimensions"] == [
        "4.0 ×",
        "yes",
        "2026-11-27",
    ]
    assert reached["attention, of the bf16 ceiling", "length 4,096, 32 dimensions"] == ["30.9 %", "no", "2026-11-27"]
    assert reached["time waiting for data", "stage 2, history 512"][:2] == ["0.4 %", "yes"]
    assert reached["time waiting for data", "stage 2, history 1 to 511"][:2] == ["", "not measured"]
    assert reached["step, of the bf16 ceiling", "stage 1, history 512"][:2] == ["", "not measured"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_part_reports_rows_and_other_sections_stay(tmp_path):
    out = tmp_path / "results.md"
    out.write_text("# Results\n\n## stages\n\nmeasured earlier\n\n## waits\n\nmeasured earlier, too\n", "utf-8")
    ended = run("--small", "--only", "waits", "--out", out, before=on_driver())
    assert ended.returncode == 0, ended.stderr
    stages, waits, goals = out.read_text("utf-8").split("\n## ")[1:]
    assert stages.split() == ["stages", "measured", "earlier"]
    rows = dict(line.strip("| ").split(" | ")[:2] for line in waits.splitlines() if line.startswith("| "))
    assert rows["control"] == "1"
    assert "measured earlier" not in waits
    assert "failed" not in waits
    assert goals.count("not measured") == len(goals.split("|---")[-1].strip().splitlines()) - 1


@pytest.mark.slow
def test_a_run_at_its_time_limit_names_what_it_did_not_measure(tmp_path):
    out = tmp_path / "results.md"
    ended = run("--small", "--only", "kernels", "waits", "--limit", 1, "--out", out, before=on_driver())
    assert ended.returncode == 1
    lines = out.read_text("utf-8").splitlines()
    assert any(line.startswith("| kernels | failed: ended at its limit of 1 s") for line in lines)
    assert any(line.startswith("| waits | failed: left out, the time limit") for line in lines)
