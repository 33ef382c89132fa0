import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pseudo_terminal import pseudo_terminal, screen
from tests.shop import ROOT, metrics_of, stage_arguments
from ugt_composer import terminal
from ugt_composer.training.build import build_trainer

SHOWN = ("loggers.progress_bar=true", "max_duration=2ep", "eval_interval=1ep", "save_best_on=ndcg@10")
OF_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")  # Composer sets them in this process
# Composer's launcher prints this when all ranks have ended, and has no switch for it.
LAUNCHER = ["Waiting up to 30 seconds for all training processes to terminate. Press Ctrl-C to exit immediately."]
RESULTS = r"loss \d\.\d{4}, ndcg@10 \d\.\d{4}, recall@10 \d\.\d{4}, preference_accuracy \d\.\d{4}"
DURATION = r"\d+:\d\d"
TRAINED = [
    r"epoch 1/2, batch  1/14: loss \d\.\d{4}, [\d,]+ rows/s",
    rf"batch 7: evaluated in {DURATION}: {RESULTS}; best so far",
    r"epoch 2/2, batch 14/14: loss \d\.\d{4}, [\d,]+ rows/s",
    rf"batch 14: evaluated in {DURATION}: {RESULTS}(; best so far)?",
]


def assert_lines(text: str, patterns: list[str]) -> None:
    lines = text.splitlines()
    # A slow machine writes more lines about training.
    lines = [line for line in lines if not re.search(r"^epoch .*rows/s, \d+:\d\d left$", line)]
    assert len(lines) == len(patterns), text
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line


def test_a_log_file_has_a_line_now_and_then_and_each_evaluation(stage_config, tmp_path, capsys):
    trainer = build_trainer(stage_config(tmp_path / "run", 1, None, *SHOWN))
    trainer.train()
    trainer.close()
    written = capsys.readouterr()
    assert_lines(written.err, TRAINED)
    assert written.out == ""
    last = metrics_of(tmp_path / "run")[-1]
    assert f"batch 14/14: loss {last['loss/train/total']:.4f}," in written.err
    assert trainer.last_results()[2] == f"recall@10 {last['metrics/eval/recall@10']:.4f}"


def test_a_terminal_has_one_line_that_is_updated(stage_config, tmp_path, monkeypatch):
    monkeypatch.setattr(terminal, "REDRAW_SECONDS", 0)
    with pseudo_terminal(monkeypatch) as read:
        trainer = build_trainer(stage_config(tmp_path / "run", 1, None, *SHOWN, "log_interval=2ba"))
        trainer.train()
        trainer.close()
        written = read()
    frames = [frame.partition("\x1b[K")[0] for frame in written.decode().split("\r")]
    lines = metrics_of(tmp_path / "run")
    logged = {line["batch"]: line["loss/train/total"] for line in lines if "loss/train/total" in line}
    for batch in range(1, 15):
        # The loss is the last one that was logged: reading it for each batch would wait for the GPU.
        loss = logged[max(other for other in logged if other <= batch and (other == 1 or other % 2 == 0))]
        (frame,) = {frame for frame in frames if f"batch {batch:2}/14 |" in frame and f"loss {loss:.4f}, " in frame}
        assert frame.startswith(f"epoch {(batch - 1) // 7 + 1}/2, batch {batch:2}/14 |")
        assert (" left" in frame) == (1 < batch < 14)
    assert any("batch 7: evaluating, batch 1 of 1 |█" in frame for frame in frames)
    first, second, rest = screen(written)
    assert first.startswith("batch 7: evaluated in ")
    assert second.startswith("batch 14: evaluated in ")
    assert rest == ""


def test_console_prints_all_values_at_each_log_interval(stage_config, tmp_path, capsys):
    options = ("loggers.console=true", "max_duration=2ba", "log_interval=1ba", "eval_interval=2ba")
    trainer = build_trainer(stage_config(tmp_path / "run", 1, None, *options))
    trainer.train()
    trainer.close()
    written = capsys.readouterr().err
    shown = dict(re.findall(r"^  (\S.*): (\S+)$", written, re.MULTILINE))
    first, second = metrics_of(tmp_path / "run")
    values = {name: value for name, value in second.items() if name not in ("batch", "epoch")}
    assert shown == {name: f"{value:.6g}" for name, value in values.items() if value is not None}
    assert f"  loss/train/total: {first['loss/train/total']:.6g}\n" in written


def test_nothing_is_printed_if_both_are_switched_off(stage_config, tmp_path, capsys):
    trainer = build_trainer(stage_config(tmp_path / "run", 1, None, "max_duration=2ba"))
    trainer.train()
    trainer.close()
    assert capsys.readouterr().err == ""


def start(folder: Path) -> list[str]:
    return [
        rf"{folder}: a new run begins, from random weights \(seed 42\)",
        *(rf"  {name} +\S.*" for name in ("data", "steps", "schedule", "model", "memory", "output")),
    ]


def end(folder: Path, program: str) -> list[str]:
    return [
        rf"{folder}: trained to batch 14 in {DURATION}: {RESULTS}",
        rf"  best      {folder}/best: batch \d+, ndcg@10 \d\.\d{{4}}",
        rf"  next      {program} \S*yamls/stage2.yaml model\..* init_from={folder}/best",
    ]


@pytest.mark.processes
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_all_that_a_run_writes_into_a_file(shop, tmp_path, ranks):
    folder = tmp_path / "run"
    train = [str(ROOT / "train.py"), *stage_arguments(shop, folder, 1), *SHOWN]
    launcher = [str(Path(sys.executable).parent / "composer"), "-n", "2", "--master_port", "29649"]
    command, program = (launcher, "composer -n 2 train.py") if ranks == 2 else ([sys.executable], "python train.py")
    environment = {name: value for name, value in os.environ.items() if name not in OF_RANKS}
    done = subprocess.run(
        [*command, *train],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stdout
    assert_lines(done.stdout, [*start(folder), *TRAINED, *end(folder, program), *LAUNCHER * (ranks - 1)])
