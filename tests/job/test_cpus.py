"""The CPUs that a process may use, and the environment that lets its threads share them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shop import ROOT
from ugt_composer.job import cpus
from ugt_composer.job.cpus import available_cpus, share_cpus, threads_per_rank


def groups(folder: Path, membership: str, **files: str) -> tuple[Path, Path]:
    """Faked /sys/fs/cgroup and /proc/self/cgroup; the names of files have __ for /."""
    for name, text in files.items():
        path = folder / "cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (folder / "cgroup").mkdir(exist_ok=True)
    (folder / "membership").write_text(membership)
    return folder / "cgroup", folder / "membership"


@pytest.fixture
def eight_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


V2, V1 = "0::/job\n", "9:name=systemd:/job\n4:cpu,cpuacct:/job\n3:memory:/job\n"


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("membership", "files", "wanted"),
    [
        (V2, {"job__cpu.max": "max 100000"}, 8),
        (V2, {"job__cpu.max": "300000 100000"}, 3),
        (V2, {"job__cpu.max": "150000 100000"}, 2),  # a fraction of a CPU counts as one
        (V2, {"job__cpu.max": "20000 100000"}, 1),
        (V2, {"job__cpu.max": "9900000 100000"}, 8),
        (V2, {"job__cpu.max": "max 100000", "cpu.max": "200000 100000"}, 2),  # of the group above it
        ("0::/\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/of/the/host\n", {"cpu.max": "400000 100000"}, 4),  # in a container the path may be the host's
        (V1, {"cpu,cpuacct__job__cpu.cfs_quota_us": "250000", "cpu,cpuacct__job__cpu.cfs_period_us": "100000"}, 3),
        (V1, {"cpu__job__cpu.cfs_quota_us": "-1", "cpu__job__cpu.cfs_period_us": "100000"}, 8),
        ("4:cpu:/docker/1f\n", {"cpu__cpu.cfs_quota_us": "200000", "cpu__cpu.cfs_period_us": "100000"}, 2),
        (V2, {"job__cpu.max": "damaged"}, 8),
        ("", {}, 8),
    ],
)
def test_quotas_of_control_groups_count(tmp_path, membership, files, wanted):
    assert available_cpus(*groups(tmp_path, membership, **files)) == wanted


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_the_affinity_counts(tmp_path):
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cpus(tmp_path / "none", tmp_path / "none") == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("eight_cpus")
def test_ranks_divide_the_cpus(monkeypatch, tmp_path):
    monkeypatch.setattr(cpus, "available_cpus", lambda: 8)
    assert [threads_per_rank(ranks) for ranks in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    environment = {"LOCAL_WORLD_SIZE": "2"}
    share_cpus(environment)
    assert environment["OMP_NUM_THREADS"] == "4"
    assert 0 < int(environment["GOMP_SPINCOUNT"]) < 300_000


def test_the_users_settings_win():
    for name, value in (("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7"), ("KMP_BLOCKTIME", "infinite")):
        environment = {name: value, "OMP_NUM_THREADS": "3"}
        share_cpus(environment)
        assert environment == {name: value, "OMP_NUM_THREADS": "3"}


PROGRAMS = """
import json, os, runpy, sys
from unittest.mock import patch

def taken():
    os.environ.pop("KMP_BLOCKTIME", None)
    return os.environ.pop("GOMP_SPINCOUNT", None)

settings = {}
import ugt_composer, ugt_composer.cli.main, ugt_composer.job.cpus
settings["import"] = taken()
for path in sys.argv[1:]:
    sys.argv = [path, "--version"]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        assert not end.code, (path, end.code)
    settings[path] = taken()
with patch("sys.argv", ["ugt", "--version"]), patch("os._exit", sys.exit):
    try:
        ugt_composer.cli.main.run()
    except SystemExit:
        settings["ugt"] = taken()
from ugt_composer.job.start import begin_rank
begin_rank()
settings["train.py"] = taken()
assert "torch" not in sys.modules  # it reads the settings when it is imported
print(json.dumps(settings))
"""


def test_every_program_shares_the_cpus_and_no_import_does():
    scripts = sorted(str(path) for path in (ROOT / "convert").glob("[!_]*.py"))
    environment = {name: value for name, value in os.environ.items() if name not in cpus.WAIT_VARIABLES}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAMS, *scripts],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    lines = result.stdout.splitlines()
    assert lines[:-1] == ["ugt_composer 0.1.0"] * (len(scripts) + 1)
    settings = json.loads(lines[-1])
    assert settings.pop("import") is None
    assert set(settings) == {*scripts, "ugt", "train.py"}
    assert set(settings.values()) == {str(cpus.SPIN_TURNS)}


STARTED = (*sorted((ROOT / "convert").glob("*.py")), ROOT / "train.py")
PROBE = """
import runpy, sys
from ugt_composer.job import cpus
cpus.share_cpus = lambda: sys.exit(any(name in sys.modules for name in ("numpy", "polars", "sklearn", "torch")))
sys.argv = [sys.argv[1], "some.yaml"]
runpy.run_path(sys.argv[0], run_name="__main__")
sys.exit("it was not called")
"""


@pytest.mark.parametrize("program", STARTED, ids=lambda path: path.name)
def test_a_program_shares_the_cpus_before_it_imports_what_starts_threads(program):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", PROBE, program], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
