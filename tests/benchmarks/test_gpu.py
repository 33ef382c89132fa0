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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_part_reports_rows_and_other_sections_stay(tmp_path):
    out = tmp_path / "results.md"
    out.write_text("# Results\n\n## stages\n\nmeasured earlier\n\n## waits\n\nmeasured earlier, too\n", "utf-8")
    ended = run("--small", "--only", "waits", "--out", out, before=on_driver())
    assert ended.returncode == 0, ended.stderr
    stages, waits = out.read_text("utf-8").split("\n## ")[1:]
    assert stages.split() == ["stages", "measured", "earlier"]
    rows = dict(line.strip("| ").split(" | ")[:2] for line in waits.splitlines() if line.startswith("| "))
    assert rows["control"] == "1"
    assert "measured earlier" not in waits
    assert "failed" not in waits


@pytest.mark.slow
def test_a_run_at_its_time_limit_names_what_it_did_not_measure(tmp_path):
    out = tmp_path / "results.md"
    ended = run("--small", "--only", "kernels", "recommend", "--limit", 1, "--out", out, before=on_driver())
    assert ended.returncode == 1
    lines = out.read_text("utf-8").splitlines()
    assert any(line.startswith("| kernels | failed: ended at its limit of 1 s") for line in lines)
    assert any(line.startswith("| recommend | failed: left out, the time limit") for line in lines)
