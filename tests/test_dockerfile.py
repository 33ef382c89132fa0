"""The Dockerfile without Docker: what it copies exists, and its steps run in bash with simulated programs."""

import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch

import pytest
import yaml

from tests.shop import ROOT

TEXT = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Programs that would change the machine; each prints its name and arguments.
SIMULATED = "".join(
    f'{name}() {{ printf "%s" {name}; printf "\\t%s" "$@"; printf "\\n"; }}\n'
    for name in ("apt-get", "chown", "pip", "rm", "useradd")
)


def instructions():
    """(instruction, arguments), a continued line joined as Docker joins it."""
    text = re.sub(r"^#.*\n", "", TEXT, flags=re.M)
    return [tuple(line.split(None, 1)) for line in text.replace("\\\n", "").splitlines() if line.strip()]


def arguments_of(instruction):
    return [arguments for name, arguments in instructions() if name == instruction]


def defaults():
    return dict(one.split("=") for one in arguments_of("ARG") if "=" in one)


def run(step, tmp_path, **arguments):
    """The commands of simulated programs that a RUN step runs, and the requirements that pip gets."""
    requirements = tmp_path / "requirements.txt"
    script = re.sub(r"--mount=\S+", "", step).replace("/tmp/requirements.txt", str(requirements))
    environment = {**defaults(), **arguments, "PATH": "/usr/bin:/bin"}
    script = f'python() {{ {shlex.quote(sys.executable)} "$@"; }}\n{SIMULATED}{script}'
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, env=environment, capture_output=True)
    commands = [line.split("\t") for line in done.stdout.decode().splitlines()]
    return done, commands, requirements.read_text().splitlines() if requirements.exists() else []


def system_step():
    return arguments_of("RUN")[0]


def dependencies_step():
    return arguments_of("RUN")[1]


@pytest.mark.parametrize(("device", "has_infiniband"), [("cuda", True), ("cpu", False)])
def test_packages_of_the_system_include_a_compiler_for_triton(tmp_path, device, has_infiniband):
    done, commands, _ = run(system_step(), tmp_path, DEVICE=device)
    assert done.returncode == 0, done.stderr
    installed = next(command for command in commands if command[:2] == ["apt-get", "install"])
    assert {"tini", "gcc", "g++", "libc6-dev"} <= set(installed)
    assert ("ibverbs-providers" in installed) == has_infiniband


def test_an_unknown_device_ends_the_build(tmp_path):
    done, _, _ = run(system_step(), tmp_path, DEVICE="gpu")
    assert done.returncode != 0
    assert b"DEVICE is gpu; expected cuda or cpu" in done.stderr


@pytest.mark.parametrize("extras", ["", "wandb", "wandb,mlflow,sweep"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_dependencies_are_the_projects_and_constrained_for_the_same_python(tmp_path, device, extras):
    python = defaults()["PYTHON"]
    done, commands, requirements = run(dependencies_step(), tmp_path, DEVICE=device, EXTRAS=extras)
    assert done.returncode == 0, done.stderr
    (install,) = (command for command in commands if command[0] == "pip")
    constraints = ROOT / install[install.index("-c") + 1]
    assert constraints == ROOT / f"constraints/py{python}.txt"
    pinned = dict(line.split("==") for line in constraints.read_text().splitlines() if "==" in line)
    wanted = [*PROJECT["dependencies"]]
    for name in filter(None, extras.split(",")):
        wanted += PROJECT["optional-dependencies"][name]
    if device == "cpu":
        wanted += [f"{name}=={pinned[name]}+cpu" for name in ("torch", "torchvision")]
    assert requirements == wanted
    assert ("--extra-index-url" in install) == (device == "cpu")


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_there_are_constraints_for_each_python(python):
    (image,) = arguments_of("FROM")
    assert image == "python:${PYTHON}-slim-bookworm"
    assert (ROOT / f"constraints/py{python}.txt").exists()
    assert defaults()["PYTHON"] in ("3.11", "3.12")


def test_default_extras_exist():
    assert set(defaults()["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])


def test_what_is_copied_or_compiled_exists_and_is_not_ignored():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in sent)
    copied = [words[-2] for words in map(shlex.split, arguments_of("COPY"))]
    assert copied[-1] == "."
    compiled = re.search(r"compileall -q (.*?);", arguments_of("RUN")[2])[1].split()
    assert {*copied[:-1], *compiled, PROJECT["readme"], "pyproject.toml", "yamls"} <= sent
    scripts = {path.name for path in ROOT.glob("*.py")}
    assert scripts <= sent
    ignored_by_git = (ROOT / ".gitignore").read_text().split()
    assert not any(fnmatch(name, pattern.strip("/")) for name in sent for pattern in ignored_by_git)


def test_it_runs_the_programs_as_another_user_with_compiled_modules():
    assert all(user != "0" for user in arguments_of("USER")[0].split(":"))
    assert yaml.safe_load(arguments_of("ENTRYPOINT")[0])[0] == "/usr/bin/tini"
    program, *words = yaml.safe_load(arguments_of("CMD")[0])
    assert program in PROJECT["scripts"]
    assert words == ["--help"]
    assert "PYTHONDONTWRITEBYTECODE" not in TEXT
    assert "--no-compile" not in TEXT
    user = arguments_of("USER")[0].split(":")[0]
    assert f"--uid {user}" in system_step()
    pods = [one for one in yaml.safe_load_all((ROOT / "examples/kubernetes.yaml").read_text()) if one["kind"] == "Job"]
    assert str(pods[0]["spec"]["template"]["spec"]["securityContext"]["runAsUser"]) == user
