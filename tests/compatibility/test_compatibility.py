"""Runs of earlier versions resume in this one, and their models recommend the same items.

Each folder beside this file was written with `write.py` by the version that it is named after.
"""

import json
import shutil
from pathlib import Path

import pytest

from tests.compatibility.write import recommend
from ugt_composer import build_trainer, load_config
from ugt_composer.model.history_tokens import HistoryTokens

VERSIONS = sorted(path for path in Path(__file__).parent.iterdir() if (path / "expected.json").exists())
TOLERANCE = 1e-4  # relative: the numbers of another CPU and another PyTorch


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def written(request, tmp_path, monkeypatch) -> dict:
    """The version's expected.json; the working directory is a copy of the folder that it wrote."""
    shutil.copytree(request.param, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return json.loads(Path("expected.json").read_text())


@pytest.fixture
def dropout_as_on_padding(monkeypatch):
    """The encoder computes padding too, as up to 0.1.0, so that dropout draws the same numbers for valid tokens."""
    monkeypatch.setattr(HistoryTokens, "of", lambda batch: HistoryTokens(batch["encoder_mask"]))


@pytest.mark.usefixtures("dropout_as_on_padding")
def test_a_checkpoint_resumes_with_the_losses_of_the_version_that_wrote_it(written, recwarn):
    trainer = build_trainer(load_config("config.yaml"))
    resumed_at = trainer.state.timestamp.batch.value
    assert not [warning for warning in recwarn if "not be restored" in str(warning.message)]
    evaluation = trainer.evaluate()
    assert {name: evaluation[name] for name in written["evaluation"]} == pytest.approx(
        written["evaluation"], rel=TOLERANCE
    )
    trainer.train()
    trainer.close()

    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = {str(line["batch"]): line["loss/train/total"] for line in lines if line["batch"] > resumed_at}
    assert resumed_at == min(map(int, written["losses"])) - 1
    assert losses == pytest.approx(written["losses"], rel=TOLERANCE)


def test_a_model_folder_recommends_the_items_of_the_version_that_wrote_it(written):
    now, then = recommend("run/latest"), written["recommended"]
    assert [item["item_id"] for item in now] == [item["item_id"] for item in then]
    assert [item["log_prob"] for item in now] == pytest.approx([item["log_prob"] for item in then], rel=TOLERANCE)
