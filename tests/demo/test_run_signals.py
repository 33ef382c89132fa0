import json

import pytest

from ugt_composer.demo import run_signals
from ugt_composer.job.child import Children


def test_the_fraction_is_that_of_the_difference_between_the_best_possible_predictions():
    recall = {"ceiling_without_signals": 0.3, "ceiling_with_signals": 0.8, "model_with_signals": 0.7}
    assert run_signals.fraction_of_difference({name: {"recall@10": value} for name, value in recall.items()}) == (
        pytest.approx(0.8)
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)  # trains two models
def test_a_model_with_signals_takes_most_of_what_they_make_possible(tmp_path):
    run_signals.run_demo(Children(), tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    recall = {name: scores["recall@10"] for name, scores in results["scores"].items()}
    assert results["fraction_of_difference"] >= 0.8
    # Targets are drawn, so a model can score higher than the expectation of the best possible one: standard error .01.
    assert recall["model_without_signals"] < recall["ceiling_without_signals"] + 0.03
    assert recall["model_without_signals"] > 0.8 * recall["ceiling_without_signals"]
