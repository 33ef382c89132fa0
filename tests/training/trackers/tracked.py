"""What trackers hold of a run, read back by their own programs, compared with metrics.jsonl."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.shop import metrics_of

WANDB = Path(sys.executable).parent / "wandb"
Values = dict[str, float]


def inspected(folder: Path) -> str:
    """The records of one offline folder as text, by W&B's program."""
    [file] = folder.glob("*.wandb")
    return subprocess.run([WANDB, "leet", "inspect", file], capture_output=True, text=True, check=True).stdout


def items(record: str) -> dict[str, str]:
    return dict(re.findall(r'(?:nested_)?key:\s+"(.*)"\s+value_json:\s+"(.*)"', record))


def wandb_steps(folder: Path) -> list[tuple[int, Values]]:
    """The history of one offline folder, in its order."""
    records = re.split(r"^# record ", inspected(folder), flags=re.MULTILINE)
    rows = [items(record) for record in records if re.match(r"\d+: history", record)]
    return [
        (int(row["_step"]), {name: json.loads(value) for name, value in row.items() if not name.startswith("_")})
        for row in rows
    ]


def offline_folders(save_folder: Path) -> list[Path]:
    return sorted((save_folder / "wandb").glob("offline-run-*"))


def mlflow_run(uri: str, save_folder: Path):
    """The only run of this id in MLflow, which is the only run there."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    [run] = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert run.data.tags["ugt.run_id"] == (save_folder / "run_id").read_text()
    return run


def mlflow_steps(uri: str, run) -> list[tuple[int, Values]]:
    """All points of all metrics, those of a step together; a point that is there twice is an error."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    steps: dict[int, Values] = {}
    for name in run.data.metrics:
        for point in client.get_metric_history(run.info.run_id, name):
            values = steps.setdefault(point.step, {})
            assert name not in values, f"{name} of step {point.step} is there twice"
            values[name] = point.value
    return sorted(steps.items())


def expected(save_folder: Path, rename: bool = False) -> list[tuple[int, Values]]:
    """metrics.jsonl as a tracker should have it, without speeds."""
    return [
        (line["batch"], without_speeds({n.replace("@", "_at_") if rename else n: v for n, v in line.items()}))
        for line in metrics_of(save_folder)
    ]


def without_speeds(values: dict) -> Values:
    """Without what differs when a step is trained again, and what is no value."""
    return {n: v for n, v in values.items() if n != "batch" and v is not None and not n.endswith(("samples/s",))}


def comparable(steps: list[tuple[int, Values]]) -> list[tuple[int, Values]]:
    return [(step, without_speeds(values)) for step, values in steps]
