"""Whether a preference loss has pairs to train on."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ugt_composer.config.load import load_config
from ugt_composer.data.manifest import about_pairs

YAMLS = Path(__file__).parents[2] / "yamls"
BOTH = ["recommend", "preference"]
GROUP = ["loss.preference_objective=group", "model.level_softmax=catalogue", "loss.lambda_anchor=0"]


@pytest.mark.parametrize(
    ("stage", "overrides", "kinds", "is_warned"),
    [
        (3, [], BOTH, False),
        (3, [], ["recommend", "recommend"], True),
        (3, [], ["recommend"], False),  # of two folders: the other has not been downloaded
        (3, ["data.train.streams=[]", "data.train.local=x"], ["recommend"], True),
        (3, GROUP, ["recommend", "recommend"], False),
        (3, ["loss.lambda_preference=0"], ["recommend", "recommend"], False),
        (2, [], ["recommend"], False),
    ],
)
def test_a_preference_loss_without_pairs_is_warned_about(stage, overrides, kinds, is_warned):
    config = load_config(YAMLS / f"stage{stage}.yaml", overrides=overrides)
    warning = about_pairs(config, [SimpleNamespace(kind=kind) for kind in kinds])
    assert (warning is not None) == is_warned
    if is_warned:
        assert "loss.lambda_preference is 0.1" in warning
        assert "preferences.yaml" in warning
