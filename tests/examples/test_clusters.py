"""The examples for Slurm and Kubernetes: their commands are valid, and they know the exit statuses and the grace."""

import os
import re
import shlex
import subprocess
from itertools import pairwise

import pytest
import yaml

from tests.docs.programs import problem_of
from tests.shop import ROOT
from ugt_composer.config.checks import device_batch_size
from ugt_composer.config.load import load_config
from ugt_composer.config.schema import PreemptionConfig
from ugt_composer.errors import EXIT_BAD_INPUT, EXIT_ERROR, EXIT_PREEMPTED

SLURM, KUBERNETES = ROOT / "examples/slurm.sh", ROOT / "examples/kubernetes.yaml"
GRACE = PreemptionConfig().grace
# Two machines with 4 GPUs; the launcher records its arguments and exits with $STATUS.
STUBS = {
    "scontrol": 'if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "$@" >>"$RECORDS/scontrol"; fi',
    "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; status=$?; done; exit $status',
    "composer": 'printf "%s\\n" "$@" >"$RECORDS/composer-$SLURM_NODEID"; exit "$STATUS"',
}
ALLOCATION = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_JOB_NODELIST": "node[7-8]",
}


def options_of(words):
    """The launcher's options of a command without the program's name."""
    return {one: value for one, value in pairwise(words) if one.startswith("-")}


@pytest.mark.parametrize("status", [0, EXIT_ERROR, EXIT_BAD_INPUT, EXIT_PREEMPTED])
def test_slurm_starts_a_launcher_per_machine_and_requeues_preempted_jobs(tmp_path, status):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in STUBS.items():
        (programs / name).write_text(f"#!/bin/bash\n{script}\n")
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "RECORDS": str(tmp_path), "STATUS": str(status)}
    words = ["yamls/stage2.yaml", "global_train_batch_size=8192", "save_folder=/shared/a stage"]
    done = subprocess.run(["bash", SLURM, *words], env=environment | ALLOCATION, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "")
    calls = tmp_path / "scontrol"
    assert calls.exists() == (status == EXIT_PREEMPTED)
    assert not calls.exists() or calls.read_text() == "requeue 1234567\n"
    for node in ("0", "1"):
        command = (tmp_path / f"composer-{node}").read_text().splitlines()
        assert problem_of(["composer", *command], {}) is None
        assert command[-4:] == ["train.py", *words]
        options = options_of(command)
        assert options.pop("--master_port").isdecimal()
        assert options == {"-n": "4", "--world_size": "8", "--node_rank": node, "--master_addr": "node7"}


def test_slurm_warns_early_enough_to_save():
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", SLURM.read_text(), re.M))
    name, _, seconds = options["signal"].partition("@")
    assert name == "TERM"  # without B: to the launchers, not to the script
    assert int(seconds) >= GRACE + 10  # and for the end of the launchers
    assert options["ntasks-per-node"] == "1"
    assert "#SBATCH --requeue\n" in SLURM.read_text()


@pytest.fixture(scope="module")
def manifests():
    return {one["kind"]: one for one in yaml.safe_load_all(KUBERNETES.read_text())}


def test_kubernetes_starts_a_launcher_per_pod_which_finds_the_first_one(manifests):
    job, service = manifests["Job"], manifests["Service"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (script,) = container["args"]
    gpus, machines = container["resources"]["limits"]["nvidia.com/gpu"], job["spec"]["completions"]
    name, host = job["metadata"]["name"], service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == host
    assert job["spec"]["parallelism"] == machines
    for index in range(machines):
        program, *command = shlex.split(script.replace("$JOB_COMPLETION_INDEX", str(index)))[1:]
        assert problem_of([program, *command], {}) is None
        options = options_of(command)
        assert options["-n"] == str(gpus)
        assert options["--world_size"] == str(gpus * machines)
        assert options["--node_rank"] == str(index)
        assert options["--master_addr"] == f"{name}-0.{host}"
        assert options["--master_port"] == str(service["spec"]["ports"][0]["port"])
        words = command[command.index("train.py") + 1 :]
        config = load_config(ROOT / words[0], overrides=words[1:])
        rows = load_config(ROOT / words[0]).global_train_batch_size
        assert device_batch_size(config, gpus * machines) == rows  # the YAML's are for one GPU
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/data", "/dev/shm"} == mounted
        for path in (config.save_folder, config.init_from, config.data.train.local, config.data.eval.local):
            assert path.startswith("/data/")


def test_kubernetes_restarts_preempted_pods_and_not_bad_configs(manifests):
    job = manifests["Job"]["spec"]
    pod = job["template"]["spec"]
    actions = {
        rule["action"]: rule["onExitCodes"]["values"]
        for rule in job["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule and rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    }
    assert actions == {"Ignore": [EXIT_PREEMPTED], "FailJob": [EXIT_BAD_INPUT]}
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= GRACE + 10
    assert job["backoffLimit"] >= job["completions"]


def test_kubernetes_shares_data_and_memory(manifests):
    pod = manifests["Job"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    claim = manifests["PersistentVolumeClaim"]
    assert mounts["/data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
