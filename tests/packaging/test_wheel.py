"""The wheel has all that the commands need: they run from it in an empty folder, without the repository."""

import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.shop import ROOT

PACKAGE = "ugt_composer"
SOURCES = ("pyproject.toml", "README.md", PACKAGE, "yamls")
# Composer's launcher is a script of another environment here: it would start that environment's Python.
LAUNCHER = "#!{python}\nimport sys\nfrom composer.cli.launcher import main\nsys.exit(main())\n"
SMALL = """
model: {d_model: 32, n_heads: 2, n_encoder_layers: 1, n_decoder_layers: 1, d_ff: 32, max_seq_len: 64,
        num_experts: 4, top_k_experts: 2}
global_train_batch_size: 32
device_train_microbatch_size: 16
max_duration: 3ba
eval_interval: 3ba
save_best_if: null
data: {train: {num_workers: 0}}
loggers: {progress_bar: false}
"""


def copy_sources(folder: Path) -> Path:
    """What a wheel is built from: building leaves files, and takes those that an earlier one left."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def files_below(folder: Path) -> set[str]:
    found = (Path(place) / name for place, _, names in os.walk(folder, followlinks=True) for name in names)
    return {str(path.relative_to(folder)) for path in found if "__pycache__" not in path.parts}


def test_the_package_is_built_with_all_of_its_files(tmp_path):
    pytest.importorskip("setuptools")
    sources = copy_sources(tmp_path / "sources")
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q"]
    built = subprocess.run(
        [*command, "build_py", "--build-lib", str(tmp_path / "built")], cwd=sources, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    files = files_below(tmp_path / "built" / PACKAGE)
    assert files == files_below(ROOT / PACKAGE)
    assert {f"yamls/{path.name}" for path in (ROOT / "yamls").glob("*.yaml")} < files
    assert (tmp_path / "built" / PACKAGE / "yamls/stage1.yaml").read_bytes() == (
        ROOT / "yamls/stage1.yaml"
    ).read_bytes()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "-w", str(folder)]
    built = subprocess.run([*pip, str(copy_sources(folder / "sources"))], capture_output=True, text=True)
    if "Could not find a version that satisfies the requirement setuptools" in built.stderr:
        pytest.skip("pip cannot install the build's requirements: no package index")
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """run(command, *words, status=0, stdin="") → what the command printed, in a folder that is empty at first.

    The environment has the wheel and sees the dependencies of this one, but not its editable installation: a .pth file
    adds their folder, whose own .pth files are not read.
    """
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    packages = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", "--no-compile", str(wheel)], check=True)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    launcher = folder / "venv/bin/composer"
    launcher.write_text(LAUNCHER.format(python=python))
    launcher.chmod(0o755)
    (folder / "empty").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PATH": f"{python.parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}

    def run(*words: object, status: int = 0, stdin: str = "") -> str:
        result = subprocess.run(
            [str(word) for word in words],
            cwd=folder / "empty",
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert result.returncode == status, (words, result.stdout, result.stderr)
        return result.stdout if status == 0 else result.stderr

    where = run("python", "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)")
    assert Path(where.strip()).is_relative_to(packages)
    return run


@pytest.fixture(scope="module")
def folder(run) -> Path:
    return Path(run("pwd").strip())


def ratings() -> str:
    """A table of users who walk through 40 items."""
    rng, lines = random.Random(1), ["user,item,timestamp,rating"]
    for user in range(60):
        item = rng.randrange(40)
        for step in range(10):
            item = (item + rng.choice((1, 1, 2))) % 40
            lines.append(f"u{user},item{item},{1_700_000_000 + 1000 * user + 60 * step},{rng.choice((5, 4, 1))}")
    return "\n".join(lines) + "\n"


@pytest.mark.slow
def test_the_wheel_has_the_files_of_the_package_and_no_others(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name.removeprefix(f"{PACKAGE}/") for name in names if name.startswith(f"{PACKAGE}/")}
    assert inside == files_below(ROOT / PACKAGE)
    others = {name.split("/")[0] for name in names} - {PACKAGE}
    assert len(others) == 1
    assert others.pop().endswith(".dist-info")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_new_user_gets_from_a_table_to_recommendations(run, folder):
    assert "`ugt init .` writes yamls/stage1.yaml" in run("ugt", "train", "yamls/stage1.yaml", status=2)
    (folder / "ratings.csv").write_text(ratings())
    printed = run("ugt", "import", "ratings.csv", "--out", "data")
    commands = [shlex.split(line) for line in re.findall(r"^  (ugt .*)$", printed, re.MULTILINE)]
    assert ["ugt", "init", "."] in commands
    *preparing, dry_run = commands
    for command in preparing:
        run(*command)
    assert (folder / "yamls/stage1.yaml").read_bytes() == (ROOT / "yamls/stage1.yaml").read_bytes()
    assert "# parameters" in run(*dry_run)

    (folder / "small.yaml").write_text(SMALL)
    words = ["yamls/stage1.yaml", "small.yaml", *(word for word in dry_run[3:] if word != "--dry-run")]
    run("ugt", "train", *words)
    run("composer", "-n", 2, "-m", "ugt_composer.train", *words, "save_folder=checkpoints/two-ranks")
    run("composer", "-n", 2, "-c", "ugt", "train", *words, "--dry-run")

    model = ("--checkpoint", "checkpoints/stage1/best")
    assert "recall" in run("ugt", "evaluate", *model, "--data", "mds/test")
    listed = run("ugt", "recommend", *model, "--history", "-", "-k", 3, "--json", stdin='{"items": ["item1", "item2"]}')
    assert listed.count('"item_id"') == 3
    run("ugt", "export", *model, "--out", "exported")
    assert (folder / "exported/usage.py").exists()


@pytest.mark.slow
def test_files_that_were_changed_are_kept(run, folder):
    run("ugt", "init", "project")
    changed = folder / "project/yamls/stage2.yaml"
    shipped = changed.read_text()
    changed.write_text(shipped + "# mine\n")
    assert "project/yamls/stage2.yaml: differ" in run("ugt", "init", "project", status=2)
    assert changed.read_text().endswith("# mine\n")
    assert "1 replaced" in run("ugt", "init", "project", "--overwrite")
    assert changed.read_text() == shipped


@pytest.mark.slow
def test_a_shell_completes_commands_options_and_files(run, folder):
    (folder / "ugt.bash").write_text(run("ugt", "completion", "bash"))
    assert run("ugt", "completion", "zsh").startswith("#compdef ugt")
    (folder / "interactions.csv").touch()
    script = """
        source ugt.bash
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
        _shtab_ugt ugt "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        echo "${COMPREPLY[@]}"
    """
    for words, expected in (
        (("ugt", "comp"), "completion"),
        (("ugt", "evaluate", "--checkp"), "--checkpoint"),
        (("ugt", "convert", "rows.jsonl", "--kind", "pref"), "preference"),
        (("ugt", "import", "interac"), "interactions.csv"),
    ):
        assert run("bash", "-c", script, "bash", *words).split() == [expected]


@pytest.mark.slow
def test_the_demo_has_its_data(run, folder):
    assert "ugt demo --law signals" in run("ugt", "demo", "--help")  # the demo itself takes minutes: make demo
    assert "10 eval.jsonl" in run("ugt", "demo-data", "--users", 40, "--eval-users", 10, "--out", "demo-data")
