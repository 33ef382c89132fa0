"""What a run's save folder says: its config, metrics, events, checkpoints and best model.

Nothing has to be there but one of them: a run may be training, preempted or years old. What is missing or corrupted
becomes a note. Imports no torch.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ugt_composer.checkpoint.run_events import END, FAILED, PREEMPTED, RESUME, START
from ugt_composer.checkpoint.save_folder import (
    CONFIG,
    EVENTS,
    METRICS,
    PORTABLE,
    WEIGHTS,
    batch_of,
    list_checkpoints,
)
from ugt_composer.config.load import load_config, version_in
from ugt_composer.config.schema import Config
from ugt_composer.errors import UserError, where_searched

TRAIN, LOSS, EVAL = "metrics/train/", "loss/train/", "metrics/eval/"


@dataclass(frozen=True)
class Series:
    """One logged value: `values[i]` at `batches[i]`, batches ascending, all values finite."""

    batches: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Event:
    """A line of events.jsonl, see `checkpoint/run_events.py`."""

    time: datetime
    name: str
    batch: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class SavedFile:
    """A checkpoint or model that is in the folder now; `time` is that of the file."""

    name: str
    batch: int
    time: datetime


@dataclass(frozen=True)
class Best:
    """The model in `best/`. Without `save_best_on` there is no metric and no value."""

    batch: int
    metric: str | None
    value: float | None


@dataclass(frozen=True)
class Run:
    """
    Attributes:
        name: distinguishes it from the report's other runs.
        folder: the save folder.
        config: None if config.yaml is missing or cannot be read by this version.
        version: of the package that wrote config.yaml.
        series: by the names of metrics.jsonl.
        epoch: of the last line; None without lines.
        written: when metrics.jsonl was last written.
        events: in the order of their times; empty for runs of versions that wrote none.
        saved: checkpoints that are still in the folder, oldest first.
        notes: sentences about what is missing or corrupted.
    """

    name: str
    folder: Path
    config: Config | None
    version: str | None
    series: dict[str, Series]
    epoch: int | None
    written: datetime | None
    events: list[Event]
    saved: list[SavedFile]
    best: Best | None
    notes: list[str]

    @property
    def last_batch(self) -> int:
        """The last batch that anything was recorded of."""
        batches = [series.batches[-1] for series in self.series.values() if series.batches]
        return max([0, *batches, *(event.batch for event in self.events)])

    @property
    def rows(self) -> tuple[int, bool] | None:
        """Rows trained on, and whether that is exact; None if it is not known."""
        recorded = [event.facts["rows"] for event in self.events if isinstance(event.facts.get("rows"), int)]
        if recorded and self.events[-1].batch >= self.last_batch:
            return recorded[-1], True
        return None if self.config is None else (self.last_batch * self.config.global_train_batch_size, False)

    @property
    def state(self) -> str:
        """How the last start of the run ended, in words."""
        last = next((event for event in reversed(self.events) if event.name in (START, RESUME, *ENDINGS)), None)
        if last is None:
            return "not recorded"
        return ENDINGS.get(last.name, "training, or killed")


ENDINGS = {END: "finished", PREEMPTED: "preempted", FAILED: "failed"}


@dataclass(frozen=True)
class Session:
    """One start of a run: from a process's first batch to its last sign.

    Attributes:
        how: "finished", "preempted", "failed", or "killed" if another start followed without a word, else "no end
            recorded".
        lost: batches that the next start trains again, because they came after the checkpoint that it resumed from.
    """

    begin: Event
    end: Event
    how: str
    lost: int


def sessions(run: Run) -> list[Session]:
    """The starts of a run, from its events."""
    starts = [number for number, event in enumerate(run.events) if event.name in (START, RESUME)]
    found = []
    for number, following in zip(starts, [*starts, len(run.events)][1:], strict=True):
        own, after = run.events[number:following], run.events[following : following + 1]
        how = ENDINGS.get(own[-1].name, "killed" if after else "no end recorded")
        lost = max(0, max(event.batch for event in own) - after[0].batch) if after else 0
        found.append(Session(own[0], own[-1], how, lost))
    return found


def read_runs(folders: Sequence[str]) -> list[Run]:
    """
    Raises:
        UserError: a folder is not there, is not a run's, or is given twice.
    """
    paths = [Path(folder) for folder in folders]
    for number, path in enumerate(paths):
        _check_run(path)
        if path.resolve() in [other.resolve() for other in paths[:number]]:
            raise UserError(f"{path} is given twice; expected each run once")
    return [_read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _check_run(path: Path) -> None:
    expected = "expected a run's save_folder, such as checkpoints/stage1"
    if not path.is_dir():
        found = "is a file" if path.exists() else f"no such folder{where_searched(path)}"
        raise UserError(f"{path}: {found}; {expected}")
    if path.name in PORTABLE and (path / WEIGHTS).exists():
        raise UserError(f"{path} is a model of a run; expected the run itself: {path.parent}")
    names = (METRICS, EVENTS, CONFIG, *PORTABLE)
    if not any((path / name).exists() for name in names) and not list_checkpoints(path):
        inside = sorted(child.name for child in path.iterdir() if (child / METRICS).exists())
        hint = f"; did you mean {path / inside[0]}?" if inside else f"; {expected}"
        raise UserError(f"{path} has no {METRICS}, no {CONFIG} and no checkpoint{hint}")


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as distinguish them all."""
    resolved = [path.resolve() for path in paths]
    for parts in range(1, max(len(path.parts) for path in resolved)):
        names = ["/".join(path.parts[-parts:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]


def _read_run(folder: Path, name: str) -> Run:
    notes: list[str] = []
    config, version = _read_config(folder / CONFIG, notes)
    series, epoch = _read_metrics(folder / METRICS, notes)
    events = _read_events(folder / EVENTS, notes)
    metrics = folder / METRICS
    return Run(
        name,
        folder,
        config,
        version,
        series,
        epoch,
        _time_of(metrics) if metrics.exists() else None,
        events,
        [SavedFile(path.name, batch_of(path), _time_of(path)) for path in reversed(list_checkpoints(folder))],
        _read_best(folder / PORTABLE[0] / WEIGHTS, notes),
        notes,
    )


def _read_config(path: Path, notes: list[str]) -> tuple[Config | None, str | None]:
    if not path.exists():
        notes.append(f"{CONFIG} is missing, so settings, data and model are not known")
        return None, None
    try:
        return load_config(path), version_in(path)
    except (UserError, OSError) as error:
        notes.append(f"{CONFIG} cannot be used by this version: {error}")
        return None, None


def _read_metrics(path: Path, notes: list[str]) -> tuple[dict[str, Series], int | None]:
    """The values by name. Of a batch that is logged twice, the last line counts."""
    if not path.exists():
        notes.append(f"{METRICS} is missing: nothing was logged yet")
        return {}, None
    by_batch: dict[int, dict[str, Any]] = {}
    epoch = None
    for line in _json_lines(path, notes):
        if not isinstance(line.get("batch"), int):
            continue
        by_batch[line["batch"]] = line
        epoch = line["epoch"] if isinstance(line.get("epoch"), int) else epoch
    series: dict[str, Series] = {}
    for batch in sorted(by_batch):
        for name, value in by_batch[batch].items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if "/" in name and is_number and math.isfinite(value):
                one = series.setdefault(name, Series())
                one.batches.append(batch)
                one.values.append(float(value))
    if not by_batch:
        notes.append(f"{METRICS} has no complete line yet")
    return series, epoch


def _read_events(path: Path, notes: list[str]) -> list[Event]:
    events = []
    for line in _json_lines(path, notes) if path.exists() else ():
        facts = dict(line)
        try:
            time = datetime.fromisoformat(facts.pop("time"))
            name, batch = str(facts.pop("event")), int(facts.pop("batch"))
        except (KeyError, TypeError, ValueError):
            continue
        events.append(Event(time if time.tzinfo else time.replace(tzinfo=UTC), name, batch, facts))
    return sorted(events, key=lambda event: event.time)


def _json_lines(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file; other lines are counted in a note. The last one may still be being written."""
    lines = path.read_bytes().split(b"\n")
    if not lines[-1] or not lines[-1].rstrip().endswith(b"}"):
        lines.pop()
    bad = []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError:  # also bytes that are not UTF-8
            line = None
        if isinstance(line, dict):
            yield line
        else:
            bad.append(number)
    if bad:
        more = f" and {len(bad) - 3} others" if len(bad) > 3 else ""
        shown = ", ".join(map(str, bad[:3]))
        notes.append(f"{path.name}: {'lines' if len(bad) > 1 else 'line'} {shown}{more} cannot be read and left out")


def _read_best(path: Path, notes: list[str]) -> Best | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:  # reads the header only
            facts = file.metadata() or {}
        metric = next((name.removeprefix("best ") for name in facts if name.startswith("best ")), None)
        return Best(int(facts["batch"]), metric, None if metric is None else float(facts[f"best {metric}"]))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        notes.append(f"{path.parent.name}/{path.name} cannot be read ({error or type(error).__name__})")
        return None


def _time_of(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)
