"""What is read from a save folder, whatever state it is in."""

import json

import pytest

from tests.report.made_runs import BATCHES, BEST_AT, BEST_VALUE, made_run
from ugt_composer.checkpoint.save_folder import CONFIG, EVENTS, METRICS
from ugt_composer.errors import UserError
from ugt_composer.report.run_figures import thinned
from ugt_composer.report.run_folder import Series, read_runs, sessions
from ugt_composer.report.stages import stages


@pytest.fixture
def folder(stage_config, tmp_path):
    return made_run(stage_config(tmp_path / "run"), tmp_path / "run")


def read(folder):
    (run,) = read_runs([str(folder)])
    return run


def test_a_run_is_read_as_it_was_written(folder):
    run = read(folder)
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    names = {name for line in lines for name in line} - {"batch", "epoch"}
    assert run.series.keys() == names
    for name, series in run.series.items():
        assert list(zip(series.batches, series.values, strict=True)) == [
            (line["batch"], line[name]) for line in lines if name in line
        ]
    assert (run.best.batch, run.best.metric, run.best.value) == (BEST_AT, "ndcg@10", BEST_VALUE)
    assert (run.last_batch, run.rows, run.state, run.notes) == (BATCHES, (32 * BATCHES, True), "finished", [])


def test_starts_of_a_run_end_as_they_did(folder):
    found = [(s.begin.batch, s.end.batch, s.how, s.lost) for s in sessions(read(folder))]
    assert found == [(0, 20, "preempted", 0), (20, 34, "killed", 4), (30, 40, "finished", 0)]


def test_corrupted_lines_are_left_out_and_named(folder):
    path = folder / METRICS
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3], lines[7] = b'{"batch": 4, "epo\n', b"\xff\xfe nonsense\n"
    path.write_bytes(b"".join(lines) + b'{"batch": 41, "loss/train/total": 1')  # still being written
    run = read(folder)
    assert run.notes == [f"{METRICS}: lines 4, 8 cannot be read and left out"]
    assert run.series["loss/train/total"].batches == [b for b in range(1, BATCHES + 1) if b not in (4, 8)]


def test_of_a_batch_that_is_there_twice_the_last_line_counts(folder):
    with (folder / METRICS).open("a") as file:
        file.write('{"batch": 5, "epoch": 0, "loss/train/total": 7.5}\n{"batch": 6, "loss/train/total": null}\n')
    series = read(folder).series["loss/train/total"]
    assert dict(zip(series.batches, series.values, strict=True))[5] == 7.5
    assert series.batches == sorted(set(range(1, BATCHES + 1)) - {6})


@pytest.mark.parametrize("missing", [METRICS, CONFIG, EVENTS])
def test_a_folder_without_one_of_its_files_is_read(folder, missing):
    (folder / missing).unlink()
    run = read(folder)
    assert [missing in note for note in run.notes] == ([] if missing == EVENTS else [True])
    assert (run.state == "not recorded") == (missing == EVENTS)
    assert bool(sessions(run)) == (missing != EVENTS)


def test_a_truncated_model_is_a_note(folder):
    weights = folder / "best/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    run = read(folder)
    assert run.best is None
    assert "best/model.safetensors cannot be read" in run.notes[0]


def test_folders_that_are_no_runs_are_refused(folder, tmp_path):
    for path, message in (
        (tmp_path / "none", "no such folder"),
        (folder / "best", f"expected the run itself: {folder}"),
        (tmp_path, f"did you mean {folder}?"),
        (folder / METRICS, "is a file"),
    ):
        with pytest.raises(UserError) as error:
            read_runs([str(path)])
        assert message in str(error.value)
    with pytest.raises(UserError, match="given twice"):
        read_runs([str(folder), f"{folder}/../run"])


def test_stages_of_a_model_are_side_by_side_and_seeds_over_each_other(stage_config, tmp_path):
    for seed in "ab":
        for stage in (1, 2):
            previous = tmp_path / seed / "stage1" / "best"
            config = stage_config(tmp_path / seed / f"stage{stage}", stage, previous)
            made_run(config, tmp_path / seed / f"stage{stage}")
    runs = read_runs([str(tmp_path / name) for name in ("b/stage2", "a/stage1", "a/stage2", "b/stage1")])
    assert [run.name for run in runs] == ["b/stage2", "a/stage1", "a/stage2", "b/stage1"]
    assert [(stage.title, stage.runs) for stage in stages(runs)] == [
        ("Stage 1: next token", [1, 3]),
        ("Stage 2: next token + contrastive", [0, 2]),
    ]


def test_a_run_that_started_from_another_of_its_kind_is_a_later_stage(stage_config, tmp_path):
    made_run(stage_config(tmp_path / "first"), tmp_path / "first")
    again = stage_config(tmp_path / "again", 1, None, f"init_from={tmp_path}/first/best")
    made_run(again, tmp_path / "again")
    assert [stage.runs for stage in stages(read_runs([str(tmp_path / "again"), str(tmp_path / "first")]))] == [[1], [0]]


def test_long_lines_are_thinned_to_means():
    series = Series(list(range(1, 1802)), [float(batch % 4) for batch in range(1, 1802)])
    short = thinned(series)
    assert short.batches[:2] == [4, 8]
    assert short.batches[-1] == 1801
    assert set(short.values[:-1]) == {1.5}
    assert thinned(Series([1, 2], [3.0, 4.0])) == Series([1, 2], [3.0, 4.0])
